"""Rewards that hang and crash beside real generation, and rewards in Ray actors."""

from __future__ import annotations

import json
import stat
import threading
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

import rlkl
from rlkl.actors.rewards import ray_for_rewards
from rlkl.errors import CheckpointError, RewardError
from rlkl.rewards import load_rewards
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.function.result import Failure
from tests.integration.runs import STEPS, digits, make_recipe, records, untimed

REWARDS = '''
import ctypes, os, time

def is_bad(completion):
    """Of an untrained model's completions about one in six."""
    return sum(map(ord, completion)) % 6 == 0

def digits(completion):
    return sum(character.isdigit() for character in completion[:4]) / 4

def hangs_on_some(completion):
    if is_bad(completion):
        while True:
            pass
    return digits(completion)

def crashes_on_some(completion):
    if is_bad(completion):
        ctypes.string_at(0)
    return digits(completion)

class Held:
    def setup(self):
        self.process = os.getpid()
    def __call__(self, completion):
        if is_bad(completion):
            os._exit(1)
        return {"digits": digits(completion), "here": float(self.process == os.getpid())}
'''


def is_bad(completion: str) -> bool:
    return sum(map(ord, completion)) % 6 == 0


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own_rewards.py"
    path.write_text(REWARDS)
    return str(path)


def test_a_reward_that_hangs_on_some_samples_costs_those_and_no_others(file: str, untied_model: Path, tmp_path: Path):
    hangs = {"function": f"{file}:hangs_on_some", "mode": "process", "workers": 2, "timeout_s": 5.0, "memory_mb": 500}
    hangs |= {"on_error": "drop_sample", "max_failed_fraction": 0.9}
    watched = {"function": f"{file}:digits", "role": "monitor", "mode": "thread"}
    recipe = make_recipe(
        tmp_path / "run", untied_model, rewards=[hangs, watched], steps=2, tracking={"samples_every": 1}
    )
    result = rlkl.train(recipe)

    assert result.status == "done"
    for step, line in enumerate(records(result.run_dir), start=1):
        rows = pq.read_table(result.run_dir / "samples" / f"step_{step:06d}.parquet").to_pylist()
        bad = [row for row in rows if is_bad(row["completion"])]
        assert bad
        for row in rows:
            assert row["reward"] == (None if row in bad else digits(row["completion"]))
            assert row["monitor/digits"] == digits(row["completion"])
        failures = (result.run_dir / "failures" / f"step_{step:06d}.jsonl").read_text().splitlines()
        kept = [json.loads(failure) for failure in failures]
        assert sorted(failure["completion"] for failure in kept) == sorted(row["completion"] for row in bad)
        assert {failure["kind"] for failure in kept} == {"timeout"}
        assert all("hangs_on_some" in failure["traceback"] for failure in kept)
        assert line["reward/failed"] == line["reward/dropped"] == len(bad)
        assert line["weights/verified"] == 1
        assert line["optim/grad_norm"] > 0


def test_scores_in_processes_and_their_cache_change_no_number(file: str, untied_model: Path, tmp_path: Path):
    """Inline against a process with a cache, and against a resume that finds the scores of the steps it does again."""
    runs = {}
    for mode in ("inline", "process"):
        section = {"function": f"{file}:digits", "mode": mode, "cache": mode == "process"}
        recipe = make_recipe(tmp_path / mode, untied_model, rewards=[section], rollout={"engine": "hf"})
        runs[mode] = rlkl.train(recipe).run_dir
    assert untimed(runs["process"]) == untimed(runs["inline"])
    assert (runs["process"] / "reward_cache" / "digits.jsonl").read_text()

    last = runs["process"] / "checkpoints" / f"step_{STEPS:06d}"
    last.rename(tmp_path / "aside")
    before = (runs["process"] / "reward_cache" / "digits.jsonl").read_text()
    Path(file).write_text(REWARDS + "\n# changed\n")
    again = rlkl.load_recipe(runs["process"] / "recipe.yaml")
    with pytest.raises(CheckpointError, match=r"'digits' is changed.*--allow-changed-rewards"):
        rlkl.train(again, resume_from=runs["process"])
    Path(file).write_text(REWARDS)
    rlkl.train(again, resume_from=runs["process"])
    assert untimed(runs["process"]) == untimed(runs["inline"])
    assert (runs["process"] / "reward_cache" / "digits.jsonl").read_text() == before


def test_too_many_crashes_stop_the_run_with_the_finished_steps_saved(file: str, untied_model: Path, tmp_path: Path):
    crashes = {"function": f"{file}:crashes_on_some", "mode": "process", "on_error": "group_mean"}
    recipe = make_recipe(
        tmp_path / "run", untied_model, rewards=[crashes | {"max_failed_fraction": 0.0}], rollout={"engine": "hf"}
    )
    with pytest.raises(
        RewardError,
        match=r"'crashes_on_some' failed on \d+ of 32 samples.* \(crashed .*step_000001.jsonl",
    ):
        rlkl.train(recipe)
    assert "SIGSEGV" in (tmp_path / "run" / "failures" / "step_000001.jsonl").read_text()


def test_a_reward_in_ray_actors(file: str, untied_model: Path, tmp_path: Path):
    held = {"function": f"{file}:Held", "mode": "actor", "workers": 2, "cpus": 0.5, "on_error": "drop_group"}
    recipe = make_recipe(
        tmp_path / "run",
        untied_model,
        rewards=[held | {"max_failed_fraction": 0.5}],
        rollout={"engine": "hf"},
        steps=1,
        tracking={"samples_every": 1},
    )
    line = records(rlkl.train(recipe).run_dir)[0]

    assert line["reward/Held/here"] == 1.0
    assert 0 < line["reward/failed"] < line["reward/dropped"]
    rows = pq.read_table(tmp_path / "run" / "samples" / "step_000001.parquet").to_pylist()
    lost = {row["prompt_id"] for row in rows if is_bad(row["completion"])}
    assert lost
    for row in rows:
        expected = None if row["prompt_id"] in lost else digits(row["completion"]) + 1.0
        assert row["reward"] == expected


ONCE = '''
import os, pathlib
class Once:
    """Its first setup succeeds, all others fail."""
    def __init__(self, *, folder):
        self.folder = pathlib.Path(folder)
    def setup(self):
        (self.folder / f"setup_{os.getpid()}").touch()
        if len(list(self.folder.glob("setup_*"))) > 1:
            raise OSError("no room left")
    def __call__(self, completion):
        if completion == "exit":
            os._exit(3)
        if os.environ["CUDA_VISIBLE_DEVICES"] != "":
            raise RuntimeError("sees GPUs that it has not reserved")
        return 1.0
'''


def test_an_actor_outlives_calls_that_cannot_travel_and_is_given_up_once_it_does_not_come_back(
    untied_model: Path, tmp_path: Path
):
    path, folder = tmp_path / "own.py", tmp_path / "setups"
    path.write_text(ONCE)
    folder.mkdir()
    section = {"function": f"{path}:Once", "mode": "actor", "settings": {"folder": str(folder)}}
    recipe = make_recipe(tmp_path / "run", untied_model, rewards=[section])
    with ray_for_rewards(recipe) as make_worker, closing(load_rewards(recipe.rewards)) as rewards:
        rewards.start_actors(make_worker, timeout_s=240.0)
        pool = rewards.pool_of("Once")
        socket = Path(ray.nodes()[0]["ObjectStoreSocketName"])
        assert stat.S_IMODE(socket.parents[3].stat().st_mode) == 0o700  # other users cannot reach it

        def failure(argument: object) -> Failure | None:
            call = Call(unit="sample", arguments={"completion": argument}, tokens=(1,))
            return pool.submit(call).result(timeout=240).failure

        assert failure("a") is None
        stuck = failure(threading.Lock())
        assert stuck is not None
        assert stuck.kind == "raised"
        assert failure("a") is None
        assert len(list(folder.iterdir())) == 1  # it is the same actor

        crash = failure("exit")
        assert crash is not None
        assert crash.kind == "crashed"
        assert [one.detail for _ in range(3) if (one := failure("a"))] == ["no room left"] * 3
        assert len(list(folder.iterdir())) == 2  # one try, not one a call
