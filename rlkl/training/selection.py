"""Choosing what a step trains on: rounds of prompts until the rule has enough groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkl.data.prompts import PromptSource
from rlkl.recipe import Recipe
from rlkl.rollout.collect import Draw
from rlkl.training.clock import Clock
from rlkl.training.collect import Collector
from rlkl.types import Example, RolloutGroup, Selection
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.filters import filter_groups

Columns = dict[str, list[Sequence[float] | None]]


@dataclass(slots=True, kw_only=True)
class Selector:
    """Draws prompts, has completions collected, and lets the rule select."""

    recipe: Recipe
    source: PromptSource
    collector: Collector
    update: PolicyUpdate
    position: int = 0
    """Prompts drawn so far."""
    finished_position: int = 0
    """``position`` at the end of the last finished step."""

    def collect(self, step: int, clock: Clock) -> Selection:
        """Collect rounds of prompts until the rule has selected a full step of groups.

        There are at most ``rollout.max_rounds`` rounds; a step may then be short, or empty.
        """
        wanted = self.recipe.rollout.prompts_per_step
        groups: list[RolloutGroup] = []
        examples: list[Example] = []
        rounds = 0
        while rounds < self.recipe.rollout.max_rounds and _group_count(examples) < wanted:
            rounds += 1
            groups += self.collector.groups(self._draw(), step=step, clock=clock)
            scored = [group.scored() for group in groups]
            examples = self.update.select(filter_groups(scored, self.recipe.update.filter))
        kept = sorted({example.group for example in examples if example.role == "main"})[:wanted]
        examples = [example for example in examples if example.role != "main" or example.group in kept]
        metrics = self.collector.metrics(groups, step=step)
        metrics["rollout/rounds"] = float(rounds)
        selectable = sum(rollout.scored for group in groups for rollout in group.rollouts)
        selected = sum(example.role == "main" for example in examples)
        metrics["update/selected_fraction"] = selected / max(selectable, 1)
        metrics["data/epoch"] = self.position / len(self.source)
        return Selection(groups=groups, examples=examples, left_out=left_out(groups, examples), metrics=metrics)

    def resume(self, position: int) -> None:
        """Go on behind the prompts that an earlier run has drawn."""
        self.position = self.finished_position = position

    def finish(self) -> None:
        """Count the prompts drawn so far as used: their step is in the weights."""
        self.finished_position = self.position

    def take_back(self) -> None:
        """Return the prompts of an unfinished step: they will be drawn again."""
        self.position = self.finished_position

    def _draw(self) -> list[Draw]:
        prompts = self.source.take(self.position, self.recipe.rollout.prompts_per_step)
        draws = [Draw(prompt=prompt, position=self.position + n) for n, prompt in enumerate(prompts)]
        self.position += len(draws)
        return draws


def left_out(groups: Sequence[RolloutGroup], examples: Sequence[Example]) -> list[Example]:
    """Return the rollouts that no example holds."""
    taken = {(example.group, example.rollout.sample_index) for example in examples if example.role == "main"}
    return [
        Example(prompt=group.prompt, rollout=rollout, group=number)
        for number, group in enumerate(groups)
        for rollout in group.rollouts
        if (number, rollout.sample_index) not in taken
    ]


def token_columns(selection: Selection, learned: Mapping[str, Sequence[tuple[float, ...]]]) -> Columns:
    """Arrange the rule's per-token columns by rollout: one entry a rollout, None if it was not selected."""
    keys = [(example.group, example.rollout.sample_index) for example in selection.examples]
    columns: Columns = {}
    for name, rows in learned.items():
        row_of = dict(zip(keys, rows, strict=True))
        columns[name] = [
            row_of.get((number, rollout.sample_index))
            for number, group in enumerate(selection.groups)
            for rollout in group.rollouts
        ]
    return columns


def _group_count(examples: Sequence[Example]) -> int:
    return len({example.group for example in examples if example.role == "main"})
