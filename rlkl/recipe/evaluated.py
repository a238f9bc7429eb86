"""The part of a recipe that an evaluation reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkl.errors import InputError, did_you_mean

NO_REFERENCE = "none"
"""Leaves the KL out, in the place of a reference model."""

SECTIONS = ("seed", "steps", "model", "data", "rollout", "rewards", "eval", "cluster")
_OF_MODEL = ("path", "reference", "dtype")
_OF_ROLLOUT = ("engine", "threads", "max_new_tokens", "stop", "tensor_parallel", "vllm")
_OF_TRAINING = ("chosen_column", "rejected_column", "sampler", "curriculum")
"""Keys of the data. Prompts of preference pairs are prompts too, and an evaluation takes every row once."""


def check_read(keys: Sequence[str], *, reader: str) -> None:
    """Raise `InputError` for a key, such as ``learner.lr``, that has no effect on an evaluation.

    ``reader``: what the keys were given to, in the message.
    """
    for key in keys:
        section, _, rest = key.partition(".")
        section = section.partition("[")[0]
        known = {"model": _OF_MODEL, "rollout": _OF_ROLLOUT}.get(section)
        name = rest.partition(".")[0]
        if section not in SECTIONS:
            raise InputError(f"{key} does nothing in {reader}; {did_you_mean(section, SECTIONS)}")
        if known is not None and name and name not in known:
            raise InputError(f"{key} does nothing in {reader}; of {section}, {did_you_mean(name, known)}")


def read_by_evaluation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe without what an evaluation does not read; it has ``rollout`` and ``data``."""
    kept = {name: value for name, value in values.items() if name in SECTIONS}
    kept["rollout"] = {name: value for name, value in values["rollout"].items() if name in _OF_ROLLOUT}
    kept["data"] = {name: value for name, value in values["data"].items() if name not in _OF_TRAINING}
    return kept
