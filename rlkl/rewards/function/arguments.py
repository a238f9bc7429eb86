"""The arguments of reward functions. In transit, pictures are encoded and draws are seeds; `opened` decodes them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

from rlkl.errors import RewardInputError
from rlkl.rewards.function.signature import Parameters, Unit, bind_arguments
from rlkl.types import Completion, Image, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Step, epoch and seed of the run."""

    step: int
    """Number of the step, from 1, as in ``metrics.jsonl``."""
    steps: int
    """Steps of the whole run."""
    epoch: float
    """Prompts drawn before this step, divided by the usable rows of the data."""
    seed: int
    """The recipe's seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All samples of one prompt."""

    prompt: str
    prompt_ids: tuple[int, ...]
    columns: Mapping[str, Any]
    images: tuple[Any, ...]
    completions: tuple[str, ...]
    completion_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.completions)


class UnknownIds(tuple[int, ...]):
    """Token ids of a text that was not tokenized; a function that reads them gets `MissingIds`."""

    __slots__ = ()


class MissingIds(Sequence[Any]):
    """Placeholder for missing token ids; any use raises."""

    def _refuse(self, *_: object) -> NoReturn:
        raise RewardInputError(
            "there are no token ids here, for there is only text: give --tokenizer PATH, or a column 'completion_ids' "
            "for those of completions"
        )

    __len__ = __getitem__ = __iter__ = __contains__ = __eq__ = __array__ = _refuse  # pyright: ignore[reportAssignmentType]
    __hash__ = None  # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion to be scored."""

    prompt: Prompt
    completion: Completion
    rng_seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a reward function, ready to travel to another process."""

    unit: Unit
    arguments: Mapping[str, Any]
    tokens: tuple[int, ...]
    """The number of completion tokens of each sample."""


def make_call(parameters: Parameters, samples: Sequence[Sample], state: State) -> Call:
    """Make the call for one sample, some samples (a batch function), or all samples of a prompt (a group function).

    Raises:
        RewardInputError: a required parameter has no value in one of the samples.
    """
    unit = parameters.unit
    if unit == "batch":
        arguments = _batch_arguments(parameters, samples, state)
    else:
        available = _of_group(samples) if unit == "group" else _of_sample(samples[0])
        arguments = bind_arguments(parameters, available | {"state": state})
    return Call(unit=unit, arguments=arguments, tokens=tuple(len(s.completion.token_ids) for s in samples))


def _ids(token_ids: tuple[int, ...]) -> Any:
    return MissingIds() if isinstance(token_ids, UnknownIds) else token_ids


def _of_sample(sample: Sample) -> dict[str, Any]:
    prompt, completion = sample.prompt, sample.completion
    return {
        **prompt.columns,
        "prompt": prompt.text,
        "prompt_ids": _ids(prompt.token_ids),
        "images": prompt.images,
        "completion": completion.text,
        "completion_ids": _ids(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "rng": sample.rng_seed,
    }


def _of_group(samples: Sequence[Sample]) -> dict[str, Any]:
    prompt = samples[0].prompt
    completions = tuple(sample.completion.text for sample in samples)
    ids = [sample.completion.token_ids for sample in samples]
    unknown = any(isinstance(each, UnknownIds) for each in ids)
    group = Group(
        prompt=prompt.text,
        prompt_ids=_ids(prompt.token_ids),
        columns=prompt.columns,
        images=prompt.images,
        completions=completions,
        completion_ids=cast(Any, MissingIds()) if unknown else tuple(ids),
    )
    return {
        **prompt.columns,
        "prompt": prompt.text,
        "prompt_ids": _ids(prompt.token_ids),
        "images": prompt.images,
        "completions": list(completions),
        "completion_ids": MissingIds() if unknown else ids,
        "finish_reason": [sample.completion.finish_reason for sample in samples],
        "rng": samples[0].rng_seed,
        "group": group,
    }


def _batch_arguments(parameters: Parameters, samples: Sequence[Sample], state: State) -> dict[str, Any]:
    """Return lists, one entry a sample. If some rows lack a column, the parameter's default fills it."""
    rows = []
    for sample in samples:
        row = _of_sample(sample)
        row["prompts"], row["completions"] = row.pop("prompt"), row.pop("completion")
        rows.append(bind_arguments(parameters, row | {"state": None}))
    names = dict.fromkeys(name for row in rows for name in row)
    lists = {name: [row.get(name, parameters.optional.get(name)) for row in rows] for name in names}
    return lists | ({"state": state} if "state" in lists else {})


def opened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Open the arguments for the function: pictures become PIL images, draws become `random.Random`."""
    usable = dict(arguments)
    if "images" in usable:
        usable["images"] = _pictures(usable["images"])
    if isinstance(usable.get("group"), Group):
        usable["group"] = replace(usable["group"], images=_pictures(usable["group"].images))
    if isinstance(seeds := usable.get("rng"), list):
        usable["rng"] = [random.Random(seed) for seed in seeds]
    elif isinstance(seeds, int):
        usable["rng"] = random.Random(seeds)
    return usable


def _pictures(value: Any) -> Any:
    if isinstance(value, Image):
        from rlkl.data.images import open_image

        return open_image(value)
    return type(value)(_pictures(part) for part in value)
