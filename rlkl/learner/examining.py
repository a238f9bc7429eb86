"""Make a step again that had a number that is not finite, and find the sequences that it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlkl.errors import NumericalFault
from rlkl.learner.learner import Learner
from rlkl.types import Example, Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceFinding:
    """A sequence under the weights before the step, at temperature 1."""

    example: Example
    lowest_logprob: float
    """The lowest log-prob among its completion's tokens, in nats; NaN if one of them is NaN."""
    lowest_token: int
    """Number of that token in the completion, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFinding:
    """The gradient of one prompt's sequences alone."""

    group: int
    loss: float | None
    """None: the fault is here."""
    grad_norm: float | None
    problem: str
    sequences: Sequence[SequenceFinding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """A step made again."""

    problem: str
    """The fault, as it came again; empty if the step passes."""
    groups: Sequence[GroupFinding]
    """Empty if the batch could not even be prepared."""


def examine(learner: Learner, examples: Sequence[Example], left_out: Sequence[Example], *, step: int) -> Examination:
    """Compute each group's gradient alone, then make the whole step. ``learner`` is as it was before the step."""
    try:
        learner.prepare(examples, left_out, step=step)
    except NumericalFault as error:
        return Examination(problem=str(error), groups=())
    groups = [_group(learner, examples, group) for group in sorted({example.group for example in examples})]
    try:
        learner.step(step)
    except NumericalFault as error:
        return Examination(problem=str(error), groups=groups)
    return Examination(problem="", groups=groups)


def _group(learner: Learner, examples: Sequence[Example], group: int) -> GroupFinding:
    rows = [row for row, example in enumerate(examples) if example.group == group]
    try:
        found = learner.try_rows(torch.tensor(rows))
        loss, norm, problem = found["loss/total"], found["optim/grad_norm"], ""
    except NumericalFault as error:
        loss, norm, problem = None, None, str(error)
    sequences = [_sequence(learner, examples[row]) for row in rows]
    return GroupFinding(group=group, loss=loss, grad_norm=norm, problem=problem, sequences=sequences)


def _sequence(learner: Learner, example: Example) -> SequenceFinding:
    prompt, completion = example.prompt, example.rollout.completion
    probe = Probe(token_ids=(*prompt.token_ids, *completion.token_ids), images=prompt.images)
    (logprobs,) = learner.probe([probe])
    own = logprobs[len(prompt.token_ids) - 1 :]
    lowest = min(range(len(own)), key=lambda token: (not math.isnan(own[token]), own[token]), default=0)
    value = own[lowest] if own else 0.0
    return SequenceFinding(example=example, lowest_logprob=value, lowest_token=lowest)
