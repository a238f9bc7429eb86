"""`rlkl inspect`: make a step again that had a number that is not finite, and show where it comes from."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlkl.errors import InputError
from rlkl.learner.examining import Examination, GroupFinding, examine
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.models.resolve import resolve_models
from rlkl.recipe.io import load_recipe
from rlkl.recipe.run_dir import recipe_path
from rlkl.rollout.settings import load_tokenizer
from rlkl.training.faults import KeptFault, read_fault
from rlkl.types import step_number

_SHOWN_GROUPS = 8
_SHOWN_CHARACTERS = 60


def run(options: Namespace) -> int:
    """Load the kept learner and batch, make the step again, print what was found, and return 0.

    Raises `InputError` if the folder holds no fault, or no learner.
    """
    folder: Path = options.fault.absolute()
    fault = read_fault(folder)
    if fault.checkpoint is None:
        raise InputError(f"{folder} has no checkpoint: a run keeps the learner of its first faults only. Inspect those")
    recipe = load_recipe(recipe_path(folder.parent.parent), *options.overrides)
    models = resolve_models(recipe)
    spec = LearnerSpec(
        recipe=recipe,
        model_path=models.policy.path,
        reference_path=None if models.reference is None else models.reference.path,
        frozen_paths=models.frozen_paths,
    )
    learner = Learner(spec)
    learner.restore(fault.checkpoint)
    found = examine(learner, fault.examples, fault.left_out, step=fault.step)
    show(fault, found, load_tokenizer(models.policy.path))
    return 0


def show(fault: KeptFault, found: Examination, tokenizer: Any) -> None:
    """Print the fault, each group's gradient, the broken ones first, and the sequences of the first one."""
    console = Console(highlight=False)
    prompts = len({example.group for example in fault.examples})
    console.print(f"step {step_number(fault.step)}: {len(fault.examples)} sequences of {prompts} prompts", markup=False)
    console.print(f"then: {fault.message}", markup=False)
    console.print(f"now:  {found.problem or 'the step passes'}\n", markup=False)
    if not found.groups:
        return
    ordered = sorted(found.groups, key=lambda group: (group.loss is not None, -(group.grad_norm or 0.0)))
    console.print(_groups(ordered))
    console.print(_sequences(ordered[0], tokenizer))


def _groups(ordered: list[GroupFinding]) -> Table:
    broken = sum(group.loss is None for group in ordered)
    table = Table(title=f"gradient of each prompt alone: {broken} of {len(ordered)} not finite", title_justify="left")
    for name in ("prompt", "rewards", "loss", "gradient norm"):
        table.add_column(name)
    for group in ordered[:_SHOWN_GROUPS]:
        rewards = [one.example.rollout.reward for one in group.sequences]
        prompt, spread = group.sequences[0].example.prompt, f"{min(rewards):.4g} to {max(rewards):.4g}"
        numbers = ["not finite"] * 2 if group.loss is None else [f"{group.loss:.4g}", f"{group.grad_norm:.4g}"]
        table.add_row(escape(prompt.id), spread, *numbers)
    if len(ordered) > _SHOWN_GROUPS:
        table.caption = f"and {len(ordered) - _SHOWN_GROUPS} more"
    return table


def _sequences(group: GroupFinding, tokenizer: Any) -> Table:
    prompt = group.sequences[0].example.prompt
    table = Table(title=f"sequences of {escape(prompt.id)}: {_short(prompt.text)}", title_justify="left")
    for name in ("sample", "role", "reward", "lowest log-prob", "at token", "completion"):
        table.add_column(name)
    for row in _rows(group, tokenizer):
        table.add_row(*row)
    return table


def _rows(group: GroupFinding, tokenizer: Any) -> Iterator[list[str]]:
    for one in group.sequences:
        rollout = one.example.rollout
        ids = rollout.completion.token_ids
        token = repr(tokenizer.decode([ids[one.lowest_token]])) if ids else ""
        yield [
            str(rollout.sample_index),
            one.example.role,
            f"{rollout.reward:.4g}",
            f"{one.lowest_logprob:.4g}",
            f"{one.lowest_token} {escape(token)}",
            _short(tokenizer.decode(ids)),
        ]


def _short(text: str) -> str:
    """Return text of a model as Rich shows it: cut, quoted, and without effect."""
    shown = repr(text)
    return escape(shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}...")
