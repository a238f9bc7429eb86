"""Check the columns that a reward function needs on the rows of the data, without calling the function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rlkl.errors import RewardInputError
from rlkl.rewards.function.arguments import Sample, State, make_call
from rlkl.rewards.function.signature import Parameters
from rlkl.types import Completion, Prompt

_OF_A_SAMPLE = {"prompt", "prompt_ids", "images", "completion", "completion_ids", "finish_reason", "rng", "state"}
_NO_COLUMNS = _OF_A_SAMPLE | {"prompts", "completions", "group"}
"""Arguments whose values do not come from the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """A parameter that some rows cannot fill."""

    column: str
    rows: int
    """Rows without a value."""
    total: int
    first: str
    """The id of the first of these rows."""

    def __str__(self) -> str:
        return (
            f"its argument '{self.column}' is missing or null in {self.rows} of {self.total} rows (first: prompt "
            f"{self.first})"
        )


def check_names(name: str, parameters: Parameters, prompts: Sequence[Prompt]) -> None:
    """Raise `RewardInputError` for a parameter without a default that no row can fill. ``name``: of the reward."""
    nothing = Completion(token_ids=(), logprobs=(), finish_reason="stop")
    columns = {column: None for prompt in prompts for column in prompt.columns}
    sample = Sample(prompt=replace(prompts[0], columns=columns), completion=nothing, rng_seed=0)
    try:
        make_call(parameters, [sample], State(step=1, steps=1, epoch=0.0, seed=0))
    except RewardInputError as error:
        raise RewardInputError(f"reward '{name}', prompt {prompts[0].id}: {error}") from error


def lacks(parameters: Parameters, prompts: Sequence[Prompt]) -> Iterator[Lack]:
    """Yield the parameters without a default that some rows cannot fill; null counts unless its annotation allows it.

    A column that only the code reads, such as ``group.columns["answer"]``, cannot be checked.
    """
    for column in sorted(parameters.required - _NO_COLUMNS):
        if column in parameters.nullable:
            without = [prompt.id for prompt in prompts if column not in prompt.columns]
        else:
            without = [prompt.id for prompt in prompts if prompt.columns.get(column) is None]
        if without:
            yield Lack(column=column, rows=len(without), total=len(prompts), first=without[0])
