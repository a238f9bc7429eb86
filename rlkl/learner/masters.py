"""Float32 copies of trained parameters for a model that computes in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn


class Masters:
    """The parameters that the optimizer moves.

    A float32 parameter is moved itself. A bfloat16 parameter has a float32 master: each backward pass adds its gradient
    to the master's gradient in float32, the optimizer moves the master, and `write_back` rounds it into the model. So
    the model holds at all times the bits that are published and exported, and a step smaller than bfloat16 can hold
    still counts.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = {name: _master(parameter) for name, parameter in parameters.items()}
        """The float32 parameters, under the names of the model's parameters."""
        pairs = zip(parameters.values(), self.parameters.values(), strict=True)
        self._rounded = [(parameter, master) for parameter, master in pairs if master is not parameter]
        for parameter, master in self._rounded:
            parameter.register_post_accumulate_grad_hook(partial(_pass_on_gradient, master))

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model."""
        for parameter, master in self._rounded:
            parameter.copy_(master)

    def release(self) -> None:
        """Free the masters and all gradients. No optimizer step can follow."""
        for parameter in self.parameters.values():
            parameter.grad = None
        for _, master in self._rounded:
            master.data = master.data.new_empty(0)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _pass_on_gradient(master: nn.Parameter, parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.float()
    else:
        master.grad += parameter.grad
    parameter.grad = None
