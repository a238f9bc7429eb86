"""The base of classes that add something to a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.signals import Signal, Signals
from rlkl.types import Example, RolloutGroup
from rlkl.updates.base import Heads, ModelShape, PictureContext, PolicyUpdate, SampleCorrection

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class Wrapped(PolicyUpdate):
    """Passes all calls on to ``rule``. A subclass overrides those that it changes."""

    def __init__(self, rule: PolicyUpdate) -> None:
        super().__init__(rule.settings)
        self.inner, self.seed = rule, rule.seed
        self.rule = rule.rule  # pyright: ignore[reportAttributeAccessIssue] - per instance: the name for messages
        self.sees_all_roles = rule.sees_all_roles  # pyright: ignore[reportAttributeAccessIssue] - per instance

    @property
    def needs(self) -> frozenset[Signal]:
        return self.inner.needs

    @property
    def reads_before_loss(self) -> frozenset[Signal]:
        return self.inner.reads_before_loss

    @property
    def sample_correction(self) -> SampleCorrection | None:
        return self.inner.sample_correction

    @property
    def kl_top_k(self) -> int | None:
        return self.inner.kl_top_k

    @property
    def views(self) -> frozenset[str]:
        return self.inner.views

    def change_picture(self, view: str, picture: Picture, context: PictureContext) -> Picture:
        return self.inner.change_picture(view, picture, context)

    def check_model(self, *, is_multimodal: bool) -> None:
        self.inner.check_model(is_multimodal=is_multimodal)

    def build_heads(self, model: ModelShape) -> Heads | None:
        return self.inner.build_heads(model)

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        return self.inner.select(groups)

    def replayed(self, step: int, first_group: int) -> list[Example]:
        return self.inner.replayed(step, first_group)

    def viewed(self, examples: Sequence[Example], first_group: int) -> list[Example]:
        return self.inner.viewed(examples, first_group)

    @property
    def reads_replay(self) -> bool:
        return self.inner.reads_replay

    def replay_metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        return self.inner.replay_metrics(batch, signals)

    def begin_replay(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return self.inner.begin_replay(metrics)

    def credit(self, batch: Batch) -> Batch:
        return self.inner.credit(batch)

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        return self.inner.batch_metrics(batch)

    def start_metrics(self, batch: Batch) -> dict[str, float]:
        return self.inner.start_metrics(batch)

    def token_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.inner.token_columns(batch)

    def alarms(self, records: Sequence[Mapping[str, float]]) -> Mapping[str, str]:
        return self.inner.alarms(records)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.inner.observe(metrics)

    def state(self) -> dict[str, float]:
        return self.inner.state()

    def load_state(self, state: Mapping[str, float]) -> None:
        self.inner.load_state(state)

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        return self.inner.loss(batch, signals)
