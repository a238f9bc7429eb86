"""Compare samples with a teacher, token by token: the KL, and the teacher's own token. Shapes as in `rlkl.batch`.

The models are those of the signals, with their packing, pictures, adapters and ranks. Logits exist for one chunk of
tokens at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.errors import MissingSignalError, NumericalFault
from rlkl.functional.kl import exact_kl
from rlkl.learner.preparation import Preparer
from rlkl.learner.signals import Models, SignalSettings, hidden_states, over_batch, spread
from rlkl.types import Example, TeacherView
from rlkl.updates.base import SampleCorrection


def teacher_views(preparer: Preparer, examples: Sequence[Example]) -> list[TeacherView]:
    """Compare completions with the teacher of the rule's `SampleCorrection`, at the sampling temperature.

    ``examples`` need no log-probs and no rewards. Every rank must call this, and returns the same.

    Raises `MissingSignalError` if no such model is loaded, `NumericalFault` if a number is not finite.
    """
    correction, models, settings = preparer.update.sample_correction, preparer.models, preparer.settings
    assert correction is not None, "the rule corrects no samples"
    if correction.teacher not in models.frozen:
        raise MissingSignalError(
            preparer.update.rule,
            f"log-probs of {correction.teacher}",
            "Its sample_correction names this model as the teacher: a signal among its needs must name it, too.",
        )
    batch = preparer.pack(examples)
    found_BTK = over_batch(
        lambda micro: _compared(models, micro, settings, correction), batch, settings, preparer.device
    )
    if not bool(torch.isfinite(found_BTK).all()):
        raise NumericalFault(
            f"the KL between the policy and the model {correction.teacher} on a sample is not finite. Look at the "
            "weights of the last checkpoint"
        )
    return [_view(x_BTK[mask]) for x_BTK, mask in zip(found_BTK, batch.response_BT, strict=True)]


def _view(found_TK: Tensor) -> TeacherView:
    nats, token_ids, logprobs = found_TK.unbind(dim=-1)
    return TeacherView(
        nats=tuple(nats.tolist()), token_ids=tuple(map(int, token_ids.tolist())), logprobs=tuple(logprobs.tolist())
    )


def _compared(models: Models, batch: Batch, settings: SignalSettings, correction: SampleCorrection) -> Tensor:
    """Return KL, the teacher's most probable token and the policy's log-prob of it ``[B, T, 3]``, float32.

    An id is exact in float32 below 2^24. It is zero outside the response. No gradient.
    """
    at_BT = batch.response_BT[:, 1:]
    both = (models.policy, models.frozen[correction.teacher])
    hidden = [hidden_states(model, batch)[:, :-1][at_BT] for model in both]
    size = max(settings.chunk_tokens // 2, 1)  # a chunk holds the logits of two models
    chunks = []
    for parts in zip(*(x_NH.split(size) for x_NH in hidden), strict=True):
        policy_CV, teacher_CV = (
            (model.output_head(part_CH).float() / settings.temperature).log_softmax(dim=-1)
            for model, part_CH in zip(both, parts, strict=True)
        )
        sides = (policy_CV, teacher_CV) if correction.direction == "policy_to_model" else (teacher_CV, policy_CV)
        ids_C1 = teacher_CV.argmax(dim=-1, keepdim=True)
        logprobs_C = policy_CV.gather(-1, ids_C1)[:, 0]
        chunks.append(torch.stack([exact_kl(*sides), ids_C1[:, 0].float(), logprobs_C], dim=-1))
    found_NK = torch.cat(chunks)
    return torch.stack([spread(x_N, at_BT) for x_N in found_NK.unbind(dim=-1)], dim=-1)
