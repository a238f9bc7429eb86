"""Samples for the page."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlkl.analysis.report import samples as module
from rlkl.analysis.report.events import read_lines
from rlkl.analysis.report.pictures import PictureStore
from rlkl.analysis.report.samples import SampleBook, sample_files
from tests.run_folders import write_run, write_sample_file, write_suspects


def content(folder: Path, *, limit: int = 100) -> dict:
    book = SampleBook(PictureStore(folder), samples=limit)
    book.add_files(sample_files(folder, 0), [folder])
    return book.content()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run")
    for step in (1, 6, 12):
        write_sample_file(run, step, [f"answer {number}" for number in range(12)])
    return run


def test_a_sample_has_its_tokens_and_their_numbers(folder: Path):
    found = content(folder)
    row = found["rows"][1]
    assert [found["tokens"][number] for number in row["ids"]] == ["answer 1", " the", "<eos>"]
    assert row["numbers"]["advantages"] == [0.4, -0.25, 0]
    assert row["numbers"]["a_mask"] == [1, 0, 0.5]
    policy, reference = row["numbers"]["policy_logprobs"], row["numbers"]["reference_logprobs"]
    assert row["numbers"]["log_ratio"] == pytest.approx([a - b for a, b in zip(policy, reference, strict=True)])
    assert found["prompts"][row["prompt"]] == "Question 0?"
    assert (row["step"], row["kind"], row["reward"], row["rewards"]) == (1, "step", 1, {"reward/gold": 1})
    assert (found["total"], len(found["rows"])) == (36, 36)


def test_the_limit_takes_whole_groups_of_every_file(folder: Path):
    found = content(folder, limit=13)
    assert [row["step"] for row in found["rows"]] == [1] * 4 + [6] * 4 + [12] * 4
    assert all(found["prompts"][row["prompt"]] == "Question 0?" for row in found["rows"])
    assert content(folder, limit=0)["rows"] == []


def write_uneven(run: Path) -> Path:
    """Write many small files of training and a large one of an evaluation: 40 x 4 and 48 samples."""
    for step in range(1, 41):
        write_sample_file(run, step, ["answer"] * 4)
    write_sample_file(run, 41, ["answer"] * 48)
    path = run / "samples" / "step_000041.parquet"
    path.rename(path.with_name("eval_000040.parquet"))
    return run


@pytest.mark.parametrize(
    ("limit", "held"), [(2000, 208), (208, 208), (207, 204), (200, 200), (101, 100), (3, 0), (0, 0)]
)
def test_all_samples_are_held_or_as_many_whole_groups_as_the_limit_allows(tmp_path: Path, limit: int, held: int):
    found = content(write_uneven(write_run(tmp_path / "run")), limit=limit)
    assert (len(found["rows"]), found["total"]) == (held, 208)
    steps = [row["step"] for row in found["rows"]]
    assert steps == sorted(steps)


def test_a_limit_of_tokens_leaves_out_no_part_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TOKENS", 20 * 12)
    rows = content(write_uneven(write_run(tmp_path / "run")), limit=2000)["rows"]
    steps = sorted({row["step"] for row in rows})
    assert (len(rows), len(steps)) == (80, 20)
    assert (steps[0] <= 2, steps[-1] >= 39) == (True, True)
    assert max(later - earlier for earlier, later in itertools.pairwise(steps)) <= 4


def test_a_page_holds_no_more_tokens_than_a_browser_opens_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TOKENS", 25)
    assert len(content(folder)["rows"]) == 8


def test_held_out_samples_are_told_apart(folder: Path):
    path = folder / "samples" / "step_000006.parquet"
    path.rename(path.with_name("eval_000006.parquet"))
    assert {(row["step"], row["kind"]) for row in content(folder)["rows"]} == {(1, "step"), (6, "eval"), (12, "step")}


def test_files_of_an_earlier_version_have_texts_only(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_sample_file(run, 1, ["a", "b", "c", "d"], shared=False)
    assert "tokens" not in pq.read_schema(run / "samples" / "step_000001.parquet").names
    row = content(run)["rows"][0]
    assert row["text"] == "a"
    assert "ids" not in row


def test_rollouts_that_are_not_trained_on_have_the_samplers_numbers_only(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_sample_file(run, 1, ["a", "b", "c", "d"])
    path = run / "samples" / "step_000001.parquet"
    table = pq.read_table(path)
    for name in ("advantages", "policy_logprobs", "reference_logprobs", "entropy", "a_mask"):
        place = table.column_names.index(name)
        values = [None, *table[name].to_pylist()[1:]]
        table = table.set_column(place, table.schema.field(name), [values])
    pq.write_table(table, path)
    rows = content(run)["rows"]
    assert list(rows[0]["numbers"]) == ["logprobs"]
    assert "log_ratio" in rows[1]["numbers"]


def test_suspects_are_samples_without_numbers_a_token(folder: Path):
    write_suspects(folder, 9)
    book = SampleBook(PictureStore(folder))
    book.add_suspects(0, read_lines(folder / "suspicious"))
    (row,) = book.content()["rows"]
    assert (row["step"], row["kind"], row["signal"], row["text"]) == (9, "suspect", "gap/gold", "Trust me.")
    assert row["rewards"] == {"monitor/gold": -1}


def test_pictures_are_in_the_page_while_there_is_room_and_links_after_that(tmp_path: Path):
    images = tmp_path / "my run" / "images"
    images.mkdir(parents=True)
    for name, size in (("a.png", 10), ("b.jpg", 10), ("c.png", 5)):
        (images / name).write_bytes(b"x" * size)
    store = PictureStore(tmp_path / "out", room=16)
    assert [store.number(images / name) for name in ("a.png", "b.jpg", "c.png", "a.png")] == [0, 1, 2, 0]
    assert store.sources[0].startswith("data:image/png;base64,")
    assert store.sources[1] == "../my%20run/images/b.jpg"
    assert store.sources[2].startswith("data:image/png;base64,")
