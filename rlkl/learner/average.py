"""The frozen model ``average``: a moving average of the policy's weights (MESA in arXiv 2205.14083)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rlkl.errors import CheckpointError
from rlkl.learner.signals import Scorer
from rlkl.models.followers import OtherAdapter
from rlkl.models.language_model import LanguageModel
from rlkl.models.sharding import like, local, reshard

_POLICY, _ON_DISK = "policy.", "average."


def parts_of(model: Scorer | None, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the weights of a model that follows the policy, by the names of the policy's trained parameters.

    Of a shard, this rank's part. None has no weights.
    """
    names = [name for name in trained if name.startswith(_POLICY)]
    if model is None:
        return {}
    if isinstance(model, OtherAdapter):
        return {name: model.weights[name.removeprefix(_POLICY)] for name in names}
    assert isinstance(model, LanguageModel)
    weights = {name: local(p.detach()) for name, p in model.named_parameters()}
    return {name: weights[name.removeprefix(_POLICY)] for name in names}


class Average:
    """Exponential moving averages of the policy's trained weights, in float32, and the model that runs on them.

    Weights start as the policy's. In float32 the averages are the model's own weights; in bfloat16 they are rounded
    into it, since an average moves by less than bfloat16 can hold.
    """

    def __init__(self, model: Scorer | None = None, decay: float = 1.0) -> None:
        """Take the frozen model that runs on the averages; None keeps no average."""
        self._model, self._decay = model, decay
        self._rounded: list[tuple[Tensor, Tensor]] = []
        self.tensors: dict[str, Tensor] = {}
        """The averages, by the names of the parameters."""

    def begin(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Start the averages as the float32 parameters are, which are given by name; of a shard, this rank's part."""
        own = parts_of(self._model, trained)
        self.tensors = {name: x if x.dtype == torch.float32 else x.float() for name, x in own.items()}
        self._rounded = [(x, self.tensors[name]) for name, x in own.items() if x is not self.tensors[name]]

    @torch.no_grad()
    def follow(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Keep ``decay`` of each average, and take the rest from the parameters. Call it after an optimizer step."""
        for name, mean in self.tensors.items():
            mean.lerp_(trained[name], 1.0 - self._decay)
        self.write_back()

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the averages into the model; the next pass gathers shards anew."""
        for weight, mean in self._rounded:
            weight.copy_(mean)
        reshard(self._model)

    def release(self) -> None:
        """Free the averages. No optimizer step can follow."""
        self._model, self._rounded, self.tensors = None, [], {}

    def on_disk(self, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the averages by their names in a checkpoint; as shards if the policy's ``parameters`` are shards."""
        return {
            f"{_ON_DISK}{name}": mean if parameters is None else like(parameters[name], mean)
            for name, mean in self.tensors.items()
        }

    def check(self, saved: Iterable[str], path: Path) -> None:
        """Raise `CheckpointError` if an average is kept and the saved state, by the names of its tensors, has none."""
        if self.tensors and not any(name.startswith(_ON_DISK) for name in saved):
            raise CheckpointError(
                f"{path} holds no average of the policy, and update.terms of this recipe compares with one (to: "
                "average). Resume with the recipe of that run."
            )
