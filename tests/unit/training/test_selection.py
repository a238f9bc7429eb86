"""Arranging what the learner returns by rollout."""

from __future__ import annotations

from dataclasses import replace

from rlkl.training.selection import token_columns
from rlkl.types import Example, Selection
from tests.builders import make_group


def test_numbers_a_token_are_those_of_the_steps_own_rollouts():
    """A replayed sequence may have the numbers of group and sample of one that was sampled in this step."""
    group = make_group("a", [0.0, 1.0])
    mine = Example(prompt=group.prompt, rollout=group.rollouts[1], group=0)
    examples = [mine, replace(mine, role="replay")]
    selection = Selection(groups=[group], examples=examples, left_out=[], metrics={})
    assert token_columns(selection, {"advantages": [(1.0,), (9.0,)]}) == {"advantages": [None, (1.0,)]}
