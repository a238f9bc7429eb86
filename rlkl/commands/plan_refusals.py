"""Reasons why a run does not fit on its GPUs, the changes that make it fit, and warnings about its layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlkl.commands.plan_layout import USEFUL_SEQUENCES, Layout, Scene, least_ranks, parts_of
from rlkl.costs.gpus import GPUS, GPUS_PER_NODE, NETWORK
from rlkl.costs.memory import GIB, Training, moment_bytes, peak_bytes
from rlkl.costs.seconds import least_micro_batch

_TRIED_RANK = 64
"""Rank of the adapters that a refusal proposes."""
_MOST_RANKS = 64
"""Ranks that a refusal proposes at most."""


def refusals(scene: Scene, today: Layout) -> Iterator[str]:
    """Yield why the run cannot start on these GPUs, and which change would make it fit."""
    needed = peak_bytes(today.parts)
    if needed > today.room:
        beside = " beside the rollout workers on its GPU" if today.shares_a_gpu else ""
        beside = " beside an engine that sleeps" if today.in_turns else beside
        yield (
            f"the learner needs {needed / GIB:.0f} of {today.room / GIB:.0f} GiB{beside}. "
            + _sentence([*_remedies(scene, today), *_more_ranks(scene, today)])
        )
    yield from _too_much_at_rest(scene, today)
    engine = today.engine
    if engine is not None and engine.tokens < scene.work.longest:
        wanted = (engine.weights + engine.graphs + scene.work.longest * engine.token / engine.tensor_parallel) / GIB
        allowed = engine.allowed / GIB
        yield (
            f"A rollout worker needs {wanted:.0f} of {allowed:.0f} GiB (rollout.vllm.memory_fraction) for its weights "
            f"and one sequence of {scene.work.longest} tokens. Take GPUs with more memory, fewer rollout.workers for "
            "each GPU, or a smaller model.path."
        )


def _too_much_at_rest(scene: Scene, today: Layout) -> Iterator[str]:
    """Yield why the engines cannot wake: their part of the memory and the resting learner exceed a GPU."""
    engine, whole = today.engine, scene.chip.gpu.bytes
    if today.resting is None or engine is None:
        return
    taken = engine.allowed
    if today.resting + taken > whole:
        most = int(100 * (1 - today.resting / whole)) / 100
        lower = f"rollout.vllm.memory_fraction={most:g} or less, " if most > 0 else ""
        yield (
            f"while it samples, a rollout worker takes {taken / GIB:.0f} of {whole / GIB:.0f} GiB, and the resting "
            f"learner keeps {today.resting / GIB:.0f} GiB there (rollout.placement = colocated). Set {lower}"
            "learner.offload=optimizer, or raise learner.ranks."
        )


def _sentence(remedies: list[str]) -> str:
    if not remedies:
        return "No single change of the recipe, and no GPU of the table, makes it fit."
    return "Each of these makes it fit: " + "; ".join(remedies) + "."


def _remedies(scene: Scene, today: Layout) -> Iterator[str]:
    """Yield single changes after which the learner fits, computed, with their keys."""
    recipe, run = scene.recipe, scene.run
    longest = scene.work.longest
    changes: list[tuple[str, Training]] = []
    if not run.is_checkpointed:
        changes.append(("model.gradient_checkpointing=true", replace(run, is_checkpointed=True)))
    if not run.is_bfloat16:
        changes.append(("model.dtype=bfloat16", replace(run, is_bfloat16=True)))
    if not run.has_8_bit_moments and run.adapters is None:
        changes.append(("learner.optimizer=adamw_8bit", replace(run, has_8_bit_moments=True)))
    if not run.offloads_optimizer:
        changes.append(("learner.offload=optimizer", replace(run, offloads_optimizer=True)))
    if run.micro_batch > longest:
        changes.append((f"learner.micro_batch_tokens={longest}", replace(run, micro_batch=longest)))
    if run.adapters is None:
        adapters = scene.shape.adapter_parameters(_TRIED_RANK)
        own = () if recipe.model.reference is None else run.frozen[:1]
        others = run.frozen[len(run.frozen) - len(recipe.models) :] if recipe.models else ()
        changes.append((f"model.lora='{{rank: {_TRIED_RANK}}}'", replace(run, adapters=adapters, frozen=own + others)))
    for change, changed in changes:
        if peak_bytes(parts_of(scene.shape, changed, today.ranks)) <= today.room:
            yield change
    share = today.room / scene.chip.gpu.bytes
    larger = [gpu for gpu in GPUS.values() if gpu.bytes * share >= peak_bytes(today.parts)]
    if larger:
        yield f"--gpu {min(larger, key=lambda gpu: gpu.bytes).name}"
    if today.shares_a_gpu and peak_bytes(today.parts) <= scene.chip.gpu.bytes:
        yield f"--gpus {scene.gpus + 1}, so that the learner has a GPU of its own"


def _more_ranks(scene: Scene, today: Layout) -> Iterator[str]:
    """Yield the number of ranks over which the learner fits, if there is one."""
    if scene.chip.dtype != "bfloat16":
        return
    room = today.room if today.in_turns else scene.chip.gpu.bytes
    least = least_ranks(scene.shape, scene.run, room, _MOST_RANKS)
    if least is None or least <= today.ranks:
        return
    engines = 0 if today.in_turns or today.engine is None else today.tensor_parallel
    more = f" with --gpus {least + engines} or more" if least + engines > scene.gpus else ""
    yield f"learner.ranks={least}{more}"


def layout_warnings(scene: Scene, today: Layout, sharded: Layout | None) -> Iterator[str]:
    """Yield warnings about GPUs that stay idle, caches that are small, and micro-batches that wait for the network."""
    work, recipe = scene.work, scene.recipe
    idle = scene.gpus - today.used
    if idle and recipe.rollout.workers and recipe.rollout.gpus_per_worker is None:
        yield (
            f"{idle} of {scene.gpus} GPUs stay idle: rollout.workers = {recipe.rollout.workers}. Set "
            f"rollout.workers={recipe.rollout.workers + idle}"
        )
    if today.per_gpu > 1 and recipe.rollout.gpus_per_worker is None and not today.shares_a_gpu:
        yield (
            f"rollout.workers = {recipe.rollout.workers} on {today.engine_gpus} GPUs: {today.per_gpu} share one, and "
            f"each has a part of its memory. Set rollout.workers={today.engine_gpus}"
        )
    if scene.run.offloads_optimizer:
        hosted = moment_bytes(scene.shape, replace(scene.run, offloads_optimizer=False)) / GIB
        yield (
            f"learner.offload = optimizer: AdamW's moments take {hosted:.0f} GiB of host memory over all ranks, "
            "and none of the GPUs"
        )
    engine = today.engine
    if engine is not None and work.longest <= engine.tokens < USEFUL_SEQUENCES * work.longest:
        yield (
            f"a rollout worker holds only {engine.sequences(work.longest):.0f} sequences of {work.longest} tokens "
            f"(key-value cache of {engine.cache / GIB:.0f} GiB): sampling is slow. Take GPUs with more memory, or "
            "lower rollout.max_new_tokens or data.max_prompt_tokens"
        )
    ranks = max(today.ranks, 1 if sharded is None else sharded.ranks)
    if ranks > 1:
        several = ranks > GPUS_PER_NODE
        rate = NETWORK if several else scene.chip.gpu.link
        least = least_micro_batch(scene.chip, rate)
        if recipe.learner.micro_batch_tokens < least:
            place_ = "between machines" if several else "within a machine"
            yield (
                f"learner.micro_batch_tokens = {recipe.learner.micro_batch_tokens} is below {least:,.0f}: a learner "
                f"sharded over {ranks} GPUs would wait for the gradients of each micro-batch at "
                f"{rate / 1e9:g} GB/s {place_}. Raise it to 16384"
            )
