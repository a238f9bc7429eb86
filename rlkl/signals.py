"""Signals: the per-token quantities ``[B, T]`` that a rule or a term asks the learner for.

A signal is a value. All that the learner must know follows from it: whether it has a gradient, which frozen model it
needs, and whether it is computed once a step or in each pass. Signals are in nats, float32, zero outside the response.

    Signal("logprobs")                                    log pi(token), current weights, with gradient
    Signal("logprobs", moment="step_start")               the same with the weights at the start of the step
    Signal("logprobs", "teacher", moment="step_start")    log-probs of the frozen model that the recipe calls teacher
    Signal("kl_to_policy", "teacher", top_k=64)           KL(teacher || policy) over 64 tokens and a tail, with gradient
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlkl.errors import MissingSignalError
from rlkl.quantities import Divergence, Quantity, VocabularyMask

CLEAN = "clean"
"""The view of the prompt's own pictures."""

Moment = Literal["live", "step_start"]
"""live: with the current weights, in each pass, with gradient. step_start: once a step, without gradient."""

POLICY = "policy"
REFERENCE = "reference"
AVERAGE = "average"
"""The frozen model that is a moving average of the policy's weights."""
LAGGED = "lagged"
"""The frozen model that is the policy of some optimizer steps ago."""
FOLLOWERS = (AVERAGE, LAGGED)
"""The frozen models that follow the policy."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A per-token quantity.

    ``model``: ``policy``, ``reference``, ``average``, ``lagged``, or a name in the recipe's ``models``.
    """

    quantity: Quantity
    model: str = POLICY
    view: str = CLEAN
    """The pictures that the model sees: the prompt's own, or the changed copies that the rule makes under this name."""
    moment: Moment = "live"
    top_k: int | None = None
    """For KLs: the frozen model's likeliest tokens to compare on, and one bucket for all others; None: the vocabulary,
    or the rule's `kl_top_k`."""
    tokens: tuple[int, ...] = ()
    """For answers: their token ids."""
    by: Divergence | None = None
    """For a divergence: the object of `rlkl.functional.divergences` that computes it."""
    vocabulary: VocabularyMask | None = None
    """For KLs: the token ids that count; None: all."""

    POLICY_LOGPROBS: ClassVar[Signal]
    """log pi(token), current weights, with gradient."""
    POLICY_ENTROPY: ClassVar[Signal]
    """Entropy of the policy's next-token distribution over the full vocabulary, with gradient."""
    PROXIMAL_LOGPROBS: ClassVar[Signal]
    """log pi(token) with the weights at the start of the step, frozen."""
    REFERENCE_LOGPROBS: ClassVar[Signal]
    """log pi_ref(token), frozen."""
    KL_REFERENCE_TO_POLICY: ClassVar[Signal]
    """KL(reference || policy) of the next-token distributions, with gradient to the policy."""
    KL_POLICY_TO_REFERENCE: ClassVar[Signal]
    """KL(policy || reference) of the next-token distributions, with gradient to the policy."""
    CORRUPTED_LOGPROBS: ClassVar[Signal]
    """log pi(token) given the corrupted image, frozen at the start of the step."""
    HEADS: ClassVar[Signal]
    """``[B, T, K]``: the output of the rule's own heads at each token (values, masks), with gradient."""
    PROXIMAL_HEADS: ClassVar[Signal]
    """``[B, T, K]``: the heads' output at the start of the step, frozen."""

    @property
    def is_live(self) -> bool:
        """Whether it is computed in each pass, with gradient."""
        return self.moment == "live"

    @property
    def is_kl(self) -> bool:
        """Whether it compares the next-token distributions of policy and frozen model."""
        return self.quantity in ("kl_to_policy", "kl_from_policy")

    @property
    def is_comparison(self) -> bool:
        """Whether it needs the logits of policy and frozen model at one time."""
        return self.is_kl or self.quantity == "cauchy_schwarz"

    @property
    def frozen_model(self) -> str | None:
        """The frozen model that the learner must keep for it; None: it needs the policy alone."""
        return None if self.model == POLICY else self.model

    @property
    def name(self) -> str:
        """The name of its constant, or a description."""
        if self in _NAMES:
            return _NAMES[self]
        parts = [self.quantity, f"model={self.model}", f"view={self.view}", f"moment={self.moment}"]
        parts += [f"tokens={self.tokens}"] * bool(self.tokens) + [f"by={self.by}"] * (self.by is not None)
        parts += [f"vocabulary={self.vocabulary}"] * (self.vocabulary is not None)
        return f"Signal({', '.join(parts)})"


Signal.POLICY_LOGPROBS = Signal("logprobs")
Signal.POLICY_ENTROPY = Signal("entropy")
Signal.PROXIMAL_LOGPROBS = Signal("logprobs", moment="step_start")
Signal.REFERENCE_LOGPROBS = Signal("logprobs", REFERENCE, moment="step_start")
Signal.KL_REFERENCE_TO_POLICY = Signal("kl_to_policy", REFERENCE)
Signal.KL_POLICY_TO_REFERENCE = Signal("kl_from_policy", REFERENCE)
Signal.CORRUPTED_LOGPROBS = Signal("logprobs", view="corrupted", moment="step_start")
Signal.HEADS = Signal("heads")
Signal.PROXIMAL_HEADS = Signal("heads", moment="step_start")

_NAMES = {value: name for name, value in vars(Signal).items() if isinstance(value, Signal)}


def frozen_models(needs: frozenset[Signal]) -> frozenset[str]:
    """Return the names of the frozen models that some signals need."""
    return frozenset(signal.model for signal in needs if signal.frozen_model is not None)


class Signals:
    """Signals by value. To ask for an absent one raises `MissingSignalError`."""

    __slots__ = ("_rule", "_values")

    def __init__(self, values: Mapping[Signal, Tensor], rule: str = "?") -> None:
        self._values = dict(values)
        self._rule = rule

    def __getitem__(self, signal: Signal) -> Tensor:
        if signal not in self._values:
            raise MissingSignalError(self._rule, signal.name, "Add it to the rule's `needs`.")
        return self._values[signal]

    def __contains__(self, signal: Signal) -> bool:
        return signal in self._values

    def __iter__(self) -> Iterator[Signal]:
        return iter(self._values)

    def merged(self, other: Signals) -> Signals:
        """Return both sets of signals; ``other`` wins if both have one."""
        return Signals({**self._values, **other._values}, self._rule)

    def to(self, device: torch.device) -> Signals:
        """Return the signals on another device."""
        return Signals({name: x_BT.to(device, non_blocking=True) for name, x_BT in self._values.items()}, self._rule)

    def rows(self, rows_B: Tensor, length: int) -> Signals:
        """Return the signals of some sequences, cut to ``length`` tokens."""
        return Signals({name: x_BT[rows_B, :length] for name, x_BT in self._values.items()}, self._rule)
