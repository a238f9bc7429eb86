"""Where rows come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlkl.data.sources import is_local, read_rows
from rlkl.errors import DataError, InputError
from rlkl.recipe import DataSection

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]


def rows_of(source: Path | str, **keys: Any) -> list[tuple[int, Any]]:
    return list(read_rows(DataSection(source=str(source), **keys)).numbered)


def test_a_task_gives_its_rows():
    numbered = rows_of("task:arithmetic")
    assert len(numbered) == 231
    assert numbered[0] == (0, {"id": "0+0", "prompt": "0+0=", "answer": "0"})
    with pytest.raises(InputError, match=r"did you mean 'arithmetic'"):
        rows_of("task:aritmetic")


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    messages = [{"role": "user", "content": "hi"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": messages, "answer": 3}]), tmp_path / "x.parquet")
    rows = read_rows(DataSection(source=str(tmp_path / "x.parquet")))
    assert list(rows.numbered) == [(0, {"prompt": messages, "answer": 3})]
    assert rows.columns == {"prompt", "answer"}


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"cannot be read as parquet"):
        rows_of(tmp_path / "x.parquet")


def test_a_folder_saved_by_datasets(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == list(enumerate(ROWS))


def test_one_split_of_a_folder_saved_by_datasets(tmp_path):
    import datasets

    splits: dict[str | datasets.NamedSplit, datasets.Dataset] = {
        "train": datasets.Dataset.from_list(ROWS),
        "test": datasets.Dataset.from_list(ROWS[:1]),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "several")
    assert rows_of(tmp_path / "several", split="test") == [(0, ROWS[0])]
    with pytest.raises(DataError, match=r"data.split = 'tests'.*did you mean 'test'"):
        rows_of(tmp_path / "several", split="tests")


def test_a_folder_of_data_files(tmp_path, monkeypatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert rows_of(folder) == [(0, {"prompt": "a"}), (1, {"prompt": "b"})]
    with pytest.raises(DataError, match=r"data\.split validation"):
        rows_of(folder, split="validation")


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(DataError, match=r"did you mean '.*prompts\.jsonl'"):
        rows_of(tmp_path / "promts.jsonl")
    with pytest.raises(DataError, match=r"there is no folder"):
        rows_of(tmp_path / "nowhere" / "prompts.jsonl")


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("prompt\na\n")
    with pytest.raises(DataError, match=r"is a \.csv file; use \.jsonl or \.parquet"):
        rows_of(tmp_path / "x.csv")


def test_files_folders_and_worlds_are_local_and_names_of_a_hub_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    for source in ("task:arithmetic", "missing.jsonl", "~/missing.parquet", "saved", str(tmp_path)):
        assert is_local(DataSection(source=source)), source
    assert not is_local(DataSection(source="openai/gsm8k"))
