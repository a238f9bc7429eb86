"""Compute what a recipe would do, without loading a model: processes, batch arithmetic, memory, warnings."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlkl.commands.plan_inputs import check_inputs
from rlkl.commands.plan_warnings import warnings_about
from rlkl.errors import EnvironmentProblem, InputError
from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe
from rlkl.recipe.memory import MemoryEstimate, estimate_memory
from rlkl.recipe.placement import LEARNER, WORKER, Placement, actors_of
from rlkl.recipe.resources import place_on_machine, warnings_about_gpus
from rlkl.recipe.run_dir import new_run_dir
from rlkl.recipe.transport import decided_transport
from rlkl.rollout.vllm_arguments import check_vllm_arguments
from rlkl.system.machine import Machine, this_machine

_OPTIMIZERS = {"adamw": "AdamW", "adamw_8bit": "AdamW with moments of 8 bits"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A kind of process, how many there are, and what each reserves."""

    role: str
    count: int
    cpus: float
    gpus: float | None
    """None: the run decides when it knows the GPUs of the cluster."""
    does: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchArithmetic:
    """The parts of one training step. Upper limits hold if every prompt and completion is as long as allowed.

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
class Plan:
    """A resolved recipe and what follows from it."""

    recipe: Recipe
    run_dir: Path
    machine: Machine
    cluster: str | None
    """Address of an existing cluster; None: a local Ray on this machine."""
    processes: tuple[Process, ...]
    placement: Placement | None
    """None on a cluster, where the run decides when it starts, and if the actors do not fit on this machine."""
    batch: BatchArithmetic
    memory: MemoryEstimate | None
    """None where the checkpoint is not in a local folder."""
    warnings: tuple[str, ...]

    @property
    def cpus(self) -> float:
        return sum(process.count * process.cpus for process in self.processes)

    @property
    def gpus(self) -> float:
        return sum(process.count * (process.gpus or 0.0) for process in self.processes)


def run(options: Namespace) -> int:
    """Check what a recipe refers to and print its plan on this machine; return 0.

    With ``--gpus`` print its plan on so many GPUs, with ``--measured`` the schedules by the parts of another run.

    Raises `InputError`; `EnvironmentProblem` after the plan is printed, if the run cannot start there.
    """
    if options.gpus is not None and options.measured is not None:
        raise InputError("--gpus estimates seconds and --measured has measured ones; expected one of them, not both")
    if options.gpus is not None:
        from rlkl.commands import plan_cluster

        return plan_cluster.run(options)
    if options.measured is not None:
        from rlkl.commands import plan_measured

        return plan_measured.run(options)
    from rlkl.commands.plan_view import show

    recipe = load_recipe(options.recipe, *options.overrides)
    not_here = check_inputs(recipe)
    plan = make_plan(recipe, this_machine())
    show(replace(plan, warnings=(*plan.warnings, *not_here)))
    if plan.placement is None and plan.cluster is None:
        raise EnvironmentProblem(
            f"{plan.warnings[0]}. To plan for GPUs that are not here: rlkl plan {options.recipe} --gpus 8 --gpu H100"
        )
    return 0


def make_plan(recipe: Recipe, machine: Machine) -> Plan:
    """Work out the plan for a recipe, on ``machine`` unless the recipe or RAY_ADDRESS names a cluster.

    Raises `InputError` when ``run.dir`` already holds files, `RecipeError` when vLLM lacks an argument of
    ``rollout.vllm``.
    """
    check_vllm_arguments(recipe.rollout.vllm.arguments)
    cluster = recipe.cluster.resolved_address
    memory = estimate_memory(recipe, recipe.model.path, [section.path for section in recipe.models.values()])
    placement, obstacles = (None, ()) if cluster else _place(recipe, machine, memory)
    processes = _processes(recipe, placement)
    batch = BatchArithmetic(
        prompts=recipe.rollout.prompts_per_step,
        samples_per_prompt=2 if recipe.data.has_pairs else recipe.rollout.samples_per_prompt,
        sequence_tokens=recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens,
        epochs=recipe.learner.epochs,
        minibatches=recipe.learner.minibatches,
        micro_batch_tokens=recipe.learner.micro_batch_tokens,
        steps=recipe.steps,
    )
    transport = recipe.weights.model_copy(update={"transport": decided_transport(recipe, placement)})
    resolved = recipe.model_copy(update={"update": recipe.decided_update.resolved(), "weights": transport})
    return Plan(
        recipe=resolved,
        run_dir=new_run_dir(recipe),
        machine=machine,
        cluster=cluster,
        processes=processes,
        placement=placement,
        batch=batch,
        memory=memory,
        warnings=(*obstacles, *warnings_about(recipe, machine)),
    )


def _place(recipe: Recipe, machine: Machine, memory: MemoryEstimate | None) -> tuple[Placement | None, tuple[str, ...]]:
    """Return the placement on this machine and warnings about it; the first warning explains a missing one."""
    try:
        placement = place_on_machine(recipe, machine, memory)
    except EnvironmentProblem as error:
        return None, (f"the run cannot start on this machine: {error}",)
    cpus = sum(actor.cpus for actor in placement.actors)
    if cpus <= machine.cpus:
        return placement, tuple(warnings_about_gpus(placement, machine))
    oversubscribed = (
        f"{cpus:g} CPUs are asked for and this machine has {machine.cpus}: processes share cores and slow each other. "
        "Lower rollout.workers or rollout.cpus_per_worker"
    )
    return placement, (oversubscribed, *warnings_about_gpus(placement, machine))


def _processes(recipe: Recipe, placement: Placement | None) -> tuple[Process, ...]:
    rollout, cpus_of = recipe.rollout, {actor.role: actor.cpus for actor in actors_of(recipe)}
    turns = ", sleeps while the learner steps" if rollout.placement == "colocated" else ""
    learner_gpus = 0.0 if recipe.learner.device == "cpu" and recipe.learner.gpus is None else recipe.learner.gpus
    processes = (
        Process(role="driver", count=1, cpus=0, gpus=0, does="the loop, rewards, tracking, checkpoints"),
        Process(
            role="rollout worker",
            count=rollout.workers,
            cpus=rollout.cpus_per_worker,
            gpus=_worker_gpus(recipe) if placement is None else placement.gpus_of(WORKER),
            does=f"{rollout.engine} engine, {recipe.model.dtype}{turns}",
        ),
        Process(
            role="learner",
            count=recipe.learner.ranks,
            cpus=cpus_of[LEARNER],
            gpus=learner_gpus if placement is None else placement.gpus_of(LEARNER),
            does=f"{recipe.update.rule}, {_OPTIMIZERS[recipe.learner.optimizer]}",
        ),
        *_reward_processes(recipe),
    )
    return tuple(process for process in processes if process.count)


def _worker_gpus(recipe: Recipe) -> float | None:
    """Return the GPUs that the recipe gives each worker; None if the run decides."""
    if recipe.rollout.placement == "colocated":
        return 0.0
    return recipe.rollout.gpus_per_worker


def _reward_processes(recipe: Recipe) -> Iterator[Process]:
    """List where each reward runs, and the limit of a call. Only actors reserve CPUs and GPUs."""
    for reward in recipe.rewards:
        is_actor = reward.place == "actor"
        limit = "no time limit" if reward.deadline_s is None else f"at most {reward.deadline_s:g} s a call"
        yield Process(
            role=f"reward {reward.place}",
            count=reward.workers,
            cpus=reward.cpus if is_actor else 0,
            gpus=reward.gpus if is_actor else 0,
            does=f"{reward.name or reward.function}, {limit}",
        )
