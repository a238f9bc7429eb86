"""A tiny real sweep: killed, interrupted, gone on with, and compared. Real processes of `rlkl train`."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rlkl.analysis.compare import compare
from rlkl.analysis.compare_text import markdown
from tests.integration import runs
from tests.integration.runs import start_cli, wait_for_steps

STEPS = 30
SEEDS = (1, 2)
STILL_WORKS = "which still works on it"


def words(root: Path) -> list[str]:
    small = ["rollout.engine=hf", "rollout.prompts_per_step=8", "tracking.wandb=off", "checkpoint.every=5"]
    return [
        "sweep",
        "quickstart",
        "update.kl_coef=[0.1]",
        f"seeds={len(SEEDS)}",
        f"steps={STEPS}",
        f"dir={root}",
        *small,
    ]


def run_dir(root: Path, seed: int) -> Path:
    return root / "quickstart" / "kl_coef-0.1" / f"seed-{seed}"


def starts(root: Path, seed: int) -> list[str]:
    """The commands that were run for a seed."""
    log = run_dir(root, seed).with_name(f"seed-{seed}.log").read_text()
    return [line for line in log.splitlines() if line.startswith("$ rlkl ")]


@contextmanager
def sweeping(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep, one run at a time, that ends with the test."""
    process = start_cli(*words(root), "--jobs", "1")
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A sweep that was killed in its first run, interrupted in its second, and then finished; and what it printed."""
    root = tmp_path_factory.mktemp("sweep") / "tiny"
    with sweeping(root) as first:
        wait_for_steps(first, run_dir(root, 1), 1)
        (child,) = psutil.Process(first.pid).children()
        child.suspend()  # so that the next sweep meets it
        first.kill()  # its child goes on without it
    with sweeping(root) as second:
        assert second.stdout is not None
        interrupted = ""
        while STILL_WORKS not in interrupted and (line := second.stdout.readline()):
            interrupted += line
        child.resume()
        wait_for_steps(second, run_dir(root, 2), 6)
        second.send_signal(signal.SIGINT)
        interrupted += second.stdout.read()
        second.wait(runs.DEADLINE_S)
    assert second.returncode == 130, interrupted
    with sweeping(root) as third:
        finished = third.communicate(timeout=runs.DEADLINE_S)[0]
    assert third.returncode == 0, finished
    return root, [interrupted, finished]


def test_a_killed_sweep_runs_nothing_twice_and_loses_nothing(killed: tuple[Path, list[str]]) -> None:
    root, printed = killed
    assert STILL_WORKS in printed[0]
    assert len(starts(root, 1)) == 1, "the run of the killed sweep was left alone until it ended"
    *anew, last = starts(root, 2)
    assert "--resume" in last
    assert anew
    assert not any("--resume" in line for line in anew), "on a busy machine Ray may need a second start"
    for seed in SEEDS:
        records = [json.loads(line) for line in (run_dir(root, seed) / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == list(range(1, STEPS + 1))
        assert (run_dir(root, seed) / "policy").is_dir()


def test_an_interrupted_sweep_says_how_to_go_on(killed: tuple[Path, list[str]]) -> None:
    _, printed = killed
    assert "stopping: 1 run(s) finish their step and save" in printed[0]
    assert "the same command goes on" in printed[0]
    assert "all runs are done; now: rlkl compare" in printed[1]


def test_a_finished_sweep_starts_nothing(killed: tuple[Path, list[str]]) -> None:
    root, _ = killed
    before = {seed: starts(root, seed) for seed in SEEDS}
    with sweeping(root) as again:
        assert "0 runs to make" in again.communicate(timeout=runs.DEADLINE_S)[0]
    assert again.returncode == 0
    assert {seed: starts(root, seed) for seed in SEEDS} == before


def test_a_changed_plan_is_refused(killed: tuple[Path, list[str]]) -> None:
    root, _ = killed
    plan = (root / "plan.json").read_bytes()
    changed = start_cli(*words(root), "learner.lr=1e-3")
    text = changed.communicate(timeout=runs.DEADLINE_S)[0]
    assert changed.returncode == 2
    assert "arms[0].resolved.learner.lr=0.001 (was 0.0005)" in text
    assert (root / "plan.json").read_bytes() == plan


def test_its_table_is_made_anew_byte_for_byte(killed: tuple[Path, list[str]]) -> None:
    root, _ = killed
    command = start_cli("compare", str(root))
    text = command.communicate(timeout=runs.DEADLINE_S)[0]
    assert command.returncode == 0, text
    assert text == markdown(compare([root]))
    (summary,) = compare([root]).summaries
    for seed, value in zip(SEEDS, summary.entry.values, strict=True):
        lines = (run_dir(root, seed) / "metrics.jsonl").read_text().splitlines()[-10:]
        assert value == pytest.approx(sum(json.loads(line)["reward/mean"] for line in lines) / 10)
    assert " ".join(f"{value:.3f}" for value in summary.entry.values) in text


def test_a_failed_run_is_kept_and_counted_and_tried_once_more(tmp_path: Path) -> None:
    """Bad input that only training finds: the data file vanishes between two runs."""
    data = tmp_path / "rows.jsonl"
    row = {"prompt": "12+34=", "answer": "46"}
    data.write_text((json.dumps(row) + "\n") * 8)
    root = tmp_path / "failing"
    these = [*words(root), f"data.source={data}", "data.max_prompt_tokens=4", "steps=1", "seeds=1"]
    for retry, attempts in ((False, 1), (True, 2), (True, 2)):
        sweep = start_cli(*these, *(["--retry-failed"] if retry else []))
        text = sweep.communicate(timeout=runs.DEADLINE_S)[0]
        assert sweep.returncode == 1, text
        assert "1 run(s) failed and are counted" in text
        failure = json.loads((run_dir(root, 1).with_name("seed-1.failed.json")).read_text())
        assert failure["attempts"] == attempts
        assert failure["message"].startswith("error:")
