"""Computing per-token signals, micro-batch by micro-batch, chunk by chunk. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.batch import Batch, ImageInputs
from rlkl.data.packing import micro_batches
from rlkl.errors import MissingSignalError
from rlkl.functional.logprobs import Head, chunked_logprobs_and_entropy
from rlkl.functional.packing import Packing, shared_prefixes
from rlkl.learner.dealing import Share, shares_of
from rlkl.learner.ranks import Ranks
from rlkl.quantities import Quantity
from rlkl.signals import CLEAN, FOLLOWERS, POLICY, REFERENCE, Signal
from rlkl.updates.base import HeadInput, Heads, PolicyUpdate


class Scorer(Protocol):
    """A model that signals are computed from."""

    def hidden(
        self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None
    ) -> Tensor: ...

    def head(self, hidden_NH: Tensor) -> Tensor: ...

    @property
    def output_head(self) -> Head: ...

    def layers(
        self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models that signals are computed with: those that the rule and the recipe need, and no others."""

    policy: Scorer
    frozen: Mapping[str, Scorer]
    """By name; ``reference`` is the policy as it was before training, or the recipe's ``model.reference``."""
    heads: Heads | None

    @property
    def reference(self) -> Scorer | None:
        """The reference, if it is kept."""
        return self.frozen.get(REFERENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSettings:
    """Settings of the computation of signals, equal for all rules."""

    temperature: float
    """Logits are divided by it, as the sampler did."""
    chunk_tokens: int
    """Tokens whose logits exist at one time, over the vocabulary or over a tile of it."""
    micro_batch_tokens: int
    packed: bool = False
    """Whether a micro-batch is cut by its real tokens, because no model computes anything for padding."""
    ranks: Ranks = field(default_factory=Ranks)

    def cuts(self, batch: Batch) -> list[Tensor]:
        """Return the row numbers of each micro-batch."""
        return micro_batches(batch, self.micro_batch_tokens, packed=self.packed)

    def shares(self, batch: Batch) -> list[Share]:
        """Return the micro-batches of a batch that this rank computes."""
        return shares_of(batch, self.cuts(batch), rank=self.ranks.rank, size=self.ranks.size)


Compute = Callable[["Models", Batch, SignalSettings], Tensor]
"""Computes a custom signal ``[B, T]`` for one micro-batch, with gradient if it is live; zero outside the response."""

CUSTOM: dict[str, Compute] = {}
"""Custom quantities by name; see `supply`."""


def supply(quantity: str, compute: Compute) -> Signal:
    """Let the learner compute a quantity of your own, and return its live signal.

    Call it in the file of a rule or a term: the file is imported in the learner's process, too. Raises ValueError for
    the name of a built-in quantity.
    """
    if quantity in get_args(Quantity):
        raise ValueError(f"'{quantity}' is a quantity of rlkl; give yours another name")
    CUSTOM[quantity] = compute
    return Signal(quantity)  # pyright: ignore[reportArgumentType] - the built-in names are a closed list


def check_supplied(update: PolicyUpdate, frozen: Collection[str] = ()) -> None:
    """Raise `MissingSignalError` at set-up if the rule needs a signal that this learner cannot compute.

    ``frozen``: names in the recipe's ``models``. Signals of a rule's views also need pictures, which set-up checks.
    """
    for signal in sorted(update.needs, key=lambda signal: signal.name):
        reason = _missing(signal, {REFERENCE, *FOLLOWERS, *frozen})
        if signal.view != CLEAN and signal.view not in update.views:
            reason = f"The rule makes no view {signal.view} of the pictures: see its views and change_picture."
        if reason:
            raise MissingSignalError(update.rule, signal.name, reason)


def check_heads(update: PolicyUpdate, heads: Heads | None) -> None:
    """Raise `MissingSignalError` if a signal is the output of heads that the rule lacks, or that have it later only."""
    for signal in update.needs:
        if signal.quantity == "heads" and heads is None:
            raise MissingSignalError(update.rule, signal.name, "The rule has no heads: see its build_heads.")
        if signal == Signal.PROXIMAL_HEADS and heads is not None and heads.reads is HeadInput.LIKELIEST:
            raise MissingSignalError(
                update.rule, signal.name, "Heads that read LIKELIEST run in the training pass only."
            )


def _missing(signal: Signal, frozen: Collection[str]) -> str | None:
    """Return why the learner cannot compute a signal, or None."""
    if signal.frozen_model is not None and signal.model not in frozen:
        return f"The recipe names no model {signal.model}. Add it: models: {{{signal.model}: {{path: ...}}}}"
    kinds = {
        "logprobs": signal.model == POLICY or (signal.moment == "step_start" and signal.view == CLEAN),
        "entropy": signal.model == POLICY and signal.is_live and signal.view == CLEAN,
        "heads": signal.model == POLICY and signal.view == CLEAN,
        "kl_to_policy": signal.model != POLICY and signal.is_live and signal.view == CLEAN,
        "kl_from_policy": signal.model != POLICY and signal.is_live and signal.view == CLEAN,
        "answers": signal.model == POLICY and signal.is_live and signal.view == CLEAN and len(signal.tokens) > 0,
        "cauchy_schwarz": signal.model != POLICY and signal.is_live and signal.view == CLEAN,
        "divergence": signal.model != POLICY and signal.is_live and signal.view == CLEAN and signal.by is not None,
        "hidden": signal.model == POLICY and signal.is_live and signal.view == CLEAN,
    }
    if signal.quantity in CUSTOM:
        return None
    if signal.quantity not in kinds:
        return f"The quantities are {', '.join([*kinds, *CUSTOM])}."
    if not kinds[signal.quantity]:
        return "rlkl/signals.py lists the combinations of quantity, model, view and moment."
    return None


def packing_of(batch: Batch) -> Packing:
    """Return how the rows of a micro-batch are packed: without padding, and with the prompt of a group once."""
    lengths_B = batch.attention_BT.sum(dim=1)
    shared = shared_prefixes(batch.token_ids_BT, lengths_B, batch.sharing_B)
    return Packing(lengths_B, batch.token_ids_BT.shape[1], shared)


def hidden_states(model: Scorer, batch: Batch) -> Tensor:
    """Compute the last hidden states ``[B, T, H]`` of a micro-batch; those of padding mean nothing."""
    return model.hidden(batch.token_ids_BT, batch.images, packing_of(batch))


def token_signals(
    model: Scorer, batch: Batch, settings: SignalSettings, *, entropy: bool, hidden_BTH: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute log-probs and entropies ``[B, T]`` of one micro-batch's response tokens, zero elsewhere.

    ``hidden_BTH``: the model's hidden states, if they are known already.
    """
    predicted = batch.response_BT[:, 1:]
    states_BTH = hidden_states(model, batch) if hidden_BTH is None else hidden_BTH
    hidden_NH = states_BTH[:, :-1][predicted]
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        hidden_NH,
        model.output_head,
        batch.token_ids_BT[:, 1:][predicted],
        temperature=settings.temperature,
        chunk_tokens=settings.chunk_tokens,
        with_entropy=entropy,
    )
    return spread(logprobs_N, predicted), spread(entropy_N, predicted)


def view_logprobs(view: str, model: Scorer, batch: Batch, settings: SignalSettings) -> Tensor:
    """Compute log-probs ``[B, T]`` of the response given a view of the pictures, zero for sequences without any."""
    logprobs_BT = torch.zeros(batch.response_BT.shape, device=batch.response_BT.device)
    rows_B = batch.pictured_B.nonzero()[:, 0]
    if not len(rows_B):
        return logprobs_BT + _pass_for_others(model, batch, settings)
    seen = batch.rows(rows_B)
    seen_BT, _ = token_signals(model, replace(seen, images=seen.views[view]), settings, entropy=False)
    return logprobs_BT.index_put((rows_B,), pad_to(seen_BT, logprobs_BT.shape[1]))


def _pass_for_others(model: Scorer, batch: Batch, settings: SignalSettings) -> Tensor | float:
    """Return zero. Other ranks may run a pass here, in which all ranks gather weights, so this one runs one as well."""
    if settings.ranks.size == 1:
        return 0.0
    logprobs_BT, _ = token_signals(
        model, batch.rows(batch.attention_BT.sum(dim=1).argmin()[None]), settings, entropy=False
    )
    return 0.0 * logprobs_BT.sum()


@torch.no_grad()
def over_batch(
    compute: Callable[[Batch], Tensor], batch: Batch, settings: SignalSettings, device: torch.device
) -> Tensor:
    """Compute numbers per token for a whole batch, micro-batch by micro-batch, without gradient.

    ``compute`` returns ``[B, T]`` or ``[B, T, K]``. The result is on the batch's device, and the same on every rank.
    """
    whole: Tensor | None = None
    for share in settings.shares(batch):
        micro = compute(batch.rows(share.rows_B).to(device)).cpu()
        if whole is None:
            whole = torch.zeros(*batch.response_BT.shape, *micro.shape[2:])
        if share.counts:
            whole[share.rows_B, : micro.shape[1]] = micro
    assert whole is not None, "a batch has at least one sequence"
    return settings.ranks.sum_(whole)


def frozen_view_logprobs(
    view: str, model: Scorer, batch: Batch, settings: SignalSettings, *, device: torch.device
) -> Tensor:
    """Compute `view_logprobs` for a whole batch, without gradient."""
    return over_batch(lambda micro: view_logprobs(view, model, micro, settings), batch, settings, device)


def pad_to(x_BT: Tensor, length: int) -> Tensor:
    """Append zeros on the right up to ``length``."""
    return F.pad(x_BT, (0, length - x_BT.shape[1]))


def frozen_token_signals(
    model: Scorer, batch: Batch, settings: SignalSettings, *, device: torch.device, entropy: bool
) -> tuple[Tensor, Tensor]:
    """Compute `token_signals` for a whole batch, without gradient; the result is on the batch's device."""

    def both(micro: Batch) -> Tensor:
        return torch.stack(token_signals(model, micro, settings, entropy=entropy), dim=-1)

    logprobs_BT, entropy_BT = over_batch(both, batch, settings, device).unbind(dim=-1)
    return logprobs_BT.contiguous(), entropy_BT.contiguous()


def frozen_model_signals(
    models: Models, batch: Batch, settings: SignalSettings, update: PolicyUpdate, *, device: torch.device
) -> dict[Signal, Tensor]:
    """Compute the log-probs of the frozen models that the rule needs, and of the reference if it is kept."""
    wanted = {REFERENCE: Signal.REFERENCE_LOGPROBS} | {
        signal.model: signal
        for signal in update.needs
        if signal.frozen_model is not None and signal.quantity == "logprobs"
    }
    found = {
        wanted[name]: frozen_token_signals(model, batch, settings, device=device, entropy=False)[0]
        for name, model in models.frozen.items()
        if name in wanted
    }
    for signal in sorted(update.needs, key=lambda signal: signal.name):
        if signal.quantity in CUSTOM and not signal.is_live:
            compute = partial(_custom, CUSTOM[signal.quantity], models, settings)
            found[signal] = over_batch(compute, batch, settings, device)
    return found


def _custom(compute: Compute, models: Models, settings: SignalSettings, batch: Batch) -> Tensor:
    return compute(models, batch, settings)


def frozen_start_signals(
    models: Models, batch: Batch, settings: SignalSettings, *, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the policy's log-probs and entropies and the output of heads on its states, in one pass over the batch.

    Shapes ``[B, T]``, ``[B, T]`` and ``[B, T, K]``; without gradient, on the batch's device.
    """

    def compute(micro: Batch) -> Tensor:
        hidden_BTH = hidden_states(models.policy, micro)
        scores = token_signals(models.policy, micro, settings, entropy=True, hidden_BTH=hidden_BTH)
        return torch.cat([torch.stack(scores, dim=-1), heads_output(models, micro, hidden_BTH)], dim=-1)

    found_BTK = over_batch(compute, batch, settings, device)
    return found_BTK[..., 0].contiguous(), found_BTK[..., 1].contiguous(), found_BTK[..., 2:].contiguous()


def frozen_heads(models: Models, batch: Batch, settings: SignalSettings, *, device: torch.device) -> Tensor:
    """Compute the heads' output with the current weights, ``[B, T, K]``, for a whole batch."""
    reads_policy = models.heads is not None and models.heads.reads is HeadInput.POLICY_HIDDEN

    def heads(micro: Batch) -> Tensor:
        hidden_BTH = hidden_states(models.policy, micro) if reads_policy else None
        return heads_output(models, micro, hidden_BTH)

    return over_batch(heads, batch, settings, device)


def heads_output(models: Models, batch: Batch, read_BTX: Tensor | None) -> Tensor:
    """Compute the heads' output at the token that each place predicts, zero outside the response.

    ``read_BTX``: the policy's hidden states or the likeliest log-probs, for heads that read them.
    """
    assert models.heads is not None
    if models.heads.reads is HeadInput.TOKENS:
        heads_BTK = models.heads(batch.token_ids_BT)
    elif models.heads.reads is HeadInput.REFERENCE_LAYERS:
        assert models.reference is not None
        with torch.no_grad():
            layers_BTLH = models.reference.layers(batch.token_ids_BT, batch.images, packing_of(batch))
        heads_BTK = F.pad(models.heads(layers_BTLH[:, :-1]), (0, 0, 1, 0))
    else:
        assert read_BTX is not None
        heads_BTK = F.pad(models.heads(read_BTX[:, :-1]), (0, 0, 1, 0))
    return torch.where(batch.response_BT.unsqueeze(-1), heads_BTK, 0.0)


def spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Return values at the mask's places, zeros elsewhere, and a zero first column (position 0 predicts nothing)."""
    zeros_BT = torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
    return F.pad(zeros_BT.masked_scatter(mask_BT, values_N), (1, 0))
