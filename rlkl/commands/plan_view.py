"""Print a plan on the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from rlkl.commands.plan import Plan
from rlkl.recipe.io import dump_recipe
from rlkl.recipe.resources import describe

_PIPED_WIDTH = 120


def show(plan: Plan, console: Console | None = None) -> None:
    """Print the number of warnings, the resolved recipe, processes, batch arithmetic, memory, and the warnings."""
    out = console or Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    count = len(plan.warnings)
    out.print(f"Warnings: {f'{count}, listed at the end' if count else 'none'}\n", style="bold")
    _section(out, f"Recipe (run folder {plan.run_dir})", dump_recipe(plan.recipe).rstrip())
    _show_processes(plan, out)
    if plan.placement is not None and (lines := describe(plan.recipe, plan.placement)):
        _section(out, "GPUs, and the share of each actor (Ray may number the GPUs in another order)", "\n".join(lines))
    _section(out, "One training step", "\n".join(batch_lines(plan)))
    if plan.memory is not None:
        _section(out, "Memory for weights and optimizer (activations and key-value caches come on top)", _memory(plan))
    if plan.warnings:
        _section(out, f"Warnings: {count}", "\n".join(f"- {warning}." for warning in plan.warnings))


def batch_lines(plan: Plan) -> list[str]:
    """Return the batch arithmetic, one relation a line."""
    b = plan.batch
    refill = f", at most {plan.recipe.rollout.max_rounds} rounds" if plan.recipe.rollout.max_rounds > 1 else ""
    rounds = plan.recipe.update.correction_rounds
    more = (
        f"update.corrections = {rounds}: policy and teacher read up to {rounds} x {b.sequences} sequences more, and up "
        f"to {1 + rounds} times as many tokens are sampled"
    )
    return [
        f"{b.prompts} prompts{refill} x {b.samples_per_prompt} samples = {b.sequences} sequences",
        f"{b.sequences} sequences x at most {b.sequence_tokens} tokens = at most {b.tokens} tokens",
        *([more] if rounds else []),
        f"{b.minibatches} minibatches of at most {b.minibatch_sequences} sequences, each in at most {b.micro_batches} "
        f"micro-batches of {b.micro_batch_tokens} tokens",
        f"{b.epochs} epochs x {b.minibatches} minibatches = {b.optimizer_steps} optimizer steps",
        f"{b.optimizer_steps} optimizer steps x {b.steps} training steps = {b.optimizer_steps * b.steps} in total",
    ]


def _show_processes(plan: Plan, out: Console) -> None:
    table = Table("process", "number", "CPUs each", "GPUs each", "does", box=None, pad_edge=False)
    for process in plan.processes:
        gpus = "?" if process.gpus is None else f"{process.gpus:.3g}"
        table.add_row(process.role, str(process.count), f"{process.cpus:g}", gpus, process.does)
    if plan.cluster:
        where = f"on the Ray cluster at {plan.cluster}, whose GPUs are counted when the run starts"
    else:
        where = f"on a local Ray; this machine has {plan.machine.cpus} CPUs and {len(plan.machine.gpus)} GPUs"
    out.print(f"Processes: {plan.cpus:g} CPUs and {plan.gpus:.3g} GPUs, {where}", style="bold")
    out.print(Padding(table, (0, 0, 1, 2)))


def _memory(plan: Plan) -> str:
    assert plan.memory is not None
    m, workers, ranks = plan.memory, plan.recipe.rollout.workers, plan.recipe.learner.ranks
    shared = f" (both divided among {ranks} ranks)" if ranks > 1 else ""
    return (
        f"{m.parameters:,} parameters: learner {m.learner_gib:.2f} GiB, reference and other frozen models "
        f"{m.reference_gib:.2f} GiB{shared}, {workers} x engine {m.engine_gib:.2f} GiB"
        + (f", copy of the learner's state in host memory {m.copy_gib:.2f} GiB" if m.copy_gib else "")
    )


def _section(out: Console, title: str, body: str) -> None:
    out.print(title, style="bold")
    out.print(Padding(body, (0, 0, 1, 2)))
