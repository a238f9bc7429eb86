"""Lay a run out on GPUs: as the recipe says, and with the split of GPUs that balances learner and workers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlkl.commands.plan_work import Work
from rlkl.costs.gpus import GPUS_PER_NODE, Gpu
from rlkl.costs.memory import (
    ENGINE_SHARE,
    EngineMemory,
    Part,
    Training,
    engine_memory,
    learner_parts,
    peak_bytes,
    sharded_learner_parts,
)
from rlkl.costs.seconds import (
    Chip,
    Sampling,
    balanced_ranks,
    learner_seconds,
    publish_seconds,
    sampling_seconds,
)
from rlkl.costs.shapes import ModelShape
from rlkl.recipe import Recipe
from rlkl.recipe.placement import LEARNER, WORKER, Node, memory_fraction, place

CPUS_PER_NODE = 1024
"""More than any recipe asks for: this plan is about GPUs."""
USEFUL_SEQUENCES = 16
"""An engine that holds fewer sequences of the longest length wastes its GPUs."""

_IN_FLIGHT = {70: 1024, 0: 256}
"""vLLM's limit of sequences by the GiB of the GPU; ``max_num_seqs`` in ``rollout.vllm`` sets another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Estimated seconds of one step's parts."""

    rollout: float
    learner: float
    publish: float

    @property
    def in_turns(self) -> float:
        """A step whose sampling and learning alternate."""
        return self.rollout + self.learner + self.publish

    @property
    def side_by_side(self) -> float:
        """A step whose sampling and learning overlap."""
        return max(self.rollout, self.learner) + self.publish


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """GPUs of the learner and of the engines, their memory, and the seconds of a step."""

    ranks: int
    learner_gpu: float
    """Share of the learner's GPU that Ray reserves; 1 or less."""
    engines: int
    engine_gpus: int
    """GPUs on which engines run."""
    tensor_parallel: int
    parts: tuple[Part, ...]
    """Memory of the learner on each of its GPUs."""
    room: float
    """Bytes that the learner may take on its GPU."""
    engine: EngineMemory | None
    """None without rollout workers."""
    per_gpu: int
    """Engines on the fullest GPU."""
    rewards: int
    """GPUs that only rewards use."""
    gpus: int
    """GPUs of the plan."""
    seconds: Seconds

    @property
    def shares_a_gpu(self) -> bool:
        return self.learner_gpu < 1

    @property
    def used(self) -> int:
        """GPUs that have something to do."""
        return self.rewards + (self.engine_gpus if self.shares_a_gpu else self.ranks + self.engine_gpus)

    def idle(self, step: float) -> float:
        """Return the share of all GPU time in which no GPU computes, for a step of so many seconds."""
        busy = self.ranks * self.seconds.learner + self.engine_gpus * self.seconds.rollout
        return max(1 - busy / (self.gpus * step), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that a layout is computed from."""

    recipe: Recipe
    shape: ModelShape
    chip: Chip
    gpus: int
    work: Work
    run: Training

    def sampling(self, engine: EngineMemory | None, engines: int, per_gpu: int) -> float:
        """Return the seconds of sampling; engines on one GPU share its speed."""
        if engine is None:
            return 0.0
        gpu = self.chip.gpu
        usual = next(limit for gib, limit in _IN_FLIGHT.items() if gpu.gib >= gib)
        limit = int(self.recipe.rollout.vllm.arguments.get("max_num_seqs") or usual)
        slower = replace(
            gpu, bandwidth=gpu.bandwidth / per_gpu, bfloat16=gpu.bfloat16 / per_gpu, float32=gpu.float32 / per_gpu
        )
        task = Sampling(
            sequences=self.work.sequences,
            prompt=self.work.prompt,
            completion=self.work.completion,
            longest=self.work.longest_completion,
            engines=engines,
            in_flight=min(engine.sequences(self.work.length), limit),
            tensor_parallel=engine.tensor_parallel,
        )
        return sampling_seconds(self.shape, replace(self.chip, gpu=slower), task)

    def seconds(self, *, ranks: int, rollout: float) -> Seconds:
        published = publish_seconds(self.work.published, width=self.chip.width) if rollout else 0.0
        return Seconds(
            rollout=rollout,
            learner=learner_seconds(self.work.learner, self.chip, gpus=ranks),
            publish=published,
        )


def layout_today(scene: Scene) -> Layout:
    """Compute the layout that `rlkl train` would have: the recipe's ranks, engines of one GPU or of a share of it."""
    recipe, gpu = scene.recipe, scene.chip.gpu
    placement = place(recipe, _nodes(scene.gpus))
    fraction = memory_fraction(recipe, placement)
    with_learner = next(group for group in placement.groups if group.count(LEARNER))
    engine_groups = [group for group in placement.groups if group.count(WORKER)]
    taken = with_learner.count(WORKER) * fraction
    workers, tensor_parallel = placement.count(WORKER), recipe.rollout.tensor_parallel
    engine = None
    if workers and placement.gpus_of(WORKER):
        engine = engine_memory(
            scene.shape, memory=fraction * gpu.bytes, width=scene.chip.width, tensor_parallel=tensor_parallel
        )
    rewards = [group for group in placement.groups if not group.count(WORKER) and not group.count(LEARNER)]
    per_gpu = max((group.count(WORKER) for group in engine_groups), default=1)
    rollout = scene.sampling(engine, workers, per_gpu)
    ranks = recipe.learner.ranks
    return Layout(
        ranks=ranks,
        learner_gpu=min(placement.gpus_of(LEARNER), 1.0),
        engines=workers,
        engine_gpus=sum(len(group.devices) for group in engine_groups),
        tensor_parallel=tensor_parallel,
        parts=parts_of(scene.shape, scene.run, ranks),
        room=(1 - taken) * gpu.bytes,
        engine=engine,
        per_gpu=per_gpu,
        rewards=sum(len(group.devices) for group in rewards),
        gpus=scene.gpus,
        seconds=scene.seconds(ranks=ranks, rollout=rollout),
    )


def _nodes(gpus: int) -> list[Node]:
    """Return machines of 8 GPUs each, the last with the rest. Their GPU memory is checked here, not by `place`."""
    counts = [GPUS_PER_NODE] * (gpus // GPUS_PER_NODE) + ([gpus % GPUS_PER_NODE] if gpus % GPUS_PER_NODE else [])
    return [Node(name=f"machine {number}", cpus=CPUS_PER_NODE, gpus=count) for number, count in enumerate(counts)]


def layout_balanced(scene: Scene, *, rewards: int) -> Layout | None:
    """Split the GPUs between a sharded learner and engines so that both sides take equally long.

    ``rewards``: GPUs that only rewards use.
    """
    gpus, gpu = scene.gpus - rewards, scene.chip.gpu
    if gpus < 2 or not scene.recipe.rollout.workers or scene.chip.dtype != "bfloat16":
        return None
    engine = _useful_engine(scene)
    least = least_ranks(scene.shape, scene.run, gpu, gpus)
    if engine is None or least is None or gpus - least < engine.tensor_parallel:
        return None
    size, most = engine.tensor_parallel, (gpus - least) // engine.tensor_parallel
    engines = most
    alone = learner_seconds(scene.work.learner, scene.chip, gpus=1)
    for _ in range(3):  # the rate of an engine depends on how many there are
        rollout = scene.sampling(engine, engines, 1) * engines * size
        engines = min(max(round((gpus - balanced_ranks(gpus, alone, rollout)) / size), 1), most)
    ranks = gpus - engines * size
    return Layout(
        ranks=ranks,
        learner_gpu=1.0,
        engines=engines,
        engine_gpus=engines * size,
        tensor_parallel=size,
        parts=parts_of(scene.shape, scene.run, ranks),
        room=gpu.bytes,
        engine=engine,
        per_gpu=1,
        rewards=rewards,
        gpus=scene.gpus,
        seconds=scene.seconds(ranks=ranks, rollout=scene.sampling(engine, engines, 1)),
    )


def parts_of(shape: ModelShape, run: Training, ranks: int) -> tuple[Part, ...]:
    """List the memory of a learner of one process, or of each of its ranks."""
    return learner_parts(shape, run) if ranks == 1 else sharded_learner_parts(shape, run, ranks)


def _useful_engine(scene: Scene) -> EngineMemory | None:
    """Return the engine with the fewest GPUs that holds enough sequences; None if no engine in one machine does."""
    for size in (1, 2, 4, 8):
        engine = engine_memory(
            scene.shape, memory=ENGINE_SHARE * scene.chip.gpu.bytes, width=scene.chip.width, tensor_parallel=size
        )
        if engine.sequences(scene.work.longest) >= USEFUL_SEQUENCES:
            return engine
    return None


def least_ranks(shape: ModelShape, run: Training, gpu: Gpu, most: int) -> int | None:
    """Return the fewest GPUs over which the learner fits, at most ``most``; None if it does not."""
    return next((ranks for ranks in range(1, most + 1) if peak_bytes(parts_of(shape, run, ranks)) <= gpu.bytes), None)
