"""Print the plan for a cluster: bars of what fills each GPU, seconds, the balanced split. Plain text of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.console import Console

from rlkl.commands.plan_cluster import ClusterPlan, keys_of
from rlkl.commands.plan_layout import Layout
from rlkl.commands.plan_schedules import WIDTH, Forecast, seconds_text, table
from rlkl.costs.gpus import GPUS_PER_NODE
from rlkl.costs.lengths import SPREAD
from rlkl.costs.memory import GIB, EngineMemory, Part, peak_bytes
from rlkl.costs.seconds import BANDWIDTH_SHARE, LEARNER_SHARE

_BAR = 24
_NAME = 22
_UNITS = ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def show(plan: ClusterPlan, console: Console | None = None) -> None:
    """Print the plan."""
    out = console or Console(markup=False, highlight=False)
    for line in lines(plan):
        out.print(line, soft_wrap=True)


def lines(plan: ClusterPlan) -> Iterator[str]:
    """Yield the lines of the plan."""
    yield from _head(plan)
    yield from _layout(plan, plan.today, "The recipe runs")
    if plan.sharded is not None:
        yield from _layout(plan, plan.sharded, f"Balanced ({keys_of(plan.recipe, plan.sharded)}) would be")
    yield from _seconds(plan)
    if plan.forecasts:
        yield ""
        yield from table(plan.forecasts, plan.recipe.rollout.schedule, plan.recipe.rollout.max_staleness)
    yield from _assumptions(plan)
    yield ""
    yield f"Warnings: {len(plan.warnings) or 'none'}"
    for warning in plan.warnings:
        yield from _item(f"{warning}.")


def _head(plan: ClusterPlan) -> Iterator[str]:
    gpu, dtype = plan.gpu, plan.recipe.model.dtype
    machines = -(-plan.gpus // GPUS_PER_NODE)
    yield (
        f"{plan.recipe.run.name} on {plan.gpus} x {gpu.name} ({gpu.gib:.1f} GiB, {gpu.peak(dtype) / 1e12:,.0f} TFLOP/s "
        f"in {dtype}, {gpu.bandwidth / 1e12:.2f} TB/s)" + (f", {machines} machines" if machines > 1 else "")
    )
    yield f"{plan.recipe.model.path}: {_count(plan.shape.parameters)} parameters, by {plan.source}"
    yield "Estimated from the recipe and the shape of the model. Nothing was loaded or started."


def _count(parameters: int) -> str:
    if parameters >= 1e8:
        return f"{parameters / 1e9:.2f} billion"
    return f"{parameters / 1e6:.2f} million" if parameters >= 1e5 else f"{parameters:,}"


def _layout(plan: ClusterPlan, layout: Layout, title: str) -> Iterator[str]:
    yield ""
    yield from textwrap.wrap(f"{title} {_described(layout)}.", WIDTH)
    yield ""
    if layout is not plan.today and layout.parts == plan.today.parts and layout.engine == plan.today.engine:
        yield "Memory is as above."
        return
    needed, room = peak_bytes(layout.parts), layout.room
    each = "The learner" if layout.ranks == 1 else f"Each of {layout.ranks} learner GPUs"
    yield _title(each, needed, room, plan.gpu.bytes)
    yield from _bars(layout.parts, max(room, needed), room)
    if layout.resting is not None:
        yield f"  While engines sample there, {layout.resting / GIB:.1f} GiB of it stay."
    if layout.engine is not None and (layout is plan.today or layout.engine != plan.today.engine):
        engine = layout.engine
        allowed, least = engine.allowed, engine.weights + engine.graphs
        whole = "" if layout.tensor_parallel == 1 else f", on each of its {layout.tensor_parallel} GPUs"
        verdict = "fits" if _holds_one(plan, engine) else f"DOES NOT FIT: needs more than {least / GIB:.1f}"
        yield ""
        yield f"A rollout worker may take {allowed / GIB:.1f} of {plan.gpu.gib:.1f} GiB{whole}: {verdict}"
        yield from _bars(_engine_parts(engine), max(allowed, engine.weights + engine.graphs), allowed)
        yield from _cache(plan, engine)


def _described(layout: Layout) -> str:
    workers = f"{layout.engines} rollout worker{'s' if layout.engines != 1 else ''}"
    if layout.shares_a_gpu:
        return f"one learner process and {workers} on {_gpus(layout.engine_gpus)}, in turns"
    size = (
        f" of {layout.tensor_parallel} GPUs{' each' if layout.engines > 1 else ''}"
        if layout.tensor_parallel > 1
        else ""
    )
    learner = "one learner process on 1 GPU" if layout.ranks == 1 else f"the learner sharded over {layout.ranks} GPUs"
    if not layout.engines:
        return f"{learner}, and no rollout worker"
    if layout.in_turns:
        idle = layout.gpus - layout.used
        rest = f"; {idle} stay{'s' if idle == 1 else ''} idle" if idle else ""
        return f"{learner} and {workers}{size} on {_gpus(layout.engine_gpus)} of it, in turns{rest}"
    rewards = f", rewards on {_gpus(layout.rewards)}" if layout.rewards else ""
    idle = layout.gpus - layout.used
    rest = f"; {idle} stay{'s' if idle == 1 else ''} idle" if idle else ""
    return f"{learner} and {workers}{size} on {_gpus(layout.engine_gpus)}{rewards}{rest}"


def _gpus(count: int) -> str:
    return f"{count} GPU" + ("s" if count != 1 else "")


def _title(who: str, needed: float, room: float, whole: float) -> str:
    verdict = "fits" if needed <= room else "DOES NOT FIT"
    part = "" if room > 0.999 * whole else f" (its part of {whole / GIB:.0f} GiB)"
    return f"{who}: {needed / GIB:.1f} of {room / GIB:.1f} GiB{part}, {verdict}"


def _engine_parts(engine: EngineMemory) -> tuple[Part, ...]:
    return (
        Part(name="weights", bytes=engine.weights, keys="model.path, model.dtype"),
        Part(name="CUDA graphs", bytes=engine.graphs, keys="fixed"),
        Part(name="key-value cache", bytes=max(engine.cache, 0.0), keys="rollout.vllm.memory_fraction"),
    )


def _bars(parts: Sequence[Part], scale: float, room: float) -> Iterator[str]:
    """Draw each part where the one before ends; ``|`` marks the end of the memory if more is needed."""
    end = 0.0
    limit = round(_BAR * room / scale) if room < scale * 0.999 else None
    for part in parts:
        start, end = end, end + part.bytes
        first = round(_BAR * start / scale)
        last = max(round(_BAR * end / scale), first + 1)
        cells = [("#" if first <= place < last else ".") for place in range(_BAR)]
        if limit is not None and limit < _BAR:
            cells[limit] = "|" if cells[limit] == "." else "#"
        yield f"  {part.name:<{_NAME}} {''.join(cells)} {_size(part.bytes):>11}  {part.keys}".rstrip()


def _size(count: float) -> str:
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if count >= scale / 10), _UNITS[-1])
    return f"{count / scale:.1f} {unit}"


def _cache(plan: ClusterPlan, engine: EngineMemory) -> Iterator[str]:
    sequences = engine.sequences(plan.work.longest)
    yield from textwrap.wrap(
        f"The cache holds {_tokens(engine.tokens)} tokens of {engine.token / 1024:.0f} KiB: {sequences:,.0f} sequences "
        f"of the longest length ({plan.work.longest:,}), {engine.sequences(plan.work.length):,.0f} of the mean length.",
        WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
    )


def _tokens(count: float) -> str:
    return f"{count / 1e6:.2f} million" if count >= 1e5 else f"{count:,.0f}"


def _seconds(plan: ClusterPlan) -> Iterator[str]:
    layouts = [plan.today, *([plan.sharded] if plan.sharded is not None else [])]
    yield ""
    yield f"{'Seconds of a step':<46}{'the recipe':>16}" + (f"{'balanced':>20}" if len(layouts) > 1 else "")
    columns = [_cells(layout, plan.forecast_of(layout)) for layout in layouts]
    for name, *cells in zip(_ROWS, *columns, strict=True):
        yield f"  {name:<44}" + "".join(f"{cell:>{(16, 20)[place]}}" for place, cell in enumerate(cells))


_ROWS = ("GPUs of the learner + of the workers", "sampling", "learner", "publishing the weights (weights.transport)")


def _cells(layout: Layout, simulated: Forecast | None) -> tuple[str, ...]:
    """Return the column of a layout. Without an engine that fits there is no time of sampling."""
    seconds, sampling = layout.seconds, "-"
    if simulated is not None:
        sampling = seconds_text(fmean(step.learner_waited_s for step in simulated.alternate.steps))
    return (
        _split(layout),
        sampling,
        seconds_text(seconds.learner),
        f"{seconds_text(seconds.publish)} ({layout.transport})" if layout.engine is not None else "-",
    )


def _holds_one(plan: ClusterPlan, engine: EngineMemory) -> bool:
    """Return whether the engine's cache holds one sequence of the longest length."""
    return engine.tokens >= plan.work.longest


def _split(layout: Layout) -> str:
    if layout.in_turns:
        return f"{layout.ranks}, in turns"
    return "1, shared" if layout.shares_a_gpu else f"{layout.ranks} + {layout.engine_gpus}"


def _assumptions(plan: ClusterPlan) -> Iterator[str]:
    work = plan.work
    yield ""
    yield "Assumed"
    yield from _item(
        f"{work.sequences:,} sequences of {work.prompt:,.0f} + {work.completion:,.0f} tokens on average, "
        f"{work.trained:,} of them trained on (--prompt-tokens, --completion-tokens change the means)."
    )
    yield from _item(
        f"The learner reaches {100 * LEARNER_SHARE:.0f} % of the peak without padding, decoding "
        f"{100 * BANDWIDTH_SHARE:.0f} % of the memory bandwidth. Rewards and pictures cost no time."
    )
    yield from _item(
        f"Lengths are lognormal, with a spread of {SPREAD:g}, and cut off at rollout.max_new_tokens. No group is "
        "dropped."
    )


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")
