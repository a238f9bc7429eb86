"""Evaluations with real engines: within a run, and of its policy afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

import rlkl
from rlkl.tracking.records.reading import read_metrics
from rlkl.training.result import RunResult
from tests.integration.runs import REPOSITORY, make_recipe, untimed

PATIENCE_S = 600
"""Seconds for a command that starts two engines."""
HELD_OUT = {"every": 2, "data": {"source": "task:arithmetic/test"}, "samples": 2, "limit": 8}


def rlkl_command(*arguments: str) -> str:
    """Run `rlkl` as a process and return its standard output."""
    child = subprocess.run(
        [sys.executable, "-m", "rlkl", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.fixture(scope="module")
def evaluated_run(untied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The run of ``whole_run`` with evaluations."""
    run_dir = tmp_path_factory.mktemp("runs") / "evaluated"
    checkpoint = {"every": 2, "best": "eval/mean"}
    return rlkl.train(make_recipe(run_dir, untied_model, eval=HELD_OUT, checkpoint=checkpoint))


def test_a_run_trains_the_same_with_and_without_evaluations(whole_run: RunResult, evaluated_run: RunResult):
    assert untimed(evaluated_run.run_dir) == untimed(whole_run.run_dir)
    names = [path.name for path in sorted((whole_run.run_dir / "samples").glob("step_*.parquet"))]
    for name in names:
        columns = ["prompt_id", "completion_ids", "logprobs", "reward"]
        tables = [pq.read_table(run.run_dir / "samples" / name, columns=columns) for run in (whole_run, evaluated_run)]
        assert tables[0].equals(tables[1])
    weights = [(run.run_dir / "policy" / "model.safetensors").read_bytes() for run in (whole_run, evaluated_run)]
    assert weights[0] == weights[1]


def test_the_evaluations_of_a_run_are_recorded(evaluated_run: RunResult):
    records = read_metrics(evaluated_run.run_dir / "eval.jsonl")

    assert [record["step"] for record in records] == [0, 2, 4, 5]
    assert records[0]["eval/kl"] == 0.0
    assert records[-1]["eval/kl"] > 0.0
    assert all({"eval/mean_se", "eval/digits", "eval/greedy", "time/eval_s"} <= record.keys() for record in records)
    best = max(records[1:], key=lambda record: record["eval/mean"])
    if best["eval/mean"] > records[0]["eval/mean"]:
        kept = json.loads((evaluated_run.run_dir / "best" / "rlkl_best.json").read_text())
        assert (kept["step"], kept["value"]) == (best["step"], best["eval/mean"])
        AutoModelForCausalLM.from_pretrained(evaluated_run.run_dir / "best")


def test_the_command_measures_what_the_run_measured(evaluated_run: RunResult, tmp_path: Path):
    out = tmp_path / "samples.parquet"
    found = json.loads(rlkl_command("eval", str(evaluated_run.run_dir), "--json", "--out", str(out)))
    last = read_metrics(evaluated_run.run_dir / "eval.jsonl")[-1]

    assert (found["prompts"], found["samples"], found["seed"]) == (8, 2, 0)
    metrics = found["metrics"]
    assert metrics.keys() == last.keys() - {"step"}
    assert metrics["eval/kl"] == pytest.approx(last["eval/kl"], abs=1e-4)
    assert metrics["eval/kl_se"] == pytest.approx(last["eval/kl_se"], abs=1e-4)
    ours = {"step", "time/eval_s", "eval/kl", "eval/kl_se"}
    assert {k: v for k, v in metrics.items() if k not in ours} == {k: v for k, v in last.items() if k not in ours}
    rows = pq.read_table(out).to_pylist()
    stored = pq.read_table(evaluated_run.run_dir / "samples" / "eval_000005.parquet").to_pylist()
    assert [row["completion_ids"] for row in rows] == [row["completion_ids"] for row in stored]


def test_a_policy_answers_a_prompt(evaluated_run: RunResult):
    """The greedy answer of the hf engine is that of the evaluation's vLLM."""
    rows = pq.read_table(evaluated_run.run_dir / "samples" / "eval_000005.parquet").to_pylist()
    row = next(row for row in rows if row["evaluation"] == "greedy")

    answer = rlkl_command("generate", str(evaluated_run.run_dir), row["prompt"], "--temperature", "0", "--engine", "hf")

    assert answer == f"{row['completion']}\n"
