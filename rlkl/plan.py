"""What a recipe would do, worked out without loading a model: processes, batch arithmetic, memory, warnings."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlkl.machine import Machine
from rlkl.plan_warnings import warnings_about
from rlkl.recipe import Recipe
from rlkl.recipe.resources import gpu_shares
from rlkl.recipe.run_dir import new_run_dir
from rlkl.rollout.vllm_arguments import check_vllm_arguments

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A kind of process, how many there are, and what each reserves."""

    role: str
    count: int
    cpus: float
    gpus: float
    does: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchArithmetic:
    """How one training step is cut. Upper limits hold when every prompt and completion is as long as allowed.

    32 prompts x 8 samples = 256 sequences; 4 minibatches hold 64 sequences each; at 768 tokens a sequence, 10 fit into
    a micro-batch of 8192 tokens, so a minibatch takes at most 7 of them.
    """

    prompts: int
    samples_per_prompt: int
    sequence_tokens: int
    """Longest prompt plus longest completion."""
    epochs: int
    minibatches: int
    micro_batch_tokens: int
    steps: int

    @property
    def sequences(self) -> int:
        return self.prompts * self.samples_per_prompt

    @property
    def tokens(self) -> int:
        """At most."""
        return self.sequences * self.sequence_tokens

    @property
    def minibatch_sequences(self) -> int:
        """In the largest minibatch; minibatches hold whole groups."""
        return math.ceil(self.prompts / self.minibatches) * self.samples_per_prompt

    @property
    def micro_batches(self) -> int:
        """At most, in the largest minibatch. A sequence longer than a micro-batch goes alone."""
        return math.ceil(self.minibatch_sequences / max(self.micro_batch_tokens // self.sequence_tokens, 1))

    @property
    def optimizer_steps(self) -> int:
        """In one training step."""
        return self.epochs * self.minibatches


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Gigabytes (2**30) for weights and optimizer, by the shapes in the checkpoint. Activations come on top."""

    parameters: int
    learner_gib: float
    reference_gib: float
    engine_gib: float
    """Each engine's weights, without its key-value cache."""
    copy_gib: float
    """In host memory, with several optimizer steps a batch: weights and moments, to undo a step that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A resolved recipe and what follows from it."""

    recipe: Recipe
    run_dir: Path
    machine: Machine
    cluster: str | None
    """Address of an existing cluster; None: a local Ray on this machine."""
    processes: tuple[Process, ...]
    batch: BatchArithmetic
    memory: MemoryEstimate | None
    """None where the checkpoint is not in a local folder."""
    warnings: tuple[str, ...]

    @property
    def cpus(self) -> float:
        return sum(process.count * process.cpus for process in self.processes)

    @property
    def gpus(self) -> float:
        return sum(process.count * process.gpus for process in self.processes)


def make_plan(recipe: Recipe, machine: Machine) -> Plan:
    """Work out the plan for a recipe, on ``machine`` unless the recipe or RAY_ADDRESS names a cluster.

    Raises `InputError` when ``run.dir`` already holds files, `RecipeError` when vLLM lacks an argument of
    ``rollout.vllm``.
    """
    check_vllm_arguments(recipe.rollout.vllm)
    cluster = recipe.cluster.address or os.environ.get("RAY_ADDRESS")
    processes = _processes(recipe, machine)
    batch = BatchArithmetic(
        prompts=recipe.rollout.prompts_per_step,
        samples_per_prompt=2 if recipe.data.has_pairs else recipe.rollout.samples_per_prompt,
        sequence_tokens=recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens,
        epochs=recipe.learner.epochs,
        minibatches=recipe.learner.minibatches,
        micro_batch_tokens=recipe.learner.micro_batch_tokens,
        steps=recipe.steps,
    )
    resolved = recipe.model_copy(update={"update": recipe.update.resolved()})
    shortage = () if cluster else _shortage(processes, machine)
    return Plan(
        recipe=resolved,
        run_dir=new_run_dir(recipe),
        machine=machine,
        cluster=cluster,
        processes=processes,
        batch=batch,
        memory=_memory(recipe),
        warnings=(*shortage, *warnings_about(recipe, machine)),
    )


def _processes(recipe: Recipe, machine: Machine) -> tuple[Process, ...]:
    rollout, shares = recipe.rollout, gpu_shares(recipe, len(machine.gpus))
    processes = (
        Process(role="driver", count=1, cpus=0, gpus=0, does="the loop, rewards, tracking, checkpoints"),
        Process(
            role="rollout worker",
            count=rollout.workers,
            cpus=rollout.cpus_per_worker,
            gpus=shares.worker,
            does=f"{rollout.engine} engine, {recipe.model.dtype}",
        ),
        Process(role="learner", count=1, cpus=1, gpus=shares.learner, does=f"{recipe.update.rule}, AdamW"),
        *_reward_processes(recipe),
    )
    return tuple(process for process in processes if process.count)


def _reward_processes(recipe: Recipe) -> Iterator[Process]:
    """The workers of rewards that do not run in the driver. Worker processes are not reserved anywhere."""
    for reward in recipe.rewards:
        if reward.mode in ("process", "actor"):
            is_actor = reward.mode == "actor"
            yield Process(
                role=f"reward {reward.mode}",
                count=reward.workers,
                cpus=reward.cpus if is_actor else 0,
                gpus=reward.gpus if is_actor else 0,
                does=reward.name or reward.function,
            )


def _shortage(processes: tuple[Process, ...], machine: Machine) -> tuple[str, ...]:
    gpus = sum(process.count * process.gpus for process in processes)
    cpus = sum(process.count * process.cpus for process in processes)
    found = []
    if gpus > len(machine.gpus):
        found.append(
            f"{gpus:g} GPUs are asked for and this machine has {len(machine.gpus)}, so actors could not start. To "
            "share one, set fractions: rollout.gpus_per_worker=0.5 learner.gpus=0.5"
        )
    if cpus > machine.cpus:
        found.append(
            f"{cpus:g} CPUs are asked for and this machine has {machine.cpus}: processes share cores and slow each "
            "other. Lower rollout.workers or rollout.cpus_per_worker"
        )
    return tuple(found)


def _memory(recipe: Recipe) -> MemoryEstimate | None:
    files = sorted(Path(recipe.model.path).glob("*.safetensors"))
    if not files:
        return None
    parameters = sum(_count_parameters(file) for file in files)
    trained_bytes = 16 if recipe.model.lora is None else 4  # float32 weight, gradient and two Adam moments; or weight
    has_copy = recipe.model.lora is None and (recipe.learner.track_reference_kl or recipe.update.keeps_reference)
    several_steps = recipe.learner.epochs * recipe.learner.minibatches > 1
    gib = parameters / 2**30
    return MemoryEstimate(
        parameters=parameters,
        learner_gib=trained_bytes * gib,
        reference_gib=_BYTES[recipe.model.dtype] * gib if has_copy else 0.0,
        engine_gib=_BYTES[recipe.model.dtype] * gib,
        copy_gib=12 * gib if several_steps and recipe.model.lora is None else 0.0,
    )


def _count_parameters(file: Path) -> int:
    """From the header of a safetensors file: 8 bytes of length (little-endian), then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
