from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rlkl.errors import EnvironmentProblem, MissingSignalError
from rlkl.models.scattering import _portable, layout_of, take_layout


class Local(Exception):
    """An error that cannot be built from its message, as those of some libraries."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"{reason} ({number})")


def model(*, bias: bool = True, tied: bool = True) -> Any:
    made = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=bias)})
    made.register_buffer("scale", torch.ones((), dtype=torch.float64), persistent=False)
    if tied:
        made["head"].weight = made["embed"].weight
    made["embed"].weight.requires_grad_(False)
    return made


@pytest.mark.parametrize("tied", [True, False])
def test_a_layout_brings_ties_precisions_and_frozen_parameters_with_it(tied: bool):
    wanted = model(tied=tied).to(torch.bfloat16)
    other = model(tied=not tied)

    take_layout(other, layout_of(wanted))

    assert layout_of(other) == layout_of(wanted)
    assert (other["embed"].weight is other["head"].weight) is tied
    assert all(tensor.is_meta for tensor in (*other.parameters(), *other.buffers()))
    assert other.scale.dtype == wanted.scale.dtype
    assert isinstance(other["head"].bias, nn.Parameter)


def test_a_model_with_other_tensors_is_refused():
    with pytest.raises(EnvironmentProblem, match=r"built different models .*they differ in head\.bias \(1 tensors\)"):
        take_layout(model(bias=False), layout_of(model()))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (EnvironmentProblem("no"), EnvironmentProblem, "no"),
        (MissingSignalError("grpo", "x"), MissingSignalError, "update rule 'grpo' needs the signal x"),
        (Local(3, "torn"), RuntimeError, "Local: torn (3)"),
    ],
)
def test_an_error_reaches_the_other_ranks_with_its_message(error: Exception, kind: type[Exception], message: str):
    sent = _portable(error)
    assert type(sent) is kind
    assert message in str(sent)
