"""The float32 parameters that the optimizer moves, for a model that computes in bfloat16 or is sharded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from rlkl.models.sharding import is_shard, local, reshard


class Masters:
    """The parameters that the optimizer moves.

    A float32 parameter is moved itself. A bfloat16 parameter has a float32 master: each backward pass adds its gradient
    to the master's gradient in float32, the optimizer moves the master, and `write_back` rounds it into the model. So
    the model holds at all times the bits that are published and exported, and a step smaller than bfloat16 can hold
    still counts. The master of a sharded parameter is this rank's part of it, in the same memory.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], sharded: Sequence[nn.Module] = ()) -> None:
        """Make the masters. ``sharded``: the modules whose gathered weights are stale once a shard has moved."""
        self._modules = sharded
        self.parameters = {name: _master(parameter) for name, parameter in parameters.items()}
        """The float32 parameters, under the names of the model's parameters."""
        pairs = zip(parameters.values(), self.parameters.values(), strict=True)
        others = [(parameter, master) for parameter, master in pairs if master is not parameter]
        self._rounded = [pair for pair in others if not is_shard(pair[0])]
        self._shards = [pair for pair in others if is_shard(pair[0])]
        self.sharded = frozenset(name for name, parameter in parameters.items() if is_shard(parameter))
        """Names of the parameters whose other parts other ranks hold."""
        for parameter, master in self._rounded:
            parameter.register_post_accumulate_grad_hook(partial(_pass_on_gradient, master))

    def take_gradients(self) -> None:
        """Give the gradients of shards to their masters; the others have theirs."""
        for parameter, master in self._shards:
            master.grad = None if parameter.grad is None else local(parameter.grad)

    def drop_gradients(self) -> None:
        """Drop all gradients."""
        for parameter in (*self.parameters.values(), *(parameter for parameter, _ in self._shards)):
            parameter.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model; the next pass gathers shards anew."""
        for parameter, master in self._rounded:
            parameter.copy_(master)
        for module in self._modules:
            reshard(module)

    def release(self) -> None:
        """Free the masters and all gradients. No optimizer step can follow."""
        self.drop_gradients()
        for _, master in self._rounded:
            master.data = master.data.new_empty(0)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if is_shard(parameter):
        return nn.Parameter(local(parameter.detach()))
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _pass_on_gradient(master: nn.Parameter, parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.float()
    else:
        master.grad += parameter.grad
    parameter.grad = None
