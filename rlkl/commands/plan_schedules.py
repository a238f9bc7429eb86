"""Simulate the schedules of a plan, choose the fastest, and print them. Plain text of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rlkl.commands.plan_layout import Layout, Scene
from rlkl.costs.memory import peak_bytes
from rlkl.costs.setting import ALTERNATE, ONE_STEP_OFF, SCHEDULES, STREAM, Simulated
from rlkl.costs.simulation import simulate

_STEPS = 4
WIDTH = 98


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The schedules of one layout, simulated."""

    keys: str
    """Overrides that give this layout; empty for the recipe's own."""
    schedules: tuple[Simulated, ...]
    fits: bool = True
    """Whether learner and engines fit in their memory."""
    ranks: int = 0
    engine_gpus: int = 0
    gpus: int = 0

    @property
    def alternate(self) -> Simulated:
        return next(one for one in self.schedules if one.schedule == ALTERNATE)

    def idle(self, one: Simulated) -> float:
        """Return the share of the time of all GPUs in which no GPU learns or decodes."""
        learning = sum(step.learner_s for step in one.steady) / sum(step.seconds for step in one.steady)
        return max(1 - (self.ranks * learning + self.engine_gpus * (1 - one.rollout_idle)) / self.gpus, 0.0)


def forecast(scene: Scene, layout: Layout, keys: str) -> Forecast | None:
    """Simulate the schedules that a layout can have; None if nothing can be sampled."""
    if layout.engine is None or not layout.holds(scene.work.longest):
        return None
    rounds = scene.recipe.update.correction_rounds
    again_s = layout.seconds.rollout * rounds / (1 + rounds)  # sampling after corrections: only in turns
    setting = replace(
        scene.setting(layout.engine, layout.engines, layout.per_gpu),
        learner_s=layout.seconds.learner + again_s,
        publish_s=layout.seconds.publish,
    )
    able = (ALTERNATE,) if layout.takes_turns or rounds else SCHEDULES
    return Forecast(
        keys=keys,
        schedules=tuple(simulate(setting, schedule, steps=_STEPS) for schedule in able),
        fits=peak_bytes(layout.parts) <= layout.room
        and (layout.resting or 0.0) + (layout.engine.allowed if layout.in_turns else 0.0) <= scene.chip.gpu.bytes,
        ranks=layout.ranks,
        engine_gpus=layout.engine_gpus,
        gpus=layout.gpus,
    )


def table(forecasts: Sequence[Forecast], own: str, max_staleness: int) -> Iterator[str]:
    """Yield the table of all schedules, and the sentence on the fastest one.

    ``own``: the recipe's schedule. The column of idle GPUs is left out if there are none.
    """
    with_gpus = all(one.gpus for one in forecasts)
    yield (
        f"{'Schedules, simulated':<28}{'step':>12}{'learner waits':>15}{'workers idle':>14}"
        + (f"{'GPUs idle':>11}" if with_gpus else "")
        + f"{'staleness':>14}"
    )
    for one in forecasts:
        if len(forecasts) > 1:
            yield f"  {one.keys or 'the recipe'}"
        for done in one.schedules:
            name = f"stream, max_staleness {max_staleness}" if done.schedule == STREAM else done.schedule
            mark = "*" if done.schedule == own and not one.keys else " "
            yield (
                f"  {mark} {name:<24}{seconds_text(done.seconds):>12}{percent(done.learner_idle):>15}"
                f"{percent(done.rollout_idle):>14}"
                + (f"{percent(one.idle(done)):>11}" if with_gpus else "")
                + f"{_staleness(done):>14}"
            )
    yield "  * rollout.schedule of the recipe"
    yield ""
    yield from textwrap.wrap(_fastest(forecasts, own), WIDTH)


def _fastest(forecasts: Sequence[Forecast], own: str) -> str:
    """Name the fastest schedule of a layout that fits, against the recipe's own, and the age of its tokens.

    Of schedules that differ by less than 1 % the one with the youngest tokens is named.
    """
    candidates = [(one, done) for one in forecasts if one.fits for done in one.schedules]
    if not candidates:
        return "None of these fits, so none is the fastest."
    least = min(done.seconds for _, done in candidates)
    near = [(one, done) for one, done in candidates if done.seconds <= 1.01 * least]
    best, done = min(near, key=lambda pair: pair[1].staleness_mean)
    now = next((one for one in forecasts[0].schedules if one.schedule == own), forecasts[0].alternate)
    if done is now:
        return f"The recipe's own schedule, {own}, is the fastest; {_ages(done)}."
    keys = " ".join([*best.keys.split(), f"rollout.schedule={done.schedule}"])
    return (
        f"Fastest: {keys}, {seconds_text(done.seconds)} a step, {now.seconds / done.seconds:.1f} times as fast as the "
        f"recipe; {_ages(done)}."
    )


def _ages(done: Simulated) -> str:
    if done.schedule == ALTERNATE:
        return "no token is sampled by older weights than those that it trains"
    if done.schedule == ONE_STEP_OFF:
        return "each token is sampled by weights that are one version old"
    return (
        f"its tokens are sampled by weights that are {done.staleness_mean:.1f} versions old on average and "
        f"{done.staleness_max} at most"
    )


def _staleness(done: Simulated) -> str:
    return f"{done.staleness_mean:.1f}, max {done.staleness_max}"


def seconds_text(seconds: float) -> str:
    """Return seconds with as many digits as they deserve."""
    if seconds < 0.1:
        return f"{1000 * seconds:,.1f} ms"
    return f"{seconds:,.2f} s" if seconds < 1 else f"{seconds:,.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.0f} %"
