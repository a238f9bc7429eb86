"""The one interface behind which every rule lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rlkl.batch import Batch, LossOutput
from rlkl.signals import REFERENCE, Signal, Signals
from rlkl.types import Example, RolloutGroup
from rlkl.updates.added import AddsSequences
from rlkl.updates.settings import RuleSettings

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    Attention = Callable[[Picture], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Properties of the policy that the heads of a rule are built for."""

    path: str
    """The folder or name of the policy's weights: a separate critic starts from them, too."""
    hidden_size: int
    layers: int
    seed: int
    """For the heads' initial weights."""
    dtype: torch.dtype = torch.float32
    """The precision that the policy computes in."""
    loads: bool = True
    """Whether this process reads weights from disk. With several ranks only the first one does."""

    def load_copy(self) -> Any:
        """Load the policy's weights once more for heads with a backbone of their own, in evaluation mode.

        If this process does not load, the model has no weights (it is on the meta device) until the learner fills
        it. So keep it, or its ``base_model``, as an attribute of the heads, and do not use its weights before.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        settings: Any = {"dtype": self.dtype, "attn_implementation": "sdpa", "trust_remote_code": False}
        if self.loads:
            return AutoModelForCausalLM.from_pretrained(self.path, **settings)
        config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **settings)
        return model.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureContext:
    """The means by which a rule changes a picture."""

    key: tuple[int, str, int]
    """Number of the draw, prompt id, and number of the picture in its prompt: derive the seed of random changes from
    it and the rule's own seed, so that a resumed run repeats them."""
    attention: Attention
    """Measures how much the policy's vision tower looks at each part of a picture: ``[rows, columns]`` of a grid."""


class HeadInput(Enum):
    """The input of a rule's heads, at the position that predicts the token (so never the token itself)."""

    POLICY_HIDDEN = "policy_hidden"
    """``[B, T, H]``: the policy's last hidden states; gradient flows on into the policy."""
    REFERENCE_LAYERS = "reference_layers"
    """``[B, T, L, H]``: the frozen reference's hidden states after each block, the last after the final norm."""
    TOKENS = "tokens"
    """``[B, T]``: the token ids, for a head with its own backbone (`ModelShape.load_copy`). The head must shift its
    output by one.
    """
    LIKELIEST = "likeliest"
    """``[B, T, 2 K]``: the K = `Heads.likeliest` highest log-probs of the frozen model `Heads.beside`, then those of
    the policy, each sorted; no gradient flows on."""


class Heads(nn.Module, ABC):
    """Trainable modules that belong to a rule. The learner optimises, saves and restores them with the policy."""

    reads: ClassVar[HeadInput]
    weight_decay: float = 0.0
    """AdamW's weight decay on the heads' matrices; their biases and norms have none."""
    lr_scale: float = 1.0
    """The heads' learning rate as a multiple of the policy's."""
    beside: str = REFERENCE
    """With `HeadInput.LIKELIEST`: the frozen model, which the rule must compare with, too."""
    likeliest: int = 1

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Compute ``[B, T, K]`` float32 from what `reads` names."""

    def redraw(self, heads_NK: Tensor) -> bool:
        """Re-initialise dead heads before the first optimizer step; return True to be called with the new outputs.

        ``heads_NK`` is the output on the first batch. Called only for a rule that needs ``Signal.PROXIMAL_HEADS``.
        """
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCorrection:
    """The teacher's correction of samples before they are scored; `rlkl.training.correcting` has the steps."""

    teacher: str
    """A name of ``models``, among those that `PolicyUpdate.needs` names."""
    rounds: int
    """Corrections of a sample at most."""
    direction: Literal["policy_to_model", "model_to_policy"] = "policy_to_model"
    """The direction of the KL: the token of the largest one is corrected."""


class PolicyUpdate(AddsSequences, ABC):
    """Turns rollouts into a loss.

    One instance lives in the driver and one in the learner; they share nothing but the settings.

    - In the driver: `check_model` once; per step `select` on the scored groups; `alarms` on the records.
    - In the learner: `build_heads` once; per step `replayed`, `change_picture` for each picture and view, `credit` on
      the packed batch (frozen signals are in ``batch.signals``), `batch_metrics` and `token_columns` on the credited
      batch, `loss` on each micro-batch, and `observe`. `state` and `load_state` at checkpoints.

    So `select` and `alarms` must depend on nothing but the settings and their arguments. A rule holds its settings, and
    in the learner a few numbers that `state` returns: no weights, no device.
    """

    rule: ClassVar[str]
    """The name in the recipe (``update.rule``), for messages; the class's own name by default."""
    sees_all_roles: ClassVar[bool] = False
    """Whether `loss` gets sequences of all roles, not those of the role ``main`` alone."""
    seed: int = 0
    """The recipe's seed; derive the seed of each draw from it (`rlkl.seeds.derive_seed`)."""
    Settings: ClassVar[type[RuleSettings]] = RuleSettings
    """The keys of ``update`` for a rule from outside the package; it is constructed as ``Rule(settings)``."""

    def __init_subclass__(cls) -> None:
        if "corruption" in cls.__dict__:
            raise TypeError(f"{cls.__name__}.corruption is no part of a rule any more: define views and change_picture")
        cls.rule = cls.__dict__.get("rule", cls.__name__)

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """The signals that `credit` and `loss` read."""

    @property
    def reads_before_loss(self) -> frozenset[Signal]:
        """The signals of the step's start that `credit` and `batch_metrics` read; all of them by default.

        If PROXIMAL_LOGPROBS is not among them and a step has one optimizer step, the learner does not compute them in a
        pass of their own: in `loss` they are then the live log-probs, detached, which are the same numbers.
        """
        return frozenset(signal for signal in self.needs if not signal.is_live)

    @property
    def sample_correction(self) -> SampleCorrection | None:
        """The correction of samples by a teacher, in the driver and in the learner; None: samples stay as they are."""
        return None

    @property
    def kl_top_k(self) -> int | None:
        """Tokens that exact KLs compare if their signal names none; None: the whole vocabulary."""
        return None

    @property
    def views(self) -> frozenset[str]:
        """Names of the views of a picture that `change_picture` makes, for signals with such a view."""
        return frozenset()

    def change_picture(self, view: str, picture: Picture, context: PictureContext) -> Picture:
        """Return the picture as the model sees it in ``view``, one of `views`. Called once a step for each picture."""
        raise NotImplementedError(f"update rule {self.rule} names the view {view}: define its change_picture")

    def check_model(self, *, is_multimodal: bool) -> None:
        """Raise `RecipeError` for a model that the rule cannot train. Called at set-up, before anything is loaded."""

    def build_heads(self, model: ModelShape) -> Heads | None:
        """Build trainable modules beside the policy (a value head, mask heads); their output is ``Signal.HEADS``."""
        return None

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        """Choose the rollouts to train on; all of them by default. Pure Python."""
        return [
            Example(prompt=group.prompt, rollout=rollout, group=number)
            for number, group in enumerate(groups)
            for rollout in group.rollouts
        ]

    def credit(self, batch: Batch) -> Batch:
        """Fill advantages (or returns) from rewards and frozen signals, over the whole batch. No gradient."""
        return batch

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        """Return metrics of the whole credited batch that are not sums over micro-batches (an explained variance)."""
        return {}

    def start_metrics(self, batch: Batch) -> dict[str, float]:
        """Return metrics of the whole credited batch that read PROXIMAL_LOGPROBS; called once they are known."""
        return {}

    def token_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return per-token numbers ``[B, T]`` of a credited batch for the sample files (masks), by column name."""
        return {}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Note a finished step's metrics, for example to steer a KL coefficient."""

    def alarms(self, records: Sequence[Mapping[str, float]]) -> Mapping[str, str]:
        """Return warnings by name if a run's step records (oldest first) show a problem of this rule.

        Called after each step with all records since the run's first step. The loop prints a warning when it begins.
        """
        return {}

    def state(self) -> dict[str, float]:
        """Return the numbers that a resumed run needs beside the settings."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore the numbers that `state` returned."""

    @abstractmethod
    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Compute the loss of one micro-batch. ``signals`` holds these rows' frozen signals and the live ones."""
