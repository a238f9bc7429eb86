"""A rule with further loss terms: what `rlkl.updates.build_update` returns if the recipe has ``update.terms``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rlkl.batch import Batch, LossOutput
from rlkl.errors import LearnerError, RecipeError
from rlkl.seeds import derive_seed
from rlkl.signals import Signal, Signals
from rlkl.types import Example
from rlkl.updates.base import Heads, ModelShape, PictureContext, PolicyUpdate
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.replay.composed import WithReplay, own_metrics

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class WithTerms(WithReplay):
    """Passes all calls on to ``rule``, and adds the ``terms`` to its loss."""

    def __init__(self, rule: PolicyUpdate, terms: Mapping[str, Term]) -> None:
        super().__init__(rule, terms)
        self.sees_all_roles = True  # pyright: ignore[reportAttributeAccessIssue] - per instance

    @property
    def needs(self) -> frozenset[Signal]:
        own = {self._with_top_k(signal) for signal in self.inner.needs}
        return frozenset(own.union(*(term.needs for term in self.terms.values())))

    @property
    def kl_top_k(self) -> int | None:
        """None, so that a term without ``top_k`` gets the whole vocabulary; `needs` has the rule's own limit."""
        return None

    def _with_top_k(self, signal: Signal) -> Signal:
        """Return one of the rule's own signals with the rule's `kl_top_k`, if it is a KL that names no limit."""
        return replace(signal, top_k=signal.top_k or self.inner.kl_top_k) if signal.is_kl else signal

    @property
    def views(self) -> frozenset[str]:
        return self.inner.views.union(*({term.own_view} for term in self.terms.values() if term.own_view))

    def change_picture(self, view: str, picture: Picture, context: PictureContext) -> Picture:
        for term in self.terms.values():
            if term.own_view == view:
                return term.change_picture(picture, seed=derive_seed(self.seed, view, *context.key))
        return self.inner.change_picture(view, picture, context)

    def build_heads(self, model: ModelShape) -> Heads | None:
        for term in self.terms.values():
            term.begin(model)
        return self.inner.build_heads(model)

    def check_model(self, *, is_multimodal: bool) -> None:
        self.inner.check_model(is_multimodal=is_multimodal)
        for name, term in self.terms.items():
            if term.own_view and not is_multimodal:
                raise RecipeError(
                    f"update.terms: the term {name} compares views of a picture, and the model has no vision tower. "
                    "Leave the term out, or take a vision-language model"
                )

    def viewed(self, examples: Sequence[Example], first_group: int) -> list[Example]:
        added = self.inner.viewed(examples, first_group)
        for term in self.terms.values():
            added = added + term.viewed(examples, first_group)
        return added

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        return {**self.inner.batch_metrics(batch), "term/sequences": float(batch.denominators.sequences)}

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.inner.observe(metrics)
        if "term/sequences" in metrics:  # a step that trained on something
            for name, term in self.terms.items():
                term.observe({**own_metrics(metrics, f"term/{name}_"), "sequences": metrics["term/sequences"]})

    def state(self) -> dict[str, float]:
        own = {f"term/{name}/{key}": v for name, term in self.terms.items() for key, v in term.state().items()}
        return {**self.inner.state(), **own}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.inner.load_state({key: value for key, value in state.items() if not key.startswith("term/")})
        for name, term in self.terms.items():
            prefix = f"term/{name}/"
            term.load_state({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Add the terms to the rule's loss; raises `LearnerError` if a term has the name of one of the rule's own."""
        own = {
            signal: signals[wanted] for signal in self.inner.needs if (wanted := self._with_top_k(signal)) in signals
        }
        output = self.inner.loss(
            batch if self.inner.sees_all_roles else batch.only("main"), signals.merged(Signals(own))
        )
        if both := sorted(output.terms.keys() & self.terms.keys()):
            raise LearnerError(
                f"update.terms: the rule {self.rule} has a term named {both[0]} itself, and both would share the curve "
                f"loss/{both[0]}; give the added term another name (update.terms[].name)"
            )
        losses = {name: term.loss(batch.only(term.role), signals) for name, term in self.terms.items()}
        metrics = {
            f"term/{name}_{key}": value
            for name, term in self.terms.items()
            for key, value in term.metrics(batch.only(term.role), signals).items()
        }
        return LossOutput(
            loss=output.loss + torch.stack(list(losses.values())).sum(),
            terms={**output.terms, **{name: value.detach() for name, value in losses.items()}},
            metrics={**output.metrics, **metrics},
        )
