"""Lay a run out on GPUs: as the recipe says, and with the split of GPUs that balances learner and workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from rlkl.commands.plan_work import Work
from rlkl.costs.gpus import GPUS_PER_NODE
from rlkl.costs.lengths import Lognormal
from rlkl.costs.memory import (
    ASLEEP,
    ENGINE_SHARE,
    EngineMemory,
    Part,
    Training,
    engine_memory,
    learner_parts,
    peak_bytes,
    resting_bytes,
    sharded_learner_parts,
)
from rlkl.costs.seconds import (
    GROUP_RATE,
    HOST_RATE,
    Chip,
    balanced_ranks,
    decode_law,
    learner_seconds,
    prefill_seconds,
    publish_seconds,
)
from rlkl.costs.setting import ALTERNATE, Setting
from rlkl.costs.shapes import ModelShape
from rlkl.costs.simulation import simulate
from rlkl.recipe import Recipe
from rlkl.recipe.placement import LEARNER, WORKER, Node, memory_fraction, place

CPUS_PER_NODE = 1024
"""More than any recipe asks for: this plan is about GPUs."""
USEFUL_SEQUENCES = 16
"""An engine that holds fewer sequences of the longest length wastes its GPUs."""

_SIMULATED = 1500
"""Completions of a step that are simulated at most, if groups are large enough, so that a plan is quick."""
_IN_FLIGHT = {70: 1024, 0: 256}
"""vLLM's limit of sequences by the GiB of the GPU; ``max_num_seqs`` in ``rollout.vllm`` sets another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Estimated seconds of one step's parts, as if they took turns."""

    rollout: float
    learner: float
    publish: float


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
    transport: str
    """``host`` or ``group``: the way of the published weights."""
    resting: float | None = None
    """Bytes of the learner on each of its GPUs while engines use them in turns; None if they have GPUs of their own."""

    @property
    def in_turns(self) -> bool:
        """Whether engines sleep on the learner's GPUs while it steps."""
        return self.resting is not None

    @property
    def shares_a_gpu(self) -> bool:
        """Whether one learner process and engines divide a GPU between them."""
        return self.learner_gpu < 1

    @property
    def takes_turns(self) -> bool:
        """Whether learner and engines use the same GPUs, so that no schedule lets them work at once."""
        return self.shares_a_gpu or self.in_turns

    @property
    def used(self) -> int:
        """GPUs that have something to do."""
        if self.shares_a_gpu:
            return self.rewards + self.engine_gpus
        return self.rewards + self.ranks + (0 if self.in_turns else self.engine_gpus)

    def holds(self, tokens: float) -> bool:
        """Return whether the cache of an engine holds a sequence of so many tokens."""
        return self.engine is not None and self.engine.tokens >= tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that a layout is computed from."""

    recipe: Recipe
    shape: ModelShape
    chip: Chip
    gpus: int
    work: Work
    run: Training

    def slots(self, engine: EngineMemory) -> int:
        """Return how many sequences of the mean length an engine decodes together."""
        usual = next(limit for gib, limit in _IN_FLIGHT.items() if self.chip.gpu.gib >= gib)
        limit = int(self.recipe.rollout.vllm.arguments.get("max_num_seqs") or usual)
        return max(int(min(engine.sequences(self.work.length), limit)), 1)

    def engine_chip(self, per_gpu: int) -> Chip:
        """Return the speed of an engine that shares its GPU with others."""
        gpu = self.chip.gpu
        slower = replace(
            gpu, bandwidth=gpu.bandwidth / per_gpu, bfloat16=gpu.bfloat16 / per_gpu, float32=gpu.float32 / per_gpu
        )
        return replace(self.chip, gpu=slower)

    def setting(self, engine: EngineMemory, engines: int, per_gpu: int) -> Setting:
        """Return what is simulated for engines; those on one GPU share its speed. The learner takes no time."""
        rollout, work, chip = self.recipe.rollout, self.work, self.engine_chip(per_gpu)
        return Setting(
            groups=rollout.prompts_per_step,
            samples=rollout.samples_per_prompt,
            lengths=Lognormal(mean=max(work.completion, 1.0), longest=work.longest_completion),
            engines=engines,
            slots=self.slots(engine),
            law=decode_law(self.shape, chip, tensor_parallel=engine.tensor_parallel),
            prompt=work.prompt,
            prefill_s=prefill_seconds(self.shape, chip, tensor_parallel=engine.tensor_parallel),
            max_staleness=rollout.max_staleness,
            each=_each(rollout.samples_per_prompt, rollout.prompts_per_step),
            seed=self.recipe.seed,
        )

    def sampling(self, engine: EngineMemory | None, engines: int, per_gpu: int) -> float:
        """Return the seconds in which engines sample the batch of a step; each round of corrections may sample anew."""
        if engine is None or not engines:
            return 0.0
        rounds = self.recipe.update.correction_rounds
        return simulate(self.setting(engine, engines, per_gpu), ALTERNATE, steps=1).seconds * (1 + rounds)

    def transport(self, *, takes_turns: bool) -> str:
        """Return the way of the weights: ``auto`` is a group if learner and engines have GPUs of their own."""
        chosen = self.recipe.weights.transport
        return chosen if chosen != "auto" else "host" if takes_turns else "group"

    def seconds(self, *, ranks: int, rollout: float, transport: str) -> Seconds:
        rate = {"host": HOST_RATE, "group": GROUP_RATE}[transport]
        published = publish_seconds(self.work.published, width=self.chip.width, rate=rate) if rollout else 0.0
        return Seconds(
            rollout=rollout,
            learner=learner_seconds(self.work.learner, self.chip, gpus=ranks),
            publish=published,
        )


def _each(samples: int, groups: int) -> int:
    """Return how many completions one simulated completion stands for: a divisor of those of a group."""
    fits = (each for each in range(1, samples) if samples % each == 0 and samples * groups <= _SIMULATED * each)
    return next(fits, samples)


def layout_today(scene: Scene) -> Layout:
    """Compute the layout that `rlkl train` would have: the recipe's ranks, workers, and their placement."""
    recipe, gpu = scene.recipe, scene.chip.gpu
    tensor_parallel = tensor_parallel_of(recipe)
    placement = place(recipe, _nodes(scene.gpus))
    fraction = memory_fraction(recipe, placement)
    with_learner = next(group for group in placement.groups if group.count(LEARNER))
    engine_groups = [group for group in placement.groups if group.count(WORKER)]
    taken = ASLEEP / gpu.bytes if placement.in_turns else with_learner.count(WORKER) * fraction
    workers = placement.count(WORKER)
    engine = None
    if workers and placement.on_gpus(WORKER):
        engine = engine_memory(
            scene.shape, memory=fraction * gpu.bytes, width=scene.chip.width, tensor_parallel=tensor_parallel
        )
    rewards = [group for group in placement.groups if not group.count(WORKER) and not group.count(LEARNER)]
    per_gpu = max((group.count(WORKER) for group in engine_groups), default=1)
    ranks, learner_gpu = recipe.learner.ranks, min(placement.gpus_of(LEARNER), 1.0)
    transport = scene.transport(takes_turns=learner_gpu < 1 or placement.in_turns)
    parts = parts_of(scene.shape, scene.run, ranks)
    return Layout(
        ranks=ranks,
        learner_gpu=learner_gpu,
        engines=workers,
        engine_gpus=sum(len(group.devices) for group in engine_groups),
        tensor_parallel=tensor_parallel,
        parts=parts,
        room=(1 - taken) * gpu.bytes,
        engine=engine,
        per_gpu=per_gpu,
        rewards=sum(len(group.devices) for group in rewards),
        gpus=scene.gpus,
        seconds=scene.seconds(ranks=ranks, rollout=scene.sampling(engine, workers, per_gpu), transport=transport),
        transport=transport,
        resting=resting_bytes(parts) if placement.in_turns else None,
    )


def tensor_parallel_of(recipe: Recipe) -> int:
    """Return the GPUs of one engine."""
    named = recipe.rollout.vllm.arguments.get("tensor_parallel_size", 1)
    return max(recipe.rollout.tensor_parallel, int(named))


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
    least = least_ranks(scene.shape, scene.run, gpu.bytes, gpus)
    if engine is None or least is None or gpus - least < engine.tensor_parallel:
        return None
    size, most = engine.tensor_parallel, (gpus - least) // engine.tensor_parallel
    alone = learner_seconds(scene.work.learner, scene.chip, gpus=1)

    @cache
    def slower_side(engines: int) -> float:
        return max(scene.sampling(engine, engines, 1), alone / (gpus - engines * size))

    first = balanced_ranks(gpus, alone, scene.sampling(engine, most, 1) * most * size)
    engines = min(max(round((gpus - first) / size), 1), most)
    for step in (1, -1):  # the rate of an engine depends on how many there are, so the formula is only near
        while 1 <= engines + step <= most and slower_side(engines + step) < slower_side(engines):
            engines += step
    ranks = gpus - engines * size
    transport = scene.transport(takes_turns=False)
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
        seconds=scene.seconds(ranks=ranks, rollout=scene.sampling(engine, engines, 1), transport=transport),
        transport=transport,
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


def least_ranks(shape: ModelShape, run: Training, room: float, most: int) -> int | None:
    """Return the fewest GPUs, of ``room`` bytes each, over which the learner fits; at most ``most``, else None."""
    return next((ranks for ranks in range(1, most + 1) if peak_bytes(parts_of(shape, run, ranks)) <= room), None)
