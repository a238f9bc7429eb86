"""Build the frozen models, and keep those that follow the policy: `Average` and `Lagged`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rlkl.learner.average import Average
from rlkl.learner.lagged import Lagged
from rlkl.learner.placing import place
from rlkl.learner.signals import Scorer
from rlkl.models.followers import OtherAdapter
from rlkl.models.policy import Policy, build_reference
from rlkl.signals import AVERAGE, FOLLOWERS, LAGGED
from rlkl.updates.base_settings import RuleSettings


def build_frozen(
    paths: Mapping[str, str | None],
    policy: Policy,
    path: str,
    mesh: DeviceMesh | None,
    *,
    loading: torch.device,
    device: torch.device,
) -> dict[str, Scorer]:
    """Build the frozen models by their names, first on ``loading``, then on ``device``.

    ``paths``: None for the policy as it was before training. It was loaded from ``path``. Under LoRA a model that
    follows the policy costs the adapters alone.
    """
    found: dict[str, Scorer] = {}
    for name, other in paths.items():
        has_adapters = name in FOLLOWERS and policy.adapter is not None
        found[name] = (
            OtherAdapter(policy, name)
            if has_adapters
            else build_reference(policy, path, other, device=loading, mesh=mesh)
        )
        place(found[name], mesh, device)
    return found


class Followers:
    """Passes each call on to both. Those that the recipe does not ask for hold nothing and do nothing."""

    def __init__(self, frozen: Mapping[str, Scorer], update: RuleSettings) -> None:
        """Take the frozen models by name, and the settings of the rule, whose terms have the decay and the lag."""
        self.average = Average(frozen.get(AVERAGE), update.average_decay)
        self.lagged = Lagged(frozen.get(LAGGED), update.lag)

    def begin(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Start as the parameters are, which are given by name; of a shard, this rank's part."""
        self.average.begin(trained)
        self.lagged.begin(trained)

    def follow(self, trained: Mapping[str, nn.Parameter], steps: int) -> None:
        """Follow the parameters. Call it after each optimizer step with the number of steps made."""
        self.average.follow(trained)
        self.lagged.follow(trained, steps)

    def write_back(self) -> None:
        """Bring the frozen models to weights that were set from outside."""
        self.average.write_back()
        self.lagged.write_back()

    def release(self) -> None:
        """Free all weights. No optimizer step can follow."""
        self.average.release()
        self.lagged.release()

    def on_disk(self, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return all weights by their names in a checkpoint; as shards if the policy's ``parameters`` are shards."""
        return self.average.on_disk(parameters) | self.lagged.on_disk(parameters)

    def check(self, saved: Collection[str], path: Path) -> None:
        """Raise `CheckpointError` if the saved state, by the names of its tensors, lacks one that is kept."""
        self.average.check(saved, path)
        self.lagged.check(saved, path)
