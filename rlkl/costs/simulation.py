"""Simulate a run step by step under each schedule: engines, learner, publishing and rewards. Nothing is loaded.

- ``alternate``: sample a batch, learn, publish, in turns.
- ``one_step_off``: sample batch b + 1 while the learner steps on batch b; both join; publish.
- ``stream``: see `rlkl.costs.stream`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from math import inf
from statistics import fmean
from typing import TypeVar

from rlkl.costs.engines import Engine, Group
from rlkl.costs.setting import ALTERNATE, ONE_STEP_OFF, STREAM, Setting, Simulated, SimulatedStep
from rlkl.costs.stream import Stream

T = TypeVar("T")


def simulate(setting: Setting, schedule: str, *, steps: int = 8) -> Simulated:
    """Simulate a schedule of `rlkl.costs.setting.SCHEDULES`: the steps of its warm-up, and ``steps`` after them."""
    warm_up = {ALTERNATE: 0, ONE_STEP_OFF: 2, STREAM: setting.max_staleness + 2}[schedule]
    makers = {ALTERNATE: _alternate, ONE_STEP_OFF: _one_step_off}
    done = Stream(setting).steps() if schedule == STREAM else makers[schedule](setting)
    return Simulated(schedule=schedule, steps=tuple(islice(done, steps + warm_up)), warm_up=warm_up)


def shared_out(work: Sequence[T], engines: int) -> list[Sequence[T]]:
    """Cut work, in order, into one nearly equal part for each engine, as rlkl does."""
    size, extra = divmod(len(work), engines)
    starts = [number * size + min(number, extra) for number in range(engines + 1)]
    return [work[start:end] for start, end in pairwise(starts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    trained: tuple[Group, ...]
    seconds: float
    """Seconds of sampling and scoring."""
    busy_s: float
    """Seconds in which an engine decodes, mean over engines."""
    decoded: int
    """Tokens, also of dropped groups."""


def _batches(setting: Setting) -> Iterator[_Batch]:
    """Sample batch after batch, each on idle engines."""
    draws = count()
    while True:
        kept: list[Group] = []
        seconds = busy = 0.0
        decoded = 0
        for _ in range(setting.max_rounds):
            groups = [Group(draw=next(draws), left=setting.simulated_samples) for _ in range(setting.groups)]
            engines = _sample(setting, groups)
            ends = [engine.now for engine in engines]
            seconds += max(ends) + setting.varied(setting.reward_s, 2, groups[0].draw)
            busy += fmean(ends)
            decoded += sum(engine.decoded for engine in engines)
            kept += [group for group in groups if not setting.rejects(group.draw)]
            if len(kept) >= setting.groups:
                break
        yield _Batch(trained=tuple(kept[: setting.groups]), seconds=seconds, busy_s=busy, decoded=decoded)


def _sample(setting: Setting, groups: Sequence[Group]) -> list[Engine]:
    """Decode groups to their end; return the engines, whose `Engine.now` is then the end of their last completion."""
    work = [completion for group in groups for completion in setting.completions(group)]
    engines = setting.start_engines()
    for engine, part in zip(engines, shared_out(work, len(engines)), strict=True):
        engine.put(part)
        while engine.next_end < inf:
            engine.advance(engine.next_end)
    return engines


def _alternate(setting: Setting) -> Iterator[SimulatedStep]:
    for step, batch in enumerate(_batches(setting)):
        yield _step(setting, step, batch, alone=(batch,), beside=None)


def _one_step_off(setting: Setting) -> Iterator[SimulatedStep]:
    batches = _batches(setting)
    batch = next(batches)
    for step, coming in enumerate(batches):
        yield _step(setting, step, batch, alone=() if step else (batch,), beside=coming)
        batch = coming


def _step(
    setting: Setting, step: int, batch: _Batch, *, alone: tuple[_Batch, ...], beside: _Batch | None
) -> SimulatedStep:
    """Return a step on ``batch``; the batches ``alone`` are sampled before the learner works, ``beside`` meanwhile."""
    learner_s, publish_s = setting.learning(batch.trained, step), setting.varied(setting.publish_s, 1, step)
    overlapped_s = max(learner_s, beside.seconds if beside is not None else 0.0)
    seconds = sum(one.seconds for one in alone) + overlapped_s + publish_s
    sampled = alone if beside is None else (*alone, beside)
    tokens = sum(group.tokens for group in batch.trained)
    # The publish waits for the sampling, so batches 0 and 1 are sampled by version 0, and a later batch b by b - 1.
    stale = int(beside is not None and step > 0 and tokens > 0)
    return SimulatedStep(
        seconds=seconds,
        learner_s=learner_s,
        publish_s=publish_s,
        learner_waited_s=max(seconds - learner_s - publish_s, 0.0),
        rollout_idle_s=max(seconds - sum(one.busy_s for one in sampled), 0.0),
        staleness_mean=float(stale),
        staleness_max=stale,
        tokens=tokens * setting.each,
        decoded=sum(one.decoded for one in sampled) * setting.each,
        draws=tuple(group.draw for group in batch.trained),
    )
