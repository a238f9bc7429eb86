from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkl.costs.find import find_shape, parameters_of, read_shape
from rlkl.errors import InputError
from tests.unit.costs.test_shapes import LLAMA


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def test_a_folder_and_its_config_give_the_same_shape(folder: Path):
    assert read_shape(folder) == read_shape(folder / "config.json")
    shape, source = find_shape(str(folder))
    assert shape == read_shape(folder)
    assert source == str(folder / "config.json")


def test_a_given_config_takes_precedence(folder: Path):
    shape, source = find_shape("Qwen/Qwen2.5-7B", str(folder))
    assert shape.hidden == 8
    assert source == str(folder)


def test_a_name_is_found_in_the_table():
    shape, source = find_shape("Qwen/Qwen2.5-7B-Instruct")
    assert (shape.layers, source) == (28, "the built-in table")


def test_the_hubs_cache_comes_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "models--Qwen--Qwen2.5-7B"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shape, source = find_shape("Qwen/Qwen2.5-7B")
    assert (shape.hidden, source) == (8, "the config.json in the hub's cache")


def test_an_unknown_model_is_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"'Qwen/Qwen3-9B' is not known.*--shape.*did you mean 'Qwen/Qwen3-8B'"):
        find_shape("Qwen/Qwen3-9B")
    assert parameters_of("Qwen/Qwen3-9B") == parameters_of("task:arithmetic") == 0


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[1]", "holds list"), (None, "cannot be read")]
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_shape(tmp_path / "c.json")
