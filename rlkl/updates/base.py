"""The one interface behind which every rule lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.types import Example, RolloutGroup
from rlkl.updates.settings import CorruptionSettings, RuleSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a head must know of the policy beside which it stands."""

    path: str
    """Where the policy's weights came from: a separate critic starts from them too."""
    hidden_size: int
    layers: int
    seed: int
    """For the heads' initial weights."""
    dtype: torch.dtype = torch.float32
    """In which the policy computes."""


class HeadInput(Enum):
    """What the learner feeds to a rule's heads, at the place that predicts the token (so never the token itself)."""

    POLICY_HIDDEN = "policy_hidden"
    """``[B, T, H]``: the policy's last hidden states; gradient flows on into the policy."""
    REFERENCE_LAYERS = "reference_layers"
    """``[B, T, L, H]``: the frozen reference's hidden states after each block, the last after the final norm."""
    TOKENS = "tokens"
    """``[B, T]``: the token ids, for a head with a backbone of its own. It must shift by itself."""


class Heads(nn.Module, ABC):
    """Trainable modules that belong to a rule. The learner optimises, saves and restores them with the policy."""

    reads: ClassVar[HeadInput]
    weight_decay: float = 0.0
    """AdamW's weight decay on the heads' matrices; their biases and norms have none."""
    lr_scale: float = 1.0
    """The heads' learning rate as a multiple of the policy's."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, K]`` float32 from what `reads` names."""

    def redraw(self, said_NK: Tensor) -> bool:
        """Before the first optimizer step: draw bad first weights anew, seeing what they say on the first batch.

        True asks to be shown what the new ones say. Called only for a rule that needs ``Signal.PROXIMAL_HEADS``.
        """
        return False


class PolicyUpdate(ABC):
    """How rollouts become a loss.

    The learner calls, in this order: `build_heads` once; then per step `select` on the scored groups, `credit` on the
    packed batch (frozen signals already in ``batch.signals``), `batch_metrics` on what that gave, `loss` on each
    micro-batch, and `observe`.
    A rule holds its settings, and at most a few numbers that `state` hands out: no weights, no device.
    """

    rule: ClassVar[str]
    """The name in the recipe (``update.rule``), for messages; the class's own name unless it says otherwise."""
    Settings: ClassVar[type[RuleSettings]] = RuleSettings
    """The keys of ``update`` for a rule from outside the package; it is constructed as ``Rule(settings)``."""

    def __init_subclass__(cls) -> None:
        cls.rule = cls.__dict__.get("rule", cls.__name__)

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """The signals that `credit` and `loss` read."""

    @property
    def kl_top_k(self) -> int | None:
        """Exact KLs over the reference's k likeliest tokens and one bucket for the rest; None: the whole vocabulary."""
        return None

    @property
    def recomputed(self) -> frozenset[Signal]:
        """Of the frozen signals in `needs`, those to compute anew in each pass, with gradient."""
        return frozenset()

    @property
    def corruption(self) -> CorruptionSettings | None:
        """How to corrupt pictures for ``Signal.CORRUPTED_LOGPROBS``."""
        return None

    def check_model(self, *, is_multimodal: bool) -> None:  # noqa: B027 - most rules train every model
        """Raise `RecipeError` for a model that the rule cannot train. Called at set-up, before anything is loaded."""

    def build_heads(self, model: ModelShape) -> Heads | None:
        """Trainable modules beside the policy (a value head, mask heads); their output is ``Signal.HEADS``."""
        return None

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        """Which rollouts train. Pure Python; all of them unless a rule says otherwise."""
        return [
            Example(prompt=group.prompt, rollout=rollout, group=number)
            for number, group in enumerate(groups)
            for rollout in group.rollouts
        ]

    def credit(self, batch: Batch) -> Batch:
        """Fill advantages (or returns) from rewards and frozen signals, over the whole batch. No gradient."""
        return batch

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        """Metrics of a credited batch that are no sums over its micro-batches (an explained variance)."""
        return {}

    def token_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """Per-token numbers ``[B, T]`` of a credited batch that belong beside its samples (masks), by column name."""
        return {}

    def observe(self, metrics: Mapping[str, float]) -> None:  # noqa: B027 - most rules have nothing to note
        """Take note of a finished step's metrics (an adaptive KL coefficient does)."""

    def alarms(self, records: Sequence[Mapping[str, float]]) -> Mapping[str, str]:
        """Name -> warning, for whatever in a run's step records (oldest first) speaks of trouble with this rule.

        Asked after each step, with the records from the run's first step on; the loop tells each once when it sets in.
        """
        return {}

    def state(self) -> dict[str, float]:
        """What a resumed run must know beside the settings."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:  # noqa: B027 - most rules have no state
        """Take up what `state` handed out."""

    @abstractmethod
    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """The loss of one micro-batch. ``signals`` holds these rows' frozen signals and the differentiable ones."""
