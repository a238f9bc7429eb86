"""Kill runs at random moments, resume them, and compare with undisturbed ones.

python -m tests.torture.torture [--kills 20] [--seed 1] [--folder build/torture] [--cases 'grpo;papo']
                                [--targets driver,raylet] [--set rollout.engine=hf] [--part 1/2]

Kills each target so many times, spread over the cases that have it. A run is killed up to four times. SIGKILL falls at
a random moment of a random step, or inside a publish or a checkpoint write; what was hit and in which phase the driver
was is printed. The run is resumed until it is done. Then no step may be recorded twice, in `metrics.jsonl` or in W&B,
and metrics, samples and weights must be those of the case's undisturbed run, by hash. The numbers of
`rollout.schedule: stream` depend on timing. There the prompts of each step must be the same, every publish verified,
and no token staler than allowed.

Prints a line a run and a table. The exit code is 1 if a run differs, or if a kill finds no process. ``--part`` makes
every other round, so that two processes can share the work.
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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
import pyarrow.parquet as pq

from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe
from rlkl.tracking.metrics.registry import without_timings
from tests.torture.driver import PHASE_FILE, phase_in
from tests.torture.planning import Kill, Round, only, plan_rounds, targets_of
from tests.torture.wandb_steps import recorded_steps

STEPS = 8
_DEADLINE_S = 900
_RESUMES = 4
_PAUSE_S = 0.01
_QUICK = (
    f"steps={STEPS}",
    "rollout.prompts_per_step=16",
    "rollout.samples_per_prompt=4",
    "checkpoint.every=1",
    "tracking.samples_every=1",
    "tracking.wandb=offline",
)
_REVIEWS = (*_QUICK, "rollout.samples_per_prompt=8", "rewards=[{function: task:reviews, mode: process}]")
_QUICKSTART = ("quickstart", *_QUICK, "rewards=[{function: task:arithmetic, mode: process}]")
_PAPO = ("shapes_papo", *_QUICK, "eval=null", "rewards=[{function: task:shapes, mode: process}]")
_AHEAD = "rollout.schedule=one_step_off"
CASES: dict[str, tuple[str, ...]] = {
    "grpo": (*_QUICKSTART, "rollout.workers=2"),
    "grpo, one_step_off": (*_QUICKSTART, _AHEAD),
    "grpo, stream": (*_QUICKSTART, "rollout.schedule=stream"),
    "grpo, 2 ranks": (*_QUICKSTART, "learner.ranks=2"),
    "grpo, 2 ranks, one_step_off": (*_QUICKSTART, "learner.ranks=2", _AHEAD),
    "ppo, adaptive KL": ("reviews_ppo", *_REVIEWS, "update.kl_target=0.5"),
    "ppo, adaptive KL, one_step_off": ("reviews_ppo", *_REVIEWS, "update.kl_target=0.5", _AHEAD),
    "superhf": ("reviews_superhf", *_REVIEWS),
    "superhf, one_step_off": ("reviews_superhf", *_REVIEWS, _AHEAD),
    "sparsepo": ("reviews_sparsepo", *_REVIEWS),
    "sparsepo, one_step_off": ("reviews_sparsepo", *_REVIEWS, _AHEAD),
    "sparsepo, stored pairs": ("reviews_dpo", *_QUICK[:2], *_QUICK[3:], "update.mask=sparse_common"),
    "papo": _PAPO,
    "papo, one_step_off": (*_PAPO, _AHEAD),
}
ONE_OF = ("learner", "one of two ranks", "rollout worker", "reward worker")
"""Targets of which one process is killed, if there are several."""
GO_ON = ("rollout worker", "reward worker")
"""Targets that a run replaces."""
TARGETS: dict[str, Callable[[psutil.Process], bool]] = {
    "driver": lambda process: "tests.torture.driver" in process.cmdline(),
    "learner": lambda process: "LearnerWorker" in process.name(),
    "one of two ranks": lambda process: "LearnerWorker" in process.name(),
    "rollout worker": lambda process: "RolloutWorker" in process.name(),
    "reward worker": lambda process: "rlkl.rewards.execution" in " ".join(process.cmdline()),
    "raylet": lambda process: process.name() == "raylet",
    "whole tree": lambda process: True,
}


def start(words: Sequence[str], log: Path, *, module: str = "rlkl", **variables: str) -> psutil.Popen:
    """Start `rlkl` with these words, in a session of its own; what it prints goes to ``log``."""
    with log.open("ab") as output:
        return psutil.Popen(
            [sys.executable, "-m", module, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment() | variables,
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    """Return the environment of a run: W&B's process is the run's own, so that killing all of them kills it too."""
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return own | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


class Run:
    """A run that is started, killed and resumed until it is done."""

    def __init__(self, words: Sequence[str], run_dir: Path, log: Path) -> None:
        """Start it. ``words``: those of the command without the folder. ``log``: keeps what is printed."""
        self._words, self._run_dir, self._log = words, run_dir, log
        self._phase = log.with_suffix(".phase")
        self.starts = 0
        self._begin()

    def _begin(self) -> None:
        resume = any((self._run_dir / "checkpoints").glob("step_*"))
        if not resume:
            shutil.rmtree(self._run_dir, ignore_errors=True)
        words = ["train", "--resume", str(self._run_dir)] if resume else [*self._words, f"run.dir={self._run_dir}"]
        self.starts += 1
        self._phase.unlink(missing_ok=True)
        variables = {PHASE_FILE: str(self._phase)}
        self._child = start(words, self._log, module="tests.torture.driver", **variables)

    def finish(self) -> None:
        """Resume it until it ends well."""
        starts = self.starts
        while self._child.wait(_DEADLINE_S) != 0:
            if self.starts - starts > _RESUMES:
                raise SystemExit(f"{self._run_dir} did not come to its end in {_RESUMES} resumes; see {self._log}")
            self._begin()

    def strike(self, kill: Kill, *, step_s: float) -> str | None:
        """Make one kill, and resume the run if it ends. ``step_s``: seconds of a step.

        Returns the phase and what was hit; None if the run ended before.
        """
        if self._child.poll() is not None:
            self._begin()
        while self._child.poll() is None and not self._is_due(kill):
            time.sleep(_PAUSE_S)
        if kill.phase is None:
            time.sleep(kill.share * step_s)
        found, phase = self._victims(kill), phase_in(self._phase)
        hit = [_kill(process) for process in reversed(found)]  # children first: a driver that dies takes them along
        if not any(hit):
            return None
        if kill.target not in GO_ON:
            self._child.wait(_DEADLINE_S)
        names = f"{sum(hit)} processes" if len(hit) > 1 else kill.target
        return f"{names} at step {_steps(self._run_dir)} ({phase})"

    def end(self) -> None:
        """Kill all its processes."""
        for process in reversed(_tree(self._child)):
            _kill(process)

    def _is_due(self, kill: Kill) -> bool:
        if _steps(self._run_dir) < kill.steps or not self._victims(kill):
            return False
        return kill.phase is None or _steps(self._run_dir) > kill.steps + 1 or phase_in(self._phase) == kill.phase

    def _victims(self, kill: Kill) -> list[psutil.Process]:
        found = [process for process in _tree(self._child) if _is(process, kill.target)]
        return [found[int(kill.share * len(found))]] if found and kill.target in ONE_OF else found


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
    if recipe.tracking.wandb != "off":
        found["W&B steps"] = str(recorded_steps(run_dir))
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
    """Return the facts and the seconds of a step of the case's undisturbed run, which is made once."""
    run_dir = folder / "undisturbed"
    if not (run_dir / "policy").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(run_dir, ignore_errors=True)
        Run(words, run_dir, folder / "undisturbed.log").finish()
    found = facts(run_dir, recipe)
    numbers = str(list(range(1, recipe.steps + 1)))
    whole = {"steps": numbers, "W&B steps": numbers, "unverified": "[]", "stale": "[]"}
    assert found == found | {name: value for name, value in whole.items() if name in found}, f"{run_dir}: {found}"
    seconds = [json.loads(line)["time/step_s"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return found, median(seconds)


@dataclass(slots=True)
class Tally:
    """The kills of one target."""

    hit: int = 0
    same: int = 0
    """Kills that hit, after which the run ended as an undisturbed one."""
    missed: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    """Phases of the driver in which it hit."""


def torture(plan: Round, words: Sequence[str], folder: Path, tallies: Mapping[str, Tally], *, seed: int) -> str:
    """Make the kills of one run, finish it and compare it; return a line about it.

    A run that is as it must be is removed.
    """
    recipe = load_recipe(*words[1:])
    expected, step_s = undisturbed(words, folder, recipe)
    run_dir, log = folder / f"round-{seed}-{plan.number}", folder / f"round-{seed}-{plan.number}.log"
    run, told = Run(words, run_dir, log), []
    try:
        for kill in plan.kills:
            hit = run.strike(kill, step_s=step_s)
            told.append(hit or f"{kill.target} missed")
        run.finish()
    finally:
        run.end()
    found = facts(run_dir, recipe)
    differing = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    for kill, hit in zip(plan.kills, told, strict=True):
        tally = tallies[kill.target]
        missed = hit.endswith("missed")
        tally.missed += missed
        tally.hit += not missed
        tally.same += not missed and not differing
        if not missed:
            tally.phases[hit.rpartition("(")[2].rstrip(")")] += 1
    line = f"{', '.join(told)}; {run.starts} starts"
    if differing:
        return f"{line}: {differing}"
    shutil.rmtree(run_dir)
    return f"{line}: the same {'prompts' if recipe.rollout.schedule == 'stream' else 'bits'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all kills and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/torture"))
    parser.add_argument("--cases", default=";".join(CASES), help="separated by semicolons")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for all cases")
    parser.add_argument("--part", default="1/1", help="which of how many parts of the cases")
    options = parser.parse_args(arguments)
    part, parts = (int(number) for number in options.part.split("/"))
    commands = {case: ["train", *CASES[case], *options.set] for case in options.cases.split(";")}
    tallies = {target: Tally() for target in options.targets.split(",")}
    possible = only(list(tallies), {case: targets_of(load_recipe(*words[1:])) for case, words in commands.items()})
    rounds = plan_rounds(options.kills, options.seed, possible, steps=STEPS)
    for plan in rounds:
        if list(commands).index(plan.case) % parts != part - 1:
            continue
        folder = options.folder.absolute() / plan.case.replace(",", "").replace(" ", "_")
        told = torture(plan, commands[plan.case], folder, tallies, seed=options.seed)
        sys.stdout.write(f"{plan.number}/{len(rounds)} {plan.case}: {told}\n")
        sys.stdout.flush()
    sys.stdout.write("\n| killed | as undisturbed | missed | phases of the driver |\n|---|---|---|---|\n")
    for target, tally in tallies.items():
        phases = ", ".join(f"{phase} {count}" for phase, count in tally.phases.most_common())
        sys.stdout.write(f"| {target} | {tally.same} of {tally.hit} | {tally.missed} | {phases} |\n")
    return int(any(tally.missed or tally.same < tally.hit for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
