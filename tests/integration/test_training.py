"""Real runs: Ray actors, vLLM engines, a learner, W&B offline."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlkl
from rlkl.errors import CheckpointError, DeadlineError, RunInUseError, WeightSyncError
from rlkl.recipe.io import dump_recipe
from rlkl.training.result import RunResult
from tests.integration.conftest import SECRET
from tests.integration.engines import LOST
from tests.integration.runs import (
    DEADLINE_S,
    REPOSITORY,
    STEPS,
    digits,
    hold_after_steps,
    make_recipe,
    recorded_stacks,
    records,
    start_cli,
    untimed,
    wait_for_steps,
)


def test_every_step_is_recorded_and_every_publish_proven(whole_run: RunResult):
    lines = records(whole_run.run_dir)

    assert (whole_run.status, whole_run.exit_code) == ("done", 0)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["weights/verified"] == 1 for line in lines)
    assert [line["weights/version"] for line in lines] == list(range(1, STEPS + 1))
    assert max(line["rollout/mismatch_max"] for line in lines) < 1e-4
    assert max(line["weights/probe_max"] for line in lines) < 1e-4
    assert lines[0]["kl/policy_to_reference"] == 0.0
    assert lines[-1]["kl/policy_to_reference"] != 0.0
    assert whole_run.metrics.items() <= lines[-1].items()


def test_the_run_folder_is_complete(whole_run: RunResult):
    found = {path.name for path in whole_run.run_dir.iterdir()}
    expected = {"recipe.yaml", "metrics.jsonl", "samples", "checkpoints", "policy", "wandb"}
    assert found == expected | {"versions.json", "report.html"}

    samples = pq.read_table(whole_run.run_dir / "samples" / "step_000002.parquet").to_pylist()
    assert len(samples) == 8 * 4
    assert all(row["reward"] == digits(row["completion"]) for row in samples)
    checkpoints = sorted(path.name for path in (whole_run.run_dir / "checkpoints").iterdir())
    assert checkpoints == ["step_000004", "step_000005"]
    assert list((whole_run.run_dir / "wandb").glob("offline-run-*/*.wandb"))


def test_a_secret_of_the_environment_is_in_no_file_of_the_run_and_in_no_log_of_ray(
    whole_run: RunResult, ray_folder: Path
):
    logs = list(ray_folder.glob("session_*/logs/worker-*"))
    assert logs, "Ray has written logs"
    files = [file for folder in (whole_run.run_dir, ray_folder) for file in folder.rglob("*") if file.is_file()]
    assert [str(file) for file in files if SECRET.encode() in file.read_bytes()] == []


def test_the_policy_loads_in_transformers_and_has_moved(whole_run: RunResult, untied_model: Path):
    policy = AutoModelForCausalLM.from_pretrained(whole_run.run_dir / "policy").state_dict()
    start = AutoModelForCausalLM.from_pretrained(untied_model).state_dict()
    tokenizer = AutoTokenizer.from_pretrained(whole_run.run_dir / "policy")

    assert policy.keys() == start.keys()
    assert any(not torch.equal(policy[name], start[name]) for name in start)
    assert tokenizer.decode(tokenizer.encode("7+12=")) == "7+12="


def test_the_policy_loads_in_vllm_and_scores_as_in_transformers(whole_run: RunResult):
    folder = whole_run.run_dir / "policy"
    tokens = AutoTokenizer.from_pretrained(folder).encode("7+12=19")
    policy = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logprobs = policy(torch.tensor([tokens])).logits[0].log_softmax(-1)

    command = [sys.executable, "-m", "tests.integration.score_with_vllm", str(folder), *map(str, tokens)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S)

    assert answer.returncode == 0, answer.stderr
    wanted = [float(logprobs[t, token]) for t, token in enumerate(tokens[1:])]
    assert json.loads(answer.stdout.splitlines()[-1]) == pytest.approx(wanted, abs=1e-4)


def test_a_killed_run_goes_on_bit_for_bit(whole_run: RunResult, untied_model: Path, tmp_path: Path):
    """SIGKILL in the fourth step, resume from the checkpoint of the second: nothing may differ but the times."""
    run_dir = tmp_path / "killed"
    recipe = make_recipe(run_dir, untied_model)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    process = start_cli("train", str(path))
    hold_after_steps(process, run_dir, 3)
    stored = rlkl.load_recipe(run_dir / "recipe.yaml")
    with pytest.raises(RunInUseError, match=f"process {process.pid} of user"):
        rlkl.train(stored, resume_from=run_dir)
    process.kill()
    process.wait()
    edited = (run_dir / "recipe.yaml").read_text().replace("seed: 0\n", "seed: 7\n")
    (run_dir / "recipe.yaml").write_text(edited)
    with pytest.raises(CheckpointError, match=r"seed=7 \(was 0\)"):
        rlkl.train(rlkl.load_recipe(run_dir / "recipe.yaml"), resume_from=run_dir)

    result = rlkl.train(stored, resume_from=run_dir)

    assert result.status == "done"
    assert not (run_dir / "run.lock").exists()
    assert untimed(run_dir) == untimed(whole_run.run_dir)
    policies = [
        AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict() for folder in (run_dir, whole_run.run_dir)
    ]
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
    assert len({path.name.split("-")[-1] for path in (run_dir / "wandb").glob("offline-run-*")}) == 1


def test_a_finished_run_has_nothing_to_resume(whole_run: RunResult):
    before = (whole_run.run_dir / "metrics.jsonl").read_bytes()

    with pytest.raises(
        CheckpointError, match=rf"has made {STEPS} steps, and steps = {STEPS} asks for no more.*steps=10"
    ):
        rlkl.train(rlkl.load_recipe(whole_run.run_dir / "recipe.yaml"), resume_from=whole_run.run_dir)
    assert (whole_run.run_dir / "metrics.jsonl").read_bytes() == before


def test_two_workers_sample_what_one_samples(whole_run: RunResult, untied_model: Path, tmp_path: Path):
    result = rlkl.train(make_recipe(tmp_path / "two", untied_model, rollout={"workers": 2}, steps=3))

    for one, two in zip(untimed(whole_run.run_dir)[:3], untimed(result.run_dir), strict=True):
        sampler = {
            key for key in one if key.startswith(("rollout/mismatch", "weights/probe"))
        }  # rounding of its batches
        assert {key: one[key] for key in one.keys() - sampler} == {key: two[key] for key in two.keys() - sampler}


def test_tied_embeddings_lora_and_an_own_reward_function(tied_model: Path, tmp_path: Path):
    def ends_early(completion_ids: tuple[int, ...]) -> float:
        return -float(len(completion_ids))

    recipe = make_recipe(tmp_path / "tied", tied_model, model={"lora": {"rank": 4}}, steps=3, tracking={"wandb": "off"})
    result = rlkl.train(recipe, rewards=[ends_early])

    lines = records(result.run_dir)
    assert all(line["weights/verified"] == 1 for line in lines)
    assert max(line["rollout/mismatch_max"] for line in lines) < 1e-4
    assert all(line["reward/ends_early"] == -line["rollout/length_mean"] for line in lines)
    assert not (result.run_dir / "wandb").exists()


def test_bfloat16_and_full_training_with_tied_embeddings(tied_model: Path, tmp_path: Path):
    sections = {"model": {"dtype": "bfloat16"}, "steps": 3, "learner": {"epochs": 2, "minibatches": 2}}
    result = rlkl.train(make_recipe(tmp_path / "bf16", tied_model, **sections))

    assert all(line["weights/verified"] == 1 for line in records(result.run_dir))
    policy = AutoModelForCausalLM.from_pretrained(result.run_dir / "policy", dtype="auto")
    assert policy.dtype == torch.bfloat16


def test_a_lost_tensor_stops_the_run_and_is_named(untied_model: Path, tmp_path: Path):
    engine = {"engine": "tests.integration.engines:LosesOneTensor"}

    with pytest.raises(WeightSyncError, match=f"no tensor of version 0 reached.*{LOST}"):
        rlkl.train(make_recipe(tmp_path / "lost", untied_model, rollout=engine))


def test_a_stale_tensor_stops_the_run_and_is_named(untied_model: Path, tmp_path: Path):
    recipe = make_recipe(
        tmp_path / "stale", untied_model, rollout={"engine": "tests.integration.engines:KeepsOneTensor"}
    )

    with pytest.raises(WeightSyncError, match=r"disagrees with the learner by .* model\.embed_tokens\.weight \(off by"):
        rlkl.train(recipe)
    assert not (tmp_path / "stale" / "policy").exists()


def test_a_worker_that_hangs_is_named_at_the_deadline(untied_model: Path, tmp_path: Path):
    recipe = make_recipe(
        tmp_path / "hangs",
        untied_model,
        rollout={"engine": "tests.integration.engines:Hangs"},
        cluster={"call_timeout_s": 30.0},
    )

    with pytest.raises(DeadlineError, match="rollout worker 0 did not generate within 30 s") as caught:
        rlkl.train(recipe)
    stacks = recorded_stacks(tmp_path / "hangs")
    assert str(stacks) in str(caught.value)
    ours, _, theirs = stacks.read_text().partition("---- rollout worker 0 ----")
    assert "rlkl/actors/sampler.py" in ours
    assert re.search(r"tests/integration/engines\.py\", line \d+ in stream", theirs)


def to_the_process(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGINT)
    return signal.SIGINT


def to_its_group(process: subprocess.Popen[str]) -> int:
    """As `timeout` and job schedulers do."""
    os.killpg(process.pid, signal.SIGTERM)
    return signal.SIGTERM


def test_a_signal_while_ray_starts_ends_the_run_without_an_error(untied_model: Path, tmp_path: Path):
    """Ray has its handlers by then, and an actor loads."""
    model = Path(shutil.copytree(untied_model, tmp_path / "model"))
    recipe = make_recipe(tmp_path / "run", model, rollout={"engine": "tests.integration.engines:StaysLoading"})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    process = start_cli("train", str(path))
    end = time.monotonic() + DEADLINE_S
    while not (model / "loading").exists():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end
        time.sleep(0.05)

    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 128 + signal.SIGTERM
    assert "starting Ray" in output
    assert "stopped at once" in output
    assert "*** SIGTERM" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize("stop", [to_the_process, to_its_group])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    stop: Callable[[subprocess.Popen[str]], int], untied_model: Path, tmp_path: Path
):
    recipe = make_recipe(tmp_path / "run", untied_model, rollout={"engine": "hf"}, steps=500, checkpoint={"every": 500})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    process = start_cli("train", str(path))
    wait_for_steps(process, tmp_path / "run", 2)

    number = stop(process)
    output, _ = process.communicate(timeout=DEADLINE_S)

    done = records(tmp_path / "run")[-1]["step"]
    assert process.returncode == 128 + number
    assert f"rlkl train --resume {tmp_path / 'run'}" in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step_{done:06d}"]
