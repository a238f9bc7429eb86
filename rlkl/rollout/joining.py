"""Weights by group for an engine whose model is in the worker's own process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from rlkl.weights.buckets import Manifest
from rlkl.weights.group import Arrival, Place, PublishGroup, arrive, raise_first


class JoinsGroup:
    """Takes in weights by group with `load_weights`, bucket by bucket: a base class for engines."""

    _publish_group: PublishGroup | None = None

    @abstractmethod
    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> frozenset[str]: ...

    @property
    def processes(self) -> int:
        """This process alone."""
        return 1

    def join_group(self, place: Place) -> None:
        """See `GroupEngine.join_group`."""
        if self._publish_group is not None:
            self._publish_group.leave()
        self._publish_group = PublishGroup(place, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def receive_from_group(self, manifest: Manifest) -> list[Arrival]:
        """See `GroupEngine.receive_from_group`."""
        assert self._publish_group is not None
        arrival = arrive(self._publish_group, manifest, self.load_weights)
        raise_first([] if arrival.problem is None else [arrival.problem])
        return [arrival]
