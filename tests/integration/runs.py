"""Short real runs for tests: a tiny model, the additions, a reward that random completions vary in."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import rlkl
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe
from rlkl.tracking.metrics.registry import without_timings

REPOSITORY = Path(__file__).parents[2]
STEPS = 5
DEADLINE_S = 600
"""For a run, or a part of it, on a busy machine: a hang alone takes longer."""


def digits(completion: str) -> float:
    """Share of digits among four characters."""
    return sum(character.isdigit() for character in completion[:4]) / 4


def make_recipe(run_dir: Path, model_path: Path, **sections: Any) -> Recipe:
    """A recipe of `STEPS` steps on vLLM; ``sections`` add to it or change it."""
    values: dict[str, Any] = {
        "run": {"dir": str(run_dir)},
        "steps": STEPS,
        "model": {"path": str(model_path)},
        "data": {"source": "task:arithmetic", "max_prompt_tokens": 16},
        "rewards": [{"function": "tests.integration.runs:digits"}],
        "rollout": {"prompts_per_step": 8, "samples_per_prompt": 4, "max_new_tokens": 8},
        "learner": {"lr": 1e-3, "track_reference_kl": True},
        "tracking": {"samples_every": 2},
        "checkpoint": {"every": 2},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(values.get(name), dict) else section
    return Recipe.model_validate(values)


def wait_for_steps(process: subprocess.Popen[str], run_dir: Path, steps: int) -> None:
    """Return once the run of `start_cli` has recorded so many steps; fails when it ends before."""
    end = time.monotonic() + DEADLINE_S
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end, f"no {steps} steps within {DEADLINE_S} s"
        time.sleep(0.01)


def hold_after_steps(process: subprocess.Popen[str], run_dir: Path, steps: int) -> None:
    """Stop the run's own process as in `wait_for_steps`: it cannot end while the test looks at it. SIGCONT goes on."""
    wait_for_steps(process, run_dir, steps)
    process.send_signal(signal.SIGSTOP)


def killed_and_resumed(recipe: Recipe, *, after: int, politely: bool = False) -> None:
    """Kill a run and all its processes after some steps, and let it go on to its end.

    ``politely``: ask it to stop, so that it saves a checkpoint.
    """
    assert recipe.run.dir is not None
    run_dir = Path(recipe.run.dir)
    path = run_dir.with_suffix(".yaml")
    path.write_text(dump_recipe(recipe))
    process = start_cli("train", str(path))
    try:
        wait_for_steps(process, run_dir, after)
    finally:
        if politely:
            process.send_signal(signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=DEADLINE_S)
    rlkl.train(recipe, resume_from=run_dir)


def learners_of(process: int) -> list[int]:
    """Return the ids of the learner's processes of a run, in order."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "LearnerWorker" in child.name():
                found.append(child.pid)
    return sorted(found)


def free_port() -> int:
    """Return a free port that nothing gets by chance: above those of Ray's workers, below those of the kernel."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def records(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    """The same without what a clock measured."""
    return [without_timings(record) for record in records(run_dir)]


def run_script(module: str, *arguments: str) -> None:
    """Run a module of the tests as a process of its own, and fail with its errors if it fails."""
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert child.returncode == 0, child.stderr


def start_cli(*arguments: str) -> subprocess.Popen[str]:
    """The command line in a process group of its own, as a terminal starts it; no service of this process is shared."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return subprocess.Popen(
        [sys.executable, "-m", "rlkl", *arguments],
        cwd=REPOSITORY,
        env={**inherited, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def recorded_stacks(run_dir: Path) -> Path:
    """Return the newest file of stacks that a run has kept."""
    return max((run_dir / "stacks").iterdir())
