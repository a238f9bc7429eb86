"""Samples from before the training, replayed beside the rollouts (GeRe, arXiv 2508.04676; docs/replay.md).

Shapes: B sequences, T tokens, N tokens of the replayed sequences of a micro-batch, H dimensions of the hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.margin import margin_excess, unpacked_classes
from rlkl.functional.reduce import masked
from rlkl.seeds import derive_seed
from rlkl.signals import REFERENCE, Signal, Signals
from rlkl.types import Completion, Example, Prompt, Rollout
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.kl import token_mean
from rlkl.updates.terms.replay.settings import ReplaySettings
from rlkl.updates.terms.replay.states import ReplayStates, check_enough, read_states

_SMALLEST = 1e-8
"""Added to the margin that the dynamic weight divides by, as in the paper."""
_HIDDEN = Signal("hidden")
_KL = Signal("kl_to_policy", REFERENCE)


class Replay(Term):
    """``coef`` times the margin, the KL or the cross-entropy of replayed samples, averaged over those of the step."""

    Settings = ReplaySettings
    settings: ReplaySettings
    role = "replay"

    def __init__(self, settings: ReplaySettings) -> None:
        super().__init__(settings)
        self._read: ReplayStates | None = None
        self._samples: dict[int, int] = {}
        """The number of a sequence's group -> the sample, for the sequences of this step."""
        self._start: Mapping[str, float] = {}
        """``excess``, ``violation_rate`` and ``cross_entropy`` at the start of this step."""

    @property
    def needs(self) -> frozenset[Signal]:
        own = {"margin": {_HIDDEN}, "kl": {_KL}, "cross_entropy": set()}
        return frozenset({Signal.POLICY_LOGPROBS, *own[self.settings.loss]})

    @property
    def reads_replay(self) -> bool:
        return self.settings.loss == "margin"

    @property
    def states(self) -> ReplayStates:
        """The samples, read when they are first needed."""
        if self._read is None:
            self._read = read_states(Path(self.settings.states).expanduser(), "update.terms[].states")
        return self._read

    def replayed(self, *, seed: int, step: int, first_group: int) -> list[Example]:
        """Draw ``sequences`` different samples; the draw depends on nothing but the arguments."""
        check_enough(self.states, self.settings.sequences, self.settings.states, "update.terms[]")
        generator = torch.Generator().manual_seed(derive_seed(seed, "replay", step))
        drawn = torch.randperm(self.states.samples, generator=generator)[: self.settings.sequences].tolist()
        self._samples = {first_group + number: sample for number, sample in enumerate(drawn)}
        return [_example(self.states.token_ids(sample), group) for group, sample in self._samples.items()]

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        cross_entropy = self._cross_entropy(batch, signals)
        if self.settings.loss == "cross_entropy":
            return self.settings.coef * cross_entropy
        if self.settings.loss == "kl":
            own = self.settings.coef * (token_mean(batch) * masked(signals[_KL], batch.response_BT)).sum()
        else:
            own = self.scale * self._margin(batch, signals)[0]
        return own + self.settings.cross_entropy_coef * cross_entropy

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return the ``cross_entropy`` per token; ``excess`` and ``violation_rate``, or the ``nats`` of the KL."""
        with torch.no_grad():
            found = {"cross_entropy": self._cross_entropy(batch, signals)}
            if self.settings.loss == "kl":
                found["nats"] = (token_mean(batch) * masked(signals[_KL], batch.response_BT)).sum()
            if self.settings.loss == "margin":
                found["excess"], found["violation_rate"] = self._margin(batch, signals)
        return found

    @property
    def scale(self) -> float:
        """The factor on the mean excess over all numbers of all tokens.

        The paper divides the sum of the excess by the numbers outside their bands, so the mean excess is divided by
        their share at the start of the step: a micro-batch cannot know that of the whole step. If it is 0, as in the
        first step, the excess counts as it is.
        """
        rate = self._start.get("violation_rate", 0.0)
        if rate <= 0:
            return self.settings.coef
        if self.settings.weight == "fixed":
            return self.settings.coef / rate
        return self.settings.coef * self._start["cross_entropy"] / (self._start["excess"] + _SMALLEST * rate)

    def _cross_entropy(self, batch: Batch, signals: Signals) -> Tensor:
        return -(token_mean(batch) * masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)).sum()

    def _margin(self, batch: Batch, signals: Signals) -> tuple[Tensor, Tensor]:
        """Return the mean excess, with gradient, and the share of numbers outside their bands.

        All tokens of a sample have a state, the first one too, which is no response token.
        """
        states, device = self.states, batch.token_ids_BT.device
        rows_B = batch.of_role("replay").to(device)
        hidden_BTH = signals[_HIDDEN]
        mask_BT = batch.attention_BT[rows_B]
        hidden_NH = hidden_BTH[rows_B][mask_BT]
        weights_N1 = batch.weight_B[rows_B].unsqueeze(1).expand(mask_BT.shape)[mask_BT].unsqueeze(1)
        samples = [self._samples[group] for group in batch.group_B[rows_B].tolist()]
        packed_NP = torch.cat([states.classes_NP[:0], *(states.classes(sample) for sample in samples)]).to(device)
        excess_NH = margin_excess(
            hidden_NH,
            unpacked_classes(packed_NP, hidden_NH.shape[1]),
            *(x_H.to(device) for x_H in (states.low_H, states.high_H, states.slack_H)),
        )
        numbers = (batch.denominators.tokens + batch.denominators.sequences) * hidden_NH.shape[1]
        return (weights_N1 * excess_NH).sum() / numbers, (excess_NH > 0).sum() / numbers

    def begin_replay(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Return the ``margin`` of the paper, and with a dynamic weight the factor on it."""
        if self.settings.loss != "margin":
            return {}
        self._start = metrics
        rate = metrics["violation_rate"]
        margin = {"margin": metrics["excess"] / rate if rate > 0 else 0.0}
        return margin if self.settings.weight == "fixed" else {**margin, "weight": self.scale * rate}


def _example(token_ids: tuple[int, ...], group: int) -> Example:
    """Return a sample as a sequence: its first token is the prompt, and all others the response."""
    completion = Completion(token_ids=token_ids[1:], logprobs=None, finish_reason="stop")
    rollout = Rollout(sample_index=0, completion=completion, reward=0.0, components={}, weights_version=0)
    return Example(
        prompt=Prompt(id=f"replay-{group}", text="", token_ids=token_ids[:1]),
        rollout=rollout,
        group=group,
        role="replay",
    )
