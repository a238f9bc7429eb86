"""Read from the folder of a run how long its parts took, for the simulation (``rlkl plan RECIPE --measured DIR``)."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import pyarrow.parquet as pq
from rich.console import Console

from rlkl.commands.plan_schedules import WIDTH, Forecast, seconds_text, table
from rlkl.costs.engines import LinearLaw
from rlkl.costs.fit import SampledBatch, fit_iterations, fit_linear
from rlkl.costs.lengths import Recorded
from rlkl.costs.setting import ALTERNATE, SCHEDULES, Setting
from rlkl.costs.simulation import shared_out, simulate
from rlkl.errors import InputError
from rlkl.recipe import Recipe, RolloutSection
from rlkl.recipe.io import load_recipe, read_values
from rlkl.recipe.run_dir import METRICS_FILE, RECIPE_FILE, recipe_path
from rlkl.tracking.records.reading import read_metrics, sample_files
from rlkl.updates.base_settings import most_kept

T = TypeVar("T")
STEPS = 30
"""Simulated steps of each schedule."""
WARM_UP = 2
"""First steps of a run that are left out: engines and allocators warm up."""
USUAL_SEQUENCES = 256
"""Sequences that vLLM decodes together, unless ``rollout.vllm.max_num_seqs`` sets another limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of the parts of an alternating run, and the lengths of its completions."""

    run_dir: Path
    steps: int
    """Steps that were measured."""
    workers: int
    lengths: Recorded
    iteration: LinearLaw
    """Seconds of an engine's iteration: fixed, and for each running sequence."""
    learner: LinearLaw
    """Seconds of the learner: fixed, and for each completion token."""
    publish_s: float
    reward_s: float
    other_s: float
    """Seconds of a step in none of its parts."""
    step_s: float
    selected: float
    """Share of the rollouts that were trained on."""

    def setting(self, recipe: Recipe) -> Setting:
        """Return what would be simulated for a recipe on this machine."""
        rollout = recipe.rollout
        takes_all = most_kept(recipe.update.filter, rollout.samples_per_prompt) == rollout.samples_per_prompt
        return Setting(
            groups=rollout.prompts_per_step,
            samples=rollout.samples_per_prompt,
            lengths=self.lengths,
            engines=rollout.workers,
            slots=slots_of(rollout),
            law=self.iteration,
            learner_s=self.learner.fixed,
            learner_token_s=self.learner.each,
            publish_s=self.publish_s + self.other_s,
            reward_s=self.reward_s,
            rejection=1 - self.selected if takes_all and self.selected > 0 else 0.0,
            max_rounds=rollout.max_rounds,
            max_staleness=rollout.max_staleness,
            seed=recipe.seed,
        )


def run(options: Namespace) -> int:
    """Print how long a step of a recipe would be under each schedule, from the measured parts of a run; return 0."""
    recipe = load_recipe(options.recipe, *options.overrides)
    if recipe.data.has_pairs or not recipe.rollout.workers:
        raise InputError(
            f"--measured {options.measured}: the recipe samples nothing, so no schedule differs; leave it out"
        )
    console = Console(markup=False, highlight=False)
    for line in lines(recipe, read_run(Path(options.measured))):
        console.print(line, soft_wrap=True)
    return 0


def lines(recipe: Recipe, measured: Measured) -> Iterator[str]:
    """Yield the measured parts, the simulated schedules, and the differences that they leave out."""
    setting, law, learner = measured.setting(recipe), measured.iteration, measured.learner
    able = (ALTERNATE,) if recipe.rollout.placement == "colocated" else SCHEDULES
    forecast = Forecast(keys="", schedules=tuple(simulate(setting, schedule, steps=STEPS) for schedule in able))
    yield f"{recipe.run.name}, from {measured.steps} steps of {measured.run_dir}"
    yield ""
    yield f"Measured: {seconds_text(measured.step_s)} a step"
    for name, text in (
        ("an engine's iteration", f"{_ms(law.fixed)} + {_ms(law.each)} for each sequence"),
        ("the learner", f"{seconds_text(learner.fixed)} + {_ms(learner.each)} for each completion token"),
        ("scores after the last token", seconds_text(measured.reward_s)),
        ("publishing, and the rest", seconds_text(measured.publish_s + measured.other_s)),
    ):
        yield f"  {name:<30}{text}"
    yield ""
    yield from table([forecast], recipe.rollout.schedule, recipe.rollout.max_staleness)
    if recipe.rollout.workers != measured.workers:
        yield ""
        yield from textwrap.wrap(
            f"rollout.workers = {recipe.rollout.workers}, and {measured.workers} in the measured run: on one machine "
            "more workers share its cores, which this does not know.",
            WIDTH,
        )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def slots_of(rollout: RolloutSection) -> int:
    """Return the sequences that an engine decodes together, if its cache holds them."""
    return int(rollout.vllm.arguments.get("max_num_seqs") or USUAL_SEQUENCES)


def read_run(run_dir: Path) -> Measured:
    """Read the steps of a run after the first ones.

    Raises `InputError` if the folder has no finished steps, no samples of them, or is of another schedule.
    """
    if not (run_dir / RECIPE_FILE).is_file():
        raise InputError(
            f"--measured {run_dir}: no {RECIPE_FILE} there; expected the folder of a run, such as runs/NAME"
        )
    values, _ = read_values(recipe_path(run_dir))
    rollout = RolloutSection.model_validate(values.get("rollout") or {})
    if rollout.schedule != ALTERNATE or not rollout.workers:
        raise InputError(
            f"--measured {run_dir}: rollout.schedule = {rollout.schedule} and rollout.workers = {rollout.workers} "
            "there; the parts of a step can be measured only while they take turns. Run some steps with "
            "rollout.schedule=alternate"
        )
    records = {int(record["step"]): record for record in read_metrics(run_dir / METRICS_FILE)[WARM_UP:]}
    groups = {step: _groups(path, rollout) for step, path in sample_files(run_dir) if step in records}
    if not groups:
        raise InputError(
            f"--measured {run_dir}: no sample file of a step after step {WARM_UP}; expected some. Run "
            f"{WARM_UP + 3} steps or more with tracking.samples_every=1"
        )
    rows = [*records.values()]
    sampled = rollout.prompts_per_step * rollout.samples_per_prompt
    tokens = [row["rollout/length_mean"] * row.get("rollout/rounds", 1.0) * sampled for row in rows]
    return Measured(
        run_dir=run_dir,
        steps=len(rows),
        workers=rollout.workers,
        lengths=Recorded(groups=[*chain.from_iterable(groups.values())]),
        iteration=fit_iterations(
            [_batch(groups[step], records[step], rollout) for step in groups], slots=slots_of(rollout)
        ),
        learner=fit_linear([(1.0, count) for count in tokens], [max(row["time/learner_s"], 1e-6) for row in rows]),
        publish_s=_mean(rows, "time/publish_s"),
        reward_s=_mean(rows, "time/reward_s"),
        other_s=fmean(_other(row) for row in rows),
        step_s=_mean(rows, "time/step_s"),
        # With several rounds a step may have sampled more accepted groups than it trained on.
        selected=_mean([row for row in rows if row.get("rollout/rounds") == 1] or rows, "update/selected_fraction"),
    )


def _groups(path: Path, rollout: RolloutSection) -> list[Sequence[int]]:
    """Return the lengths of each group's completions, in the order in which they were drawn."""
    column: Any = pq.read_table(path, columns=["completion_ids"]).column("completion_ids")
    lengths = [len(ids) for ids in column.to_pylist()]
    return _cut(lengths, rollout.samples_per_prompt)


def _batch(groups: Sequence[Sequence[int]], record: Mapping[str, float], rollout: RolloutSection) -> SampledBatch:
    """Deal the completions of a step to the workers, round by round, as the run did."""
    rounds = [
        shared_out([*chain.from_iterable(drawn)], rollout.workers) for drawn in _cut(groups, rollout.prompts_per_step)
    ]
    return SampledBatch(rounds=rounds, seconds=record["time/rollout_s"])


def _cut(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _mean(rows: Sequence[Mapping[str, float]], key: str) -> float:
    return fmean(row.get(key, 0.0) for row in rows)


def _other(row: Mapping[str, float]) -> float:
    parts = sum(row[f"time/{part}_s"] for part in ("rollout", "reward", "learner", "publish"))
    return max(row["time/step_s"] - parts, 0.0)
