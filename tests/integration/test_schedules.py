"""Real runs that sample while the learner steps: Ray actors, vLLM, kills."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import rlkl
from rlkl.training.checkpoint import Checkpoints
from tests.integration.runs import killed_and_resumed, make_recipe, records, untimed

STEPS = 7
ONE_STEP_OFF = {"schedule": "one_step_off", "workers": 2}
STREAM = {"schedule": "stream", "max_staleness": 2, "workers": 2, "max_new_tokens": 16}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "policy" / "model.safetensors")


@pytest.fixture(scope="module")
def one_step_off(untied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    rlkl.train(make_recipe(run_dir, untied_model, steps=STEPS, rollout=ONE_STEP_OFF))
    return run_dir


def test_one_step_off_trains_on_completions_of_the_version_before(one_step_off: Path):
    lines = records(one_step_off)

    assert [line["rollout/staleness_max"] for line in lines] == [0] + [1] * (STEPS - 1)
    assert all(line["weights/verified"] == 1 for line in lines)
    assert all("correction/weight_mean" in line for line in lines)
    assert max(line["weights/probe_max"] for line in lines) < 1e-4
    rows = pq.read_table(one_step_off / "samples" / "step_000006.parquet").to_pylist()
    assert {version for row in rows for version in row["versions"]} == {4}


@pytest.mark.parametrize("after", [3, 4])
def test_one_step_off_goes_on_bit_for_bit_after_a_kill(
    after: int, one_step_off: Path, untied_model: Path, tmp_path: Path
):
    run_dir = tmp_path / "cut"
    killed_and_resumed(make_recipe(run_dir, untied_model, steps=STEPS, rollout=ONE_STEP_OFF), after=after)

    assert untimed(run_dir) == untimed(one_step_off)
    whole, cut = weights(one_step_off), weights(run_dir)
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())


def test_stream_keeps_its_bound_and_survives_a_kill(untied_model: Path, tmp_path: Path):
    run_dir = tmp_path / "cut"
    tracking, checkpoint = {"samples_every": 1}, {"every": 2}
    recipe = make_recipe(run_dir, untied_model, steps=STEPS, rollout=STREAM, tracking=tracking, checkpoint=checkpoint)
    killed_and_resumed(recipe, after=4)

    lines = records(run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert max(line["rollout/staleness_max"] for line in lines) <= 2
    assert all(line["weights/verified"] == 1 for line in lines)
    epochs = [line["data/epoch"] for line in lines]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == pytest.approx(epochs[0] * STEPS)  # every draw was trained on once
    prompts = [
        [row["prompt_id"] for row in pq.read_table(path).to_pylist()[::4]]
        for path in sorted((run_dir / "samples").glob("step_*.parquet"))
    ]
    assert [len(of_step) for of_step in prompts] == [8] * STEPS
    state = json.loads((Checkpoints(run_dir, keep=2).latest() / "state.json").read_text())
    assert state["position"] == 8 * STEPS
