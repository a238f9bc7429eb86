"""Kill runs at random moments, resume them, and compare with undisturbed ones.

python -m tests.torture.torture [--kills 20] [--seed 1] [--folder build/torture] [--cases 'grpo;papo']
                                [--targets driver,raylet] [--set rollout.engine=hf]

A case is killed only in processes that it has. The run starts, SIGKILL falls at a random moment of it, and it is
resumed until it is done. Then no step may be recorded twice, and metrics, samples and weights must be those of the
case's undisturbed run, by hash. The numbers of `rollout.schedule: stream` depend on timing. There the prompts of each
step must be the same, every publish verified, and no token staler than allowed.

If the process is not there at that moment, the kill is made again at another one. If all tries hit nothing, it counts
as missed. Prints a line a kill and a table. The exit code is 1 if a run differs, or if all kills of a target missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe
from rlkl.tracking.metrics.registry import without_timings
from tests.torture.planning import Kill, only, plan_kills, targets_of

STEPS = 6
_DEADLINE_S = 900
_RESUMES = 4
_QUICK = (
    f"steps={STEPS}",
    "rollout.prompts_per_step=16",
    "rollout.samples_per_prompt=4",
    "checkpoint.every=1",
    "tracking.samples_every=1",
)
_REVIEWS = (*_QUICK, "rollout.samples_per_prompt=8")
CASES: dict[str, tuple[str, ...]] = {
    "grpo": ("quickstart", *_QUICK, "rollout.workers=2", "rewards=[{function: task:arithmetic, mode: process}]"),
    "grpo, 2 ranks": ("quickstart", *_QUICK, "learner.ranks=2"),
    "grpo, one_step_off": ("quickstart", *_QUICK, "rollout.schedule=one_step_off"),
    "grpo, stream": ("quickstart", *_QUICK, "rollout.schedule=stream"),
    "ppo, adaptive KL": ("reviews_ppo", *_REVIEWS, "update.kl_target=0.5"),
    "superhf": ("reviews_superhf", *_REVIEWS),
    "sparsepo": ("reviews_sparsepo", *_REVIEWS),
    "sparsepo, stored pairs": ("reviews_dpo", *_QUICK[:2], *_QUICK[3:], "update.mask=sparse_common"),
    "papo": ("shapes_papo", *_QUICK, "eval=null"),
}
TARGETS: dict[str, Callable[[psutil.Process], bool]] = {
    "driver": lambda process: "rlkl" in process.cmdline() and "train" in process.cmdline(),
    "learner": lambda process: "LearnerWorker" in process.name(),
    "rollout worker": lambda process: "RolloutWorker" in process.name(),
    "reward worker": lambda process: "rlkl.rewards.execution" in " ".join(process.cmdline()),
    "raylet": lambda process: process.name() == "raylet",
    "whole tree": lambda process: True,
}


def start(words: Sequence[str], log: Path) -> psutil.Popen:
    """Start `rlkl` with these words, in a session of its own; what it prints goes to ``log``."""
    with log.open("ab") as output:
        return psutil.Popen(
            [sys.executable, "-m", "rlkl", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"},
            start_new_session=True,
        )


def finish(words: Sequence[str], run_dir: Path, log: Path) -> int:
    """Run to the end, resuming as often as needed; return the number of starts."""
    for starts in range(1, _RESUMES + 1):
        resume = any((run_dir / "checkpoints").glob("step_*"))
        if not resume:
            shutil.rmtree(run_dir, ignore_errors=True)
        child = start(["train", "--resume", str(run_dir)] if resume else [*words, f"run.dir={run_dir}"], log)
        if child.wait(_DEADLINE_S) == 0:
            return starts
    raise SystemExit(f"{run_dir} did not come to its end in {_RESUMES} starts; see {log}")


def kill_once(words: Sequence[str], run_dir: Path, target: str, after_s: float, log: Path) -> str | None:
    """Start a run, kill ``target`` after so many seconds, and wait until the run has ended.

    Return what was hit. If nothing was, end the run and return None.
    """
    child = start([*words, f"run.dir={run_dir}"], log)
    end = time.monotonic() + after_s
    while time.monotonic() < end and child.poll() is None:
        time.sleep(0.02)
    if child.poll():
        raise SystemExit(f"{run_dir} failed before it was killed; see {log}")
    found = [process for process in _tree(child) if _is(process, target)]
    if target in ("learner", "rollout worker", "reward worker"):
        found = found[-1:]  # one of them
    hit = [_kill(process) for process in reversed(found)]  # children first: a driver that dies takes them along
    if not any(hit):
        for process in reversed(_tree(child)):
            _kill(process)
    code = child.wait(_DEADLINE_S)
    return f"{sum(hit)} process(es) after {_steps(run_dir)} steps; exit code {code}" if any(hit) else None


def strike(kill: Kill, words: Sequence[str], run_dir: Path, seconds: float, log: Path) -> str | None:
    """Start a run and kill its target, at the next moment if it is not there at one; return what was hit.

    ``seconds``: the time of an undisturbed run. None: it was there at none of the moments.
    """
    for share in kill.shares:
        shutil.rmtree(run_dir, ignore_errors=True)
        told = kill_once(words, run_dir, kill.target, share * seconds, log)
        if told is not None:
            return told
    return None


def _tree(child: psutil.Popen) -> list[psutil.Process]:
    try:
        root = psutil.Process(child.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is(process: psutil.Process, target: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and TARGETS[target](process)
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> bool:
    """Kill a process; return whether it was still there."""
    try:
        process.kill()
    except psutil.Error:
        return False
    return True


def _steps(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def facts(run_dir: Path, recipe: Recipe) -> dict[str, str]:
    """Return what must be equal in two runs of one recipe, by name."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = {"steps": str([record["step"] for record in records])}
    return found | (invariants if recipe.rollout.schedule == "stream" else hashes)(run_dir, records, recipe)


def hashes(run_dir: Path, records: Sequence[dict[str, float]], recipe: Recipe) -> dict[str, str]:
    """Hash the metrics of all steps without times, every sample, and the weights."""
    found = {"metrics": _hash(json.dumps([without_timings(record) for record in records], sort_keys=True).encode())}
    for path in sorted((run_dir / "samples").glob("step_*.parquet")):
        found[path.name] = _hash(json.dumps(pq.read_table(path).to_pylist(), default=str).encode())
    for path in sorted((run_dir / "policy").glob("*.safetensors")):
        found[path.name] = _hash(path.read_bytes())
    return found


def invariants(run_dir: Path, records: Sequence[dict[str, float]], recipe: Recipe) -> dict[str, str]:
    """Return what timing does not change: the prompts of each step, and that weights were verified and fresh enough."""
    found = {
        "unverified": str([record["step"] for record in records if record.get("weights/verified") != 1]),
        "stale": str([r["step"] for r in records if r["rollout/staleness_max"] > recipe.rollout.max_staleness]),
    }
    for path in sorted((run_dir / "samples").glob("step_*.parquet")):
        found[path.name] = str(sorted(pq.read_table(path)["prompt_id"].to_pylist()))
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def undisturbed(words: Sequence[str], folder: Path, recipe: Recipe) -> tuple[dict[str, str], float]:
    """Return the facts and the seconds of the case's undisturbed run, which is made once."""
    run_dir, stamp = folder / "undisturbed", folder / "seconds"
    if not stamp.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(run_dir, ignore_errors=True)
        before = time.monotonic()
        finish(words, run_dir, folder / "undisturbed.log")
        stamp.write_text(str(time.monotonic() - before))
    found = facts(run_dir, recipe)
    whole = {"steps": str(list(range(1, recipe.steps + 1))), "unverified": "[]", "stale": "[]"}
    assert found == found | {name: value for name, value in whole.items() if name in found}, f"{run_dir}: {found}"
    return found, float(stamp.read_text())


@dataclass(slots=True)
class Tally:
    """The kills of one target."""

    hit: int = 0
    same: int = 0
    """Kills that hit, after which the run ended as an undisturbed one."""
    missed: int = 0

    @property
    def is_good(self) -> bool:
        """Whether all runs ended as undisturbed ones, and not because every kill missed."""
        return self.same == self.hit and (self.hit > 0 or not self.missed)


def torture(kill: Kill, words: Sequence[str], folder: Path, tally: Tally, *, seed: int) -> str:
    """Make one kill, finish the run and compare it; return a line about it. A run that is as it must be is removed."""
    recipe = load_recipe(*words[1:])
    expected, seconds = undisturbed(words, folder, recipe)
    run_dir, log = folder / f"kill-{seed}-{kill.number}", folder / f"kill-{seed}-{kill.number}.log"
    told = strike(kill, words, run_dir, seconds, log)
    if told is None:
        tally.missed += 1
        shutil.rmtree(run_dir, ignore_errors=True)
        return f"missed at {len(kill.shares)} moments"
    starts = 0 if (run_dir / "policy").is_dir() else finish(words, run_dir, log)
    found = facts(run_dir, recipe)
    differing = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    tally.hit += 1
    tally.same += not differing
    told += f"; resumed {starts} times" if starts else "; went on by itself"
    if differing:
        return f"{told}: {differing}"
    shutil.rmtree(run_dir)
    return f"{told}: the same {'prompts' if recipe.rollout.schedule == 'stream' else 'bits'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all kills and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/torture"))
    parser.add_argument("--cases", default=";".join(CASES), help="separated by semicolons")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for all cases")
    options = parser.parse_args(arguments)
    commands = {case: ["train", *CASES[case], *options.set] for case in options.cases.split(";")}
    tallies = {target: Tally() for target in options.targets.split(",")}
    possible = {case: targets_of(load_recipe(*words[1:])) for case, words in commands.items()}
    for kill in plan_kills(options.kills, options.seed, only(list(tallies), possible)):
        folder = options.folder.absolute() / kill.case.replace(",", "").replace(" ", "_")
        told = torture(kill, commands[kill.case], folder, tallies[kill.target], seed=options.seed)
        sys.stdout.write(f"{kill.number}/{options.kills} {kill.case}: {kill.target}, {told}\n")
        sys.stdout.flush()
    sys.stdout.write("\n| killed | as undisturbed | missed |\n|---|---|---|\n")
    for target, tally in tallies.items():
        sys.stdout.write(f"| {target} | {tally.same} of {tally.hit} | {tally.missed} |\n")
    return int(not all(tally.is_good for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
