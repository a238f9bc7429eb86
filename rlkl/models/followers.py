"""A frozen model that follows a LoRA policy: the policy itself with averaged or earlier adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rlkl.errors import RecipeError
from rlkl.models.policy import AdapterOff, Policy
from rlkl.models.sharding import decoder_layers, is_shard, local


class OtherAdapter(AdapterOff):
    """Runs the policy with other weights in the place of its adapters, and puts them back bit for bit."""

    def __init__(self, policy: Policy, name: str) -> None:
        """Start with the policy's own adapters. ``name`` is that of the frozen model, for messages."""
        super().__init__(policy)
        self._adapters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        _check_inside_layers(policy, self._adapters, name)
        self.weights = {one: local(p.detach()).float().clone() for one, p in self._adapters.items()}
        """The other weights by the parameters' names, float32; of a shard, this rank's part."""
        self._switched = self._with_weights

    @contextmanager
    def _with_weights(self) -> Iterator[None]:
        # The data, not the parameters, so that autograd takes no note of it: a backward pass may be to come.
        parts = {name: local(p.data) for name, p in self._adapters.items()}
        own = {name: part.clone() for name, part in parts.items()}
        try:
            _copy(self.weights, parts)
            yield
        finally:
            _copy(own, parts)


@torch.no_grad()
def _copy(values: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])


def _check_inside_layers(policy: Policy, adapters: dict[str, torch.nn.Parameter], name: str) -> None:
    """Refuse shards that stay gathered from one pass to the next: other weights could not take their place."""
    layers = decoder_layers(policy.model, policy.model.config)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = [one for one, p in adapters.items() if is_shard(p) and id(p) not in inside]
    if outside:
        raise RecipeError(
            f"the frozen model {name}, with learner.ranks > 1, needs adapters within the decoder layers, and this "
            f"recipe has others ({outside[0]}). Set model.freeze_vision=true, name other modules in "
            "model.lora.target_modules, or set learner.ranks=1"
        )
