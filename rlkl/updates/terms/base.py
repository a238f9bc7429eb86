"""The interface of a loss term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rlkl.batch import Batch
from rlkl.signals import Signal, Signals
from rlkl.types import Role
from rlkl.updates.terms.added import AddsSequences
from rlkl.updates.terms.settings import TermSettings

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from rlkl.updates.base import ModelShape


class Term(AddsSequences, ABC):
    """A part of the loss that can be added to any rule. It runs in the learner, holds no weights and no device.

    Its loss is a sum over the response tokens of a micro-batch, divided by ``batch.denominators``. So micro-batches and
    ranks add up. Call `rlkl.functional.reduce.masked` on each signal before any arithmetic.
    """

    Settings: ClassVar[type[TermSettings]] = TermSettings
    """The keys of a custom term in ``update.terms``; the term is constructed as ``Term(settings)``."""

    role: ClassVar[Role] = "main"
    """The role of the sequences that the term trains on."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def begin(self, model: ModelShape) -> None:
        """Read what the term needs of the policy's folder. Called once in the learner, before the first step."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """The signals that `loss` reads."""

    @property
    def own_view(self) -> str | None:
        """The name of a view of the pictures that `change_picture` makes; None: the term makes none."""
        return None

    def change_picture(self, picture: Picture, *, seed: int) -> Picture:
        """Return the picture as the model sees it in `own_view`; draw with ``seed`` alone."""
        raise NotImplementedError(f"the term {type(self).__name__} names the view {self.own_view}: change the picture")

    @abstractmethod
    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        """Return the term of one micro-batch, a differentiable scalar, coefficient included."""

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return detached sums over the micro-batch, logged as ``term/<name>_<key>``."""
        return {}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a finished step: those of `metrics` under their own keys, and ``sequences``."""

    def state(self) -> dict[str, float]:
        """Return the numbers that a resumed run needs beside the settings."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore the numbers that `state` returned."""
