"""Move the weights of the frozen model ``average`` after the policy's (MESA in arXiv 2205.14083)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlkl.learner.signals import Scorer
from rlkl.models.average import AverageAdapter
from rlkl.models.language_model import LanguageModel
from rlkl.models.sharding import local, reshard

_POLICY = "policy."


class Average:
    """Exponential moving averages of the policy's trained weights, in float32, and the model that runs on them.

    Weights start as the policy's. In float32 the averages are the model's own weights; in bfloat16 they are rounded
    into it, since an average moves by less than bfloat16 can hold.
    """

    def __init__(self, model: Scorer, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        """``trained``: the float32 parameters by name; of a shard, this rank's part."""
        self._model, self._decay = model, decay
        self._rounded: list[tuple[Tensor, Tensor]] = []
        names = [name for name in trained if name.startswith(_POLICY)]
        if isinstance(model, AverageAdapter):
            self.tensors = {name: model.means[name.removeprefix(_POLICY)] for name in names}
            """The averages, by the names of the parameters."""
            return
        assert isinstance(model, LanguageModel)
        weights = {name: local(p.detach()) for name, p in model.named_parameters()}
        own = {name: weights[name.removeprefix(_POLICY)] for name in names}
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
