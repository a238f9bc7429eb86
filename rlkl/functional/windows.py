"""The KL over a window of the teacher's likeliest tokens and one bucket of all others; the window is fixed or learned.

Shapes: C tokens of a chunk, N tokens, H hidden size, V vocabulary, K likeliest tokens. All in nats, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.functional import kl
from rlkl.functional.logprobs import Head

LOWEST = -1e30
"""Log-probability of a token that is left out. With -inf on both sides a gradient would be NaN."""


def gated_kl(policy_V: Tensor, teacher_V: Tensor, log_gate_V: Tensor, log_rest_V: Tensor, *, forward: bool) -> Tensor:
    """Compute the KL of both after each token has passed a gate: its rest goes into one bucket of all tokens.

    ``log_gate_V`` and ``log_rest_V``: logarithms of the gate, 0 to 1, and of 1 - gate. A gate is a channel that both
    distributions pass, so the KL is at most the whole one (data processing), equal to it with all gates open, and zero
    with all gates shut. It never rises when a gate is shut further. ``forward``: KL(teacher || policy), else KL(policy
    || teacher).
    """

    def passed(x_V: Tensor) -> Tensor:
        x_V = x_V.clamp_min(LOWEST)
        rest = (x_V + log_rest_V).clamp_min(LOWEST).logsumexp(dim=-1, keepdim=True)
        return torch.cat([(x_V + log_gate_V).clamp_min(LOWEST), rest], dim=-1)

    policy, teacher = passed(policy_V), passed(teacher_V)
    return kl.exact_kl(teacher, policy) if forward else kl.exact_kl(policy, teacher)


def mass_before(teacher_CV: Tensor) -> Tensor:
    """Return for each token ``[C, V]`` the teacher's probability of all tokens that are likelier; 0 for the likeliest.

    Equal tokens come in the order of the sort.
    """
    sorted_CV, order_CV = teacher_CV.exp().sort(dim=-1, descending=True)
    return torch.zeros_like(sorted_CV).scatter(-1, order_CV, sorted_CV.cumsum(dim=-1) - sorted_CV)


def nucleus(before_CV: Tensor, targets_C: Tensor, mass: float) -> Tensor:
    """Return which tokens ``[C, V]`` are kept: the fewest of the teacher's likeliest with ``mass``, and the target.

    ``before_CV`` is that of `mass_before`. The teacher's likeliest token is always kept.
    """
    return (before_CV < mass).scatter(-1, targets_C.unsqueeze(-1), True)


@dataclass(frozen=True, slots=True)
class WindowKl:
    """The KL over a window, as ``[C, 4]``: KL, the policy's probability outside, the teacher's inside, and tokens.

    The window holds the teacher's nucleus of ``mass`` and the token at hand. With a ``temperature`` it is as wide as
    the first output w of the heads: a further token, before which the share s of the nucleus's rest comes, has the gate
    sigmoid((w - s) / temperature). So w far below 0 leaves the nucleus alone, and w far above 1 is the whole
    vocabulary. Only the KL has a gradient.
    """

    mass: float
    """Probability that the teacher gives to the window, at least."""
    forward: bool
    """KL(teacher || policy), else KL(policy || teacher)."""
    temperature: float | None = None
    """None: the nucleus alone, without a learned part."""

    def __call__(self, policy_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, heads_CK: Tensor | None) -> Tensor:
        log_gate_CV, log_rest_CV = self.gates(teacher_CV, targets_C, heads_CK)
        nats_C = gated_kl(policy_CV, teacher_CV, log_gate_CV, log_rest_CV, forward=self.forward)
        with torch.no_grad():
            outside_C = (policy_CV + log_rest_CV).exp().sum(dim=-1)
            inside_C = (teacher_CV + log_gate_CV).exp().sum(dim=-1)
            tokens_C = log_gate_CV.exp().sum(dim=-1)
        return torch.stack([nats_C, outside_C, inside_C, tokens_C], dim=-1)

    def gates(self, teacher_CV: Tensor, targets_C: Tensor, heads_CK: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logarithms ``[C, V]`` of the gates and of 1 - gate, with gradient to the heads."""
        before_CV = mass_before(teacher_CV)
        kept_CV = nucleus(before_CV, targets_C, self.mass)
        if self.temperature is None:
            log_gate, log_rest = torch.tensor([LOWEST, 0.0], dtype=teacher_CV.dtype, device=teacher_CV.device)
        else:
            assert heads_CK is not None
            share_CV = (before_CV - self.mass) / (1 - self.mass)
            logit_CV = (heads_CK[:, :1] - share_CV) / self.temperature
            log_gate, log_rest = F.logsigmoid(logit_CV), F.logsigmoid(-logit_CV)
        return torch.where(kept_CV, 0.0, log_gate), torch.where(kept_CV, LOWEST, log_rest)


@torch.no_grad()
def chunked_likeliest(hidden_NH: Tensor, head: Head, k: int, *, temperature: float, chunk_tokens: int) -> Tensor:
    """Return the ``k`` highest log-probs ``[N, k]`` of each next token, sorted, without gradient.

    The logits of ``chunk_tokens`` tokens exist at one time. A vocabulary of fewer tokens is filled up with `LOWEST`.
    """
    found = []
    for hidden_CH in hidden_NH.split(chunk_tokens):
        logprobs_CV = F.log_softmax(head(hidden_CH).float() / temperature, dim=-1)
        top_CK = logprobs_CV.topk(min(k, logprobs_CV.shape[-1]), dim=-1).values
        found.append(F.pad(top_CK, (0, k - top_CK.shape[-1]), value=LOWEST))
    return torch.cat(found)
