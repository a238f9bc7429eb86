"""Sequences of the role ``replay`` for a rule with terms: the part of `rlkl.updates.terms.composed` that adds them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlkl.batch import Batch
from rlkl.errors import LearnerError
from rlkl.signals import Signals
from rlkl.types import Example
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.terms.base import Term
from rlkl.updates.wrapped import Wrapped


class WithReplay(Wrapped):
    """Passes all calls on to ``rule``, and lets the ``terms`` replay sequences."""

    def __init__(self, rule: PolicyUpdate, terms: Mapping[str, Term]) -> None:
        super().__init__(rule)
        self.terms = dict(terms)

    def replayed(self, step: int, first_group: int) -> list[Example]:
        """Return the sequences of the rule or of one term; raises `LearnerError` if several return some.

        A term of the role ``replay`` gets all of them, and knows nothing of those that are not its own.
        """
        found = {f"the rule {self.rule}": self.inner.replayed(step, first_group)}
        for name, term in self.terms.items():
            found[f"the term {name}"] = term.replayed(seed=self.seed, step=step, first_group=first_group)
        sources = [source for source, examples in found.items() if examples]
        if len(sources) > 1:
            raise LearnerError(
                f"update.terms: {sources[0]} and {sources[1]} both add sequences of the role replay, and each term of "
                "that role would train on those of both. Remove one of the two from the recipe, or let one of them "
                "return none from `replayed`"
            )
        return found[sources[0]] if sources else []

    @property
    def reads_replay(self) -> bool:
        return self.inner.reads_replay or any(term.reads_replay for term in self.terms.values())

    def replay_metrics(self, batch: Batch, signals: Signals) -> dict[str, Tensor]:
        own = {
            f"term/{name}_{key}": value
            for name, term in self.terms.items()
            if term.reads_replay
            for key, value in term.metrics(batch.only(term.role), signals).items()
        }
        return {**self.inner.replay_metrics(batch, signals), **own}

    def begin_replay(self, metrics: Mapping[str, float]) -> dict[str, float]:
        found = self.inner.begin_replay(metrics)
        for name, term in self.terms.items():
            if term.reads_replay:
                own = term.begin_replay(own_metrics(metrics, f"term/{name}_"))
                found |= {f"term/{name}_{key}": value for key, value in own.items()}
        return found


def own_metrics(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return the metrics whose names start with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
