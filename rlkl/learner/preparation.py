"""Prepare a batch: pack it, compute the signals of the step's start, let the rule credit it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.data.packing import pack
from rlkl.data.vision import PictureProcessor
from rlkl.learner.ranks import Ranks
from rlkl.learner.replaying import replay_metrics
from rlkl.learner.signals import (
    Models,
    SignalSettings,
    frozen_heads,
    frozen_model_signals,
    frozen_start_signals,
    frozen_token_signals,
    frozen_view_logprobs,
)
from rlkl.learner.state_metrics import LeftOut, StateMetrics, only_sampled
from rlkl.learner.views import Pictures, ViewMaker
from rlkl.recipe import Recipe
from rlkl.signals import Signal, Signals
from rlkl.types import SHARED_TOKEN_COLUMNS, Example
from rlkl.updates.base import HeadInput, PolicyUpdate


@dataclass(slots=True, kw_only=True)
class StartSignals:
    """The policy's log-probs and entropies with the weights at the start of the step, ``[B, T]`` float32."""

    logprobs_BT: Tensor
    entropy_BT: Tensor

    @staticmethod
    def zeros(batch: Batch) -> StartSignals:
        """Return zeros for all tokens of a batch."""
        return StartSignals(
            logprobs_BT=torch.zeros(batch.response_BT.shape), entropy_BT=torch.zeros(batch.response_BT.shape)
        )

    def sum_(self, ranks: Ranks) -> None:
        """Add up the numbers of all ranks, each of which has filled in its own rows."""
        ranks.sum_(self.logprobs_BT)
        ranks.sum_(self.entropy_BT)

    def fill(self, rows_B: Tensor, mask_BT: Tensor, logprobs_BT: Tensor, entropy_BT: Tensor) -> None:
        """Write the numbers of some rows at the tokens of ``mask_BT``, which is as wide as the numbers."""
        width = mask_BT.shape[1]
        for whole_BT, part_BT in ((self.logprobs_BT, logprobs_BT), (self.entropy_BT, entropy_BT)):
            whole_BT[rows_B, :width] = torch.where(mask_BT, part_BT, whole_BT[rows_B, :width])


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A batch that is ready for its optimizer steps."""

    batch: Batch
    """Credited by the rule."""
    sampled_BT: Tensor
    """The response tokens, those included that the rule took out of the training."""
    start: StartSignals
    pending: bool
    """Whether the training pass fills ``start``, at the tokens that the rule trains on."""
    state: StateMetrics
    update: PolicyUpdate
    metrics: dict[str, float]
    """The metrics known so far."""
    given: int
    """Number of the first rows that the learner was given; sequences that the rule replays come after them."""
    pictures: dict[str, Pictures] = field(default_factory=dict)
    """The pictures that the rule changed, by view."""

    def finish_start(self) -> None:
        """Take up the signals that the training pass filled in, and the metrics that follow from them."""
        if not self.pending:
            return
        self.pending = False
        found = Signals({Signal.PROXIMAL_LOGPROBS: self.start.logprobs_BT})
        self.batch = replace(self.batch, signals=self.batch.signals.merged(found))
        self.metrics |= self.state.compute(self.start.logprobs_BT, self.start.entropy_BT)
        self.metrics |= self.update.start_metrics(self.batch.only("main"))

    def token_columns(self) -> dict[str, Tensor]:
        """Return numbers ``[B, T]`` for the sample files: those of every rule, then the rule's own. Call after `step`.

        B counts the examples that the learner was given. Log-probs and entropy are those of the start of the step.
        Without a reference there is no column of it.
        """
        signals = self.batch.signals
        values = [self.batch.advantages_BT, self.start.logprobs_BT, self.start.entropy_BT]
        if Signal.REFERENCE_LOGPROBS in signals:
            values.append(signals[Signal.REFERENCE_LOGPROBS])
        own = self.update.token_columns(replace(self.batch, response_BT=self.sampled_BT))
        columns = {**dict(zip(SHARED_TOKEN_COLUMNS, values, strict=False)), **own}
        return {name: x_BT[: self.given] for name, x_BT in columns.items()}


def _next_group(examples: Sequence[Example]) -> int:
    """Return the first number that no group has."""
    return 1 + max(example.group for example in examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparer:
    """Turns examples into a prepared batch, with the models as they are at the time."""

    recipe: Recipe
    update: PolicyUpdate
    models: Models
    settings: SignalSettings
    device: torch.device
    pictures: PictureProcessor | None
    views: ViewMaker | None

    @property
    def skips_proximal_pass(self) -> bool:
        """Whether the training pass gives the log-probs of the step's start: it is the only one, and comes in time."""
        section = self.recipe.learner
        one_step = section.epochs * section.minibatches == 1
        return one_step and Signal.PROXIMAL_LOGPROBS not in self.update.reads_before_loss

    def pack(self, examples: Sequence[Example], *, progress: float = 0.0) -> Batch:
        """Turn examples into tensors."""
        limit = self.recipe.rollout.max_new_tokens
        return pack(examples, completion_limit=limit, progress=progress, pictures=self.pictures)

    def prepare(self, examples: Sequence[Example], left_out: Sequence[Example], *, step: int, first: bool) -> Prepared:
        """Return the credited batch; ``first``: no optimizer step has been made, so dead heads are re-initialised."""
        given = len(examples)
        examples = [*examples, *self.update.replayed(step, _next_group(examples))]
        examples = [*examples, *self.update.viewed(examples, _next_group(examples))]
        batch = self.pack(examples, progress=step / self.recipe.steps)
        pending = self.skips_proximal_pass
        start, heads_BTK = (StartSignals.zeros(batch), None) if pending else self._start_and_heads(batch)
        frozen = {} if pending else {Signal.PROXIMAL_LOGPROBS: start.logprobs_BT}
        frozen |= frozen_model_signals(self.models, batch, self.settings, self.update, device=self.device)
        if Signal.PROXIMAL_HEADS in self.update.needs:
            frozen[Signal.PROXIMAL_HEADS] = self._heads(batch, heads_BTK, first=first)
        batch, pictures, metrics = self._with_views(batch, examples, frozen)
        batch = replace(batch, signals=Signals(frozen, self.update.rule))
        state = self._state_metrics(batch, examples, left_out)
        credited = self._credited(batch)
        if pending:
            self._fill_untrained(start, batch, credited)
        else:
            metrics |= state.compute(start.logprobs_BT, start.entropy_BT)
            metrics |= self.update.start_metrics(credited.only("main"))
        metrics |= self.update.batch_metrics(credited.only("main"))
        if self.update.reads_replay:
            found = replay_metrics(self.models, credited, self.settings, self.update, device=self.device)
            metrics |= self.update.begin_replay(found)
        return Prepared(
            batch=credited,
            sampled_BT=batch.response_BT,
            start=start,
            pending=pending,
            state=state,
            update=self.update,
            metrics=metrics,
            pictures=pictures,
            given=given,
        )

    def _start(self, batch: Batch) -> StartSignals:
        logprobs_BT, entropy_BT = frozen_token_signals(
            self.models.policy, batch, self.settings, device=self.device, entropy=True
        )
        return StartSignals(logprobs_BT=logprobs_BT, entropy_BT=entropy_BT)

    def _start_and_heads(self, batch: Batch) -> tuple[StartSignals, Tensor | None]:
        """Return the signals, and the heads' output if the rule reads it and the same pass gives it."""
        heads = self.models.heads
        reads_policy = heads is not None and heads.reads is HeadInput.POLICY_HIDDEN
        if not reads_policy or Signal.PROXIMAL_HEADS not in self.update.needs:
            return self._start(batch), None
        logprobs_BT, entropy_BT, heads_BTK = frozen_start_signals(self.models, batch, self.settings, device=self.device)
        return StartSignals(logprobs_BT=logprobs_BT, entropy_BT=entropy_BT), heads_BTK

    def _fill_untrained(self, start: StartSignals, batch: Batch, credited: Batch) -> None:
        """Compute the signals of sequences from which the rule took tokens: the training pass does not see all."""
        rows_B = (batch.response_BT != credited.response_BT).any(dim=1).nonzero()[:, 0]
        if len(rows_B):
            part = batch.rows(rows_B)
            found = self._start(part)
            start.fill(rows_B, part.response_BT, found.logprobs_BT, found.entropy_BT)

    def _heads(self, batch: Batch, known_BTK: Tensor | None, *, first: bool) -> Tensor:
        """Return the heads' output at the start of the step; dead heads are re-initialised before the first one.

        ``known_BTK``: the output, if another pass gave it.
        """
        heads = self.models.heads
        assert heads is not None
        while True:
            heads_BTK = known_BTK
            if heads_BTK is None:
                heads_BTK = frozen_heads(self.models, batch, self.settings, device=self.device)
            if not first or not heads.redraw(heads_BTK[batch.only("main").response_BT]):
                return heads_BTK
            known_BTK = None

    def _with_views(
        self, batch: Batch, examples: Sequence[Example], frozen: dict[Signal, Tensor]
    ) -> tuple[Batch, dict[str, Pictures], dict[str, float]]:
        """Add views to the batch, and log-probs that the rule reads to ``frozen``; return batch, pictures, seconds."""
        if self.views is None:
            return batch, {}, {}
        started = time.perf_counter()
        batch, pictures = self.views.add(batch, examples)
        seconds: dict[str, float] = {}
        for view in pictures:
            at_start = Signal("logprobs", view=view, moment="step_start")
            if at_start in self.update.needs:
                frozen[at_start] = frozen_view_logprobs(
                    view, self.models.policy, batch, self.settings, device=self.device
                )
            seconds[f"time/{view}_s"] = time.perf_counter() - started
        return batch, pictures, seconds

    def _credited(self, batch: Batch) -> Batch:
        """Let the rule credit its own sequences; those of other roles stay as they are and count in no group."""
        if not batch.denominators.others:
            return self.update.credit(batch)
        rows_B = batch.of_role("main")
        if not len(rows_B):
            return batch
        return batch.with_rows(rows_B, self.update.credit(batch.rows(rows_B))).recounted()

    def _state_metrics(self, batch: Batch, examples: Sequence[Example], left_out: Sequence[Example]) -> StateMetrics:
        reference, own = self.models.reference, only_sampled(batch.only("main"), examples)
        sampled = own is not None
        has_kl = sampled and reference is not None
        return StateMetrics(
            batch=own or batch.only("main"),
            sampled=sampled,
            reference_BT=batch.signals[Signal.REFERENCE_LOGPROBS] if has_kl else None,
            left_out=self._left_out(left_out) if has_kl and left_out else None,
            stale=self.recipe.rollout.schedule != "alternate",
        )

    def _left_out(self, examples: Sequence[Example]) -> LeftOut:
        assert self.models.reference is not None
        batch = self.pack(examples)
        reference_BT, _ = frozen_token_signals(
            self.models.reference, batch, self.settings, device=self.device, entropy=False
        )
        gap_BT = batch.rollout_logprobs_BT - reference_BT
        own_BT = batch.uncorrected_BT
        return LeftOut(gap=float(gap_BT[own_BT].sum()), lengths_B=own_BT.sum(dim=1))
