from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlkl.errors import CheckpointError, LearnerError
from rlkl.tracking.records.reading import (
    MetricsFile,
    drop_later_samples,
    read_metrics,
    sample_path,
    unify_samples,
    write_samples,
)
from rlkl.tracking.records.token_texts import TokenTexts
from rlkl.types import SHARED_TOKEN_COLUMNS, Completion, Prompt, Rollout, RolloutGroup


def _write(path: Path, steps: int, *, first_step: int = 0) -> None:
    file = MetricsFile(path, first_step=first_step)
    for step in range(first_step, steps):
        file.append({"reward/mean": 0.1 * step, "step": step + 1})
    file.close()


def test_step_comes_first_and_numbers_are_exact(tmp_path: Path):
    _write(tmp_path / "metrics.jsonl", 4)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[3] == '{"step": 4, "reward/mean": 0.30000000000000004}'
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_records_reach_other_readers_at_once(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl", first_step=0)
    file.append({"step": 1, "reward/mean": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "reward/mean": 0.5}]
    file.close()


def test_a_resumed_run_repeats_the_bytes_of_one_that_never_stopped(tmp_path: Path):
    _write(tmp_path / "whole.jsonl", 9)
    _write(tmp_path / "cut.jsonl", 7)
    _write(tmp_path / "cut.jsonl", 9, first_step=4)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_torn_last_line_is_left_out_on_resume(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    _write(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 4, "reward/me')
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    MetricsFile(path, first_step=3).close()
    assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_stops_the_resume(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2 is not JSON"):
        MetricsFile(path, first_step=3)
    assert path.read_text().count("\n") == 3, "the file stays as it was"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_with_key_and_step(tmp_path: Path, value: float):
    file = MetricsFile(tmp_path / "metrics.jsonl", first_step=6)
    with pytest.raises(LearnerError, match=r"step 7 produced optim/grad_norm = -?(nan|inf)"):
        file.append({"step": 7, "reward/mean": 0.5, "optim/grad_norm": value})
    file.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def _group(prompt_id: str, *, texts: tuple[str, ...]) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            sample_index=index,
            completion=Completion(token_ids=(7 + index, 1), logprobs=(-0.5, -0.1), finish_reason="stop", text=text),
            reward=1.5 * index,
            components={"gold": float(index), "brevity": 0.5},
            weights_version=9,
        )
        for index, text in enumerate(texts)
    )
    return RolloutGroup(prompt=Prompt(id=prompt_id, text=f"{prompt_id}?", token_ids=(3,)), rollouts=rollouts)


def test_samples_hold_every_rollout_with_its_rewards(tmp_path: Path):
    path = sample_path(tmp_path, 10)
    assert path == tmp_path / "samples" / "step_000010.parquet"
    groups = [_group("a", texts=("x", "y\nz")), _group("b", texts=("half a surrogate pair: \ud83d",))]
    write_samples(path, 10, groups, {"mask": [[0.0, 2.0], [1.0, 0.5], None]})
    rows = pq.read_table(path).to_pylist()
    assert rows[1] == {
        "step": 10,
        "prompt_id": "a",
        "prompt": "a?",
        "completion": "y\nz",
        "completion_ids": [8, 1],
        "logprobs": [-0.5, -0.1],
        "finish_reason": "stop",
        "reward": 1.5,
        "reward/brevity": 0.5,
        "reward/gold": 1.0,
        "reward_tags": [],
        "reward_failed": [],
        "sample_index": 1,
        "weights_version": 9,
        "versions": [9, 9],
        "mask": [1.0, 0.5],
    }
    assert rows[2]["completion"] == "half a surrogate pair: ?"
    assert rows[2]["mask"] is None
    assert [row["prompt_id"] for row in rows] == ["a", "a", "b"]
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no half-written file stays behind"


def test_the_text_of_tokens_and_the_numbers_of_every_rule_come_before_those_of_one_rule(tmp_path: Path):
    class Numbers:
        def decode(self, ids: list[int]) -> str:
            return "".join(f"<{token}>" for token in ids)

    numbers = {name: [[0.0, 1.0]] for name in ("a_mask", *reversed(SHARED_TOKEN_COLUMNS))}
    write_samples(sample_path(tmp_path, 1), 1, [_group("a", texts=("x",))], numbers, tokens=TokenTexts(Numbers()))
    table = pq.read_table(sample_path(tmp_path, 1))
    assert table["tokens"].to_pylist() == [["<7>", "<1>"]]
    assert table.column_names.index("tokens") == table.column_names.index("completion_ids") + 1
    assert table.column_names[-5:] == [*SHARED_TOKEN_COLUMNS, "a_mask"]


def test_samples_of_steps_to_be_done_again_are_dropped(tmp_path: Path):
    for finished in (1, 10, 20):
        write_samples(sample_path(tmp_path, finished), finished, [_group("a", texts=("x",))])
    drop_later_samples(tmp_path, 10)
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [
        "step_000001.parquet",
        "step_000010.parquet",
    ]


LATE = {"reward/late": 2.0, "monitor/new": 3.0, "reward_tags": ["odd"], "mask": [0.5, 1.5]}
"""Columns that come up in the second file."""


def _write_three(run_dir: Path) -> None:
    """Sample files of three steps, of which the second has columns that the others lack."""
    (early,) = _group("a", texts=("x",)).rollouts
    late = replace(early, components={**early.components, "late": 2.0}, monitors={"new": 3.0}, tags=("odd",))
    for finished, rollout, token_columns in ((1, early, {}), (10, late, {"mask": [[0.5, 1.5]]}), (20, early, {})):
        group = RolloutGroup(prompt=Prompt(id=f"p{finished}", text="?", token_ids=(3,)), rollouts=(rollout,))
        write_samples(sample_path(run_dir, finished), finished, [group], token_columns)


def test_the_folder_of_samples_is_one_table_with_every_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets.config
    import pandas
    import pyarrow.dataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    _write_three(tmp_path)
    folder = tmp_path / "samples"
    tables = [
        pyarrow.dataset.dataset(folder, format="parquet").to_table().to_pylist(),
        pq.read_table(folder).to_pylist(),
        datasets.load_dataset(str(folder), split="train").to_list(),
    ]
    for rows in tables:
        by_step = {row["step"]: row for row in rows}
        assert {name: by_step[10][name] for name in LATE} == LATE
        assert [by_step[1][name] for name in LATE] == [None, None, [], None]
        assert [by_step[20][name] for name in LATE] == [None, None, [], None]
        assert by_step[1]["prompt_id"] == "p1"
    frame = pandas.read_parquet(folder).set_index("step")
    assert set(LATE) <= set(frame.columns)
    assert frame.loc[10, "reward/late"] == 2.0
    assert len({pq.read_schema(path) for path in folder.glob("*.parquet")}) == 1


def test_a_resumed_run_brings_older_files_to_one_schema(tmp_path: Path):
    _write_three(tmp_path)
    for path in sorted((tmp_path / "samples").iterdir())[::2]:
        pq.write_table(pq.read_table(path).drop_columns(list(LATE)), path)
    unify_samples(tmp_path)
    schemas = {pq.read_schema(path) for path in (tmp_path / "samples").iterdir()}
    assert len(schemas) == 1
    assert set(LATE) <= set(next(iter(schemas)).names)
    unify_samples(tmp_path / "no run")
