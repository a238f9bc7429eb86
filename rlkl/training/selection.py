"""Choosing what a step trains on: rounds of prompts until the rule has enough groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkl.data.prompts import PromptSource
from rlkl.recipe import Recipe
from rlkl.rollout.collect import Draw
from rlkl.training.clock import Clock
from rlkl.training.collect import Collector, SampledGroups
from rlkl.training.hands import Sampler
from rlkl.types import Example, RolloutGroup, Selection
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.filters import filter_groups

Columns = dict[str, list[Sequence[float] | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Draws prompts, has completions collected, and lets the rule select."""

    recipe: Recipe
    source: PromptSource
    collector: Collector
    update: PolicyUpdate

    @property
    def sampler(self) -> Sampler:
        """The sampler of the collector; stored pairs have none."""
        assert isinstance(self.collector, SampledGroups), "nothing is sampled in this run"
        return self.collector.sampler

    def collect(self, position: int, *, step: int, clock: Clock) -> Selection:
        """Collect rounds of prompts from ``position`` on until the rule has selected a full step of groups.

        There are at most ``rollout.max_rounds`` rounds; a step may then be short, or empty.
        """
        wanted = self.recipe.rollout.prompts_per_step
        groups: list[RolloutGroup] = []
        examples: list[Example] = []
        rounds = 0
        while rounds < self.recipe.rollout.max_rounds and _group_count(examples) < wanted:
            rounds += 1
            found = self.collector.groups(self.draw(position, wanted), step=step, clock=clock)
            self.source.observe(found)
            groups += found
            position += wanted
            examples = self._examples(groups)
        return self._selection(groups, examples, step=step, rounds=rounds, position=position)

    def select(self, groups: Sequence[RolloutGroup], *, step: int, rounds: int, position: int) -> Selection:
        """Select from groups that have been collected before."""
        self.source.observe(groups)
        return self._selection(groups, self._examples(groups), step=step, rounds=rounds, position=position)

    def accepts(self, group: RolloutGroup) -> bool:
        """Return whether the rule trains on a group."""
        return _group_count(self._examples([group])) > 0

    def draw(self, position: int, count: int) -> list[Draw]:
        """Return the prompts of the draws from ``position`` on."""
        prompts = self.source.draw(position, count)
        return [Draw(prompt=prompt, position=position + n) for n, prompt in enumerate(prompts)]

    def _examples(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        return self.update.select(filter_groups([group.scored() for group in groups], self.recipe.update.filter))

    def _selection(
        self, groups: Sequence[RolloutGroup], examples: list[Example], *, step: int, rounds: int, position: int
    ) -> Selection:
        """Keep the examples of the first groups that fill a step, and compute the metrics of the selection."""
        wanted = self.recipe.rollout.prompts_per_step
        kept = sorted({example.group for example in examples if example.role == "main"})[:wanted]
        examples = [example for example in examples if example.role != "main" or example.group in kept]
        metrics = self.collector.metrics(groups, step=step)
        metrics["rollout/rounds"] = float(rounds)
        selectable = sum(rollout.scored for group in groups for rollout in group.rollouts)
        selected = sum(example.role == "main" for example in examples)
        metrics["update/selected_fraction"] = selected / max(selectable, 1)
        metrics["data/epoch"] = position / len(self.source)
        metrics |= self.source.metrics(groups)
        if self.recipe.rollout.workers:
            metrics |= staleness_metrics(examples, step=step)
        return Selection(
            groups=groups,
            examples=examples,
            left_out=left_out(groups, examples),
            metrics=metrics,
            position=position,
        )


def staleness_metrics(examples: Sequence[Example], *, step: int) -> dict[str, float]:
    """Return how many versions behind the learner's the weights were that sampled the tokens of a step."""
    ages = [step - version for example in examples for version in example.rollout.token_versions]
    return {
        "rollout/staleness_mean": sum(ages) / max(len(ages), 1),
        "rollout/staleness_max": float(max(ages, default=0)),
    }


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
    """Arrange per-token columns by rollout: one entry a rollout, None if the rule does not train on it.

    Sequences of other roles, such as replay, are not among the step's rollouts.
    """
    columns: Columns = {}
    for name, rows in learned.items():
        row_of = {
            (example.group, example.rollout.sample_index): row
            for example, row in zip(selection.examples, rows, strict=True)
            if example.role == "main"
        }
        columns[name] = [
            row_of.get((number, rollout.sample_index))
            for number, group in enumerate(selection.groups)
            for rollout in group.rollouts
        ]
    return columns


def _group_count(examples: Sequence[Example]) -> int:
    return len({example.group for example in examples if example.role == "main"})
