"""The interface of a loss term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rlkl.batch import Batch
from rlkl.signals import Signal, Signals
from rlkl.types import Example, Role
from rlkl.updates.terms.settings import TermSettings

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from rlkl.updates.base import ModelShape


class Term(ABC):
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

    def begin(self, model: ModelShape) -> None:  # noqa: B027 - most terms need nothing of it
        """Read what the term needs of the policy's folder. Called once in the learner, before the first step."""

    def replayed(self, *, seed: int, step: int, first_group: int) -> list[Example]:
        """Return sequences of the role ``replay`` to add to a step; their groups count from ``first_group``.

        Called in the learner once a step. The result may depend on nothing but the arguments, so that all ranks, and a
        resumed run, get the same.
        """
        return []

    def viewed(self, examples: Sequence[Example], first_group: int) -> list[Example]:
        """Return sequences of the role ``view`` to add to a step: responses of ``examples`` after another wording.

        Their groups count from ``first_group``. Called in the learner once a step.
        """
        return []

    @property
    def reads_replay(self) -> bool:
        """Whether `begin_replay` reads the metrics of the replayed sequences at the start of a step."""
        return False

    def begin_replay(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Take `metrics` of all replayed sequences with the weights at the start of the step; return what to log.

        Called before the step's first `loss` if `reads_replay`. It costs a forward pass over these sequences.
        """
        return {}

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

    def observe(self, metrics: Mapping[str, float]) -> None:  # noqa: B027 - most terms have no state
        """Note the metrics of a finished step: those of `metrics` under their own keys, and ``sequences``."""

    def state(self) -> dict[str, float]:
        """Return the numbers that a resumed run needs beside the settings."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:  # noqa: B027 - most terms have no state
        """Restore the numbers that `state` returned."""
