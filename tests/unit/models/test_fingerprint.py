"""The hash of a model folder: true to its content, and read once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rlkl.models import fingerprint
from rlkl.models.fingerprint import model_fingerprint

LARGE = 1 << 20


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read whole, in a cache of its own; every file counts as settled."""
    monkeypatch.setenv("RLKL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "SETTLED_S", -1.0)
    names: list[str] = []
    read = fingerprint._read

    def counted(file: Path) -> str:
        names.append(file.name)
        return read(file)

    monkeypatch.setattr(fingerprint, "_read", counted)
    return names


def model(folder: Path, *, weights: bytes = b"w" * LARGE) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_large_files_are_read_once_until_they_change(tmp_path: Path, reads: list[str]):
    folder = model(tmp_path / "a")
    first = model_fingerprint(str(folder))
    assert model_fingerprint(str(folder)) == first
    assert reads.count("model.safetensors") == 1

    before = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"w" * (LARGE - 1) + b"x")
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` leaves it
    assert model_fingerprint(str(folder)) != first
    assert reads.count("model.safetensors") == 2


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fingerprint, "SETTLED_S", 60.0)
    folder = model(tmp_path / "a")
    assert model_fingerprint(str(folder)) == model_fingerprint(str(folder))
    assert reads.count("model.safetensors") == 2


def test_a_cache_that_cannot_be_written_or_read_costs_only_time(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    folder = model(tmp_path / "a")
    first = model_fingerprint(str(folder))
    for file in (tmp_path / "cache" / "digests").iterdir():
        file.write_text("{")
    assert model_fingerprint(str(folder)) == first
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLKL_CACHE", str(tmp_path / "file"))
    assert model_fingerprint(str(folder)) == first
    assert reads.count("model.safetensors") == 3


def test_content_counts_and_not_the_place(tmp_path: Path, reads: list[str]):
    first = model_fingerprint(str(model(tmp_path / "a")))
    assert model_fingerprint(str(shutil.copytree(tmp_path / "a", tmp_path / "b"))) == first
    for name in ("README.md", "optimizer.pt", "consolidated.safetensors", "trainer_state.json"):  # not what is loaded
        (tmp_path / "b" / name).write_text("more")
    assert model_fingerprint(str(tmp_path / "b")) == first
    (tmp_path / "b" / "config.json").write_text('{"rope_theta": 2}')
    assert model_fingerprint(str(tmp_path / "b")) != first


def test_every_shard_counts(tmp_path: Path, reads: list[str]):
    folder = tmp_path / "sharded"
    folder.mkdir()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    )
    for name in shards:
        (folder / name).write_bytes(b"s" * LARGE)
    seen = {model_fingerprint(str(folder))}
    for name in shards:
        (folder / name).write_bytes(name.encode() * 60_000)
        seen.add(model_fingerprint(str(folder)))
    assert len(seen) == 3
