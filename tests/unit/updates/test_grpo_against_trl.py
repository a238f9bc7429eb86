"""GRPO and RLOO against TRL's own loss code, on the same tensors.

TRL's ``_compute_loss`` runs on a trainer without a model: its forward pass is replaced by the log-probs to compare at.
Where its normalisation differs from ours by design, the test says so and converts.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch, Signal
from rlkl.system.compat import ensure_torch_extras
from rlkl.updates import build_update
from rlkl.updates.settings import GrpoSettings
from tests.builders import COMPLETION_LIMIT, PROMPT_TOKENS, make_batch, with_policy

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlLoss:
    """TRL's loss, its gradient at the policy's log-probs, and the metrics it logged."""

    loss: float
    gradient_BT: Tensor
    metrics: dict[str, list[float]]


def trl_loss(name: str, batch: Batch, policy_BT: Tensor, **settings: Any) -> TrlLoss:
    """``name`` is the trainer's class; ``settings`` are its attributes."""
    ensure_torch_extras()
    trainer_class = getattr(importlib.import_module("trl"), name)
    policy_BT = policy_BT[:, PROMPT_TOKENS:].clone().requires_grad_()
    mask_BT = batch.response_BT[:, PROMPT_TOKENS:].float()
    proximal_BT = batch.signals[Signal.PROXIMAL_LOGPROBS][:, PROMPT_TOKENS:]
    trainer = object.__new__(trainer_class)
    trainer.__dict__.update(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=COMPLETION_LIMIT,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (policy_BT, torch.zeros_like(policy_BT), None),
    )
    trainer.__dict__.update(settings)
    inputs = {
        "prompt_ids": batch.token_ids_BT[:, :PROMPT_TOKENS],
        "prompt_mask": torch.ones(batch.size, PROMPT_TOKENS),
        "completion_ids": batch.token_ids_BT[:, PROMPT_TOKENS:],
        "completion_mask": mask_BT,
        "advantages": batch.advantages_BT[:, PROMPT_TOKENS],
        "old_per_token_logps": proximal_BT,
        "ref_per_token_logps": batch.signals[Signal.REFERENCE_LOGPROBS][:, PROMPT_TOKENS:],
        "old_logps": (proximal_BT * mask_BT).sum(dim=1),
        "num_items_in_batch": mask_BT.sum(),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient_BT,) = torch.autograd.grad(loss, policy_BT)
    return TrlLoss(loss=loss.item(), gradient_BT=gradient_BT, metrics=dict(trainer._metrics["train"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class OurLoss:
    loss: float
    gradient_BT: Tensor
    metrics: dict[str, float]


def our_loss(settings: GrpoSettings, batch: Batch, policy_BT: Tensor) -> OurLoss:
    policy_BT = policy_BT.clone().requires_grad_()
    output = build_update(settings).loss(batch, with_policy(batch, policy_BT))
    (gradient_BT,) = torch.autograd.grad(output.loss, policy_BT)
    return OurLoss(
        loss=output.loss.item(),
        gradient_BT=gradient_BT[:, PROMPT_TOKENS:],
        metrics={name: value.item() for name, value in output.metrics.items()},
    )


def problem(lengths: list[int]) -> tuple[Batch, Tensor]:
    """Credited batch and policy log-probs whose ratios spread widely around 1, so that both clips are hit."""
    batch = make_batch(
        lengths=lengths, rewards=[1.0, 0.0, 0.5, 0.0, 3.0, 1.0][: len(lengths)], groups=[0, 0, 0, 1, 1, 1]
    )
    noise_BT = torch.randn(batch.response_BT.shape, generator=torch.Generator().manual_seed(9))
    policy_BT = batch.signals[Signal.PROXIMAL_LOGPROBS] + 0.5 * noise_BT * batch.response_BT
    return build_update(GrpoSettings()).credit(batch), policy_BT


CASES = [
    pytest.param(
        GrpoSettings(),
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
        id="grpo",
    ),
    pytest.param(
        GrpoSettings(aggregation="token_mean"),
        {"loss_type": "bnpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
        id="bnpo is grpo with token_mean",
    ),
    pytest.param(
        GrpoSettings(variant="dr_grpo"),
        {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
        id="dr_grpo",
    ),
    pytest.param(
        GrpoSettings(variant="dapo"),
        {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28},
        id="dapo",
    ),
    # TRL's epsilon_high is the largest weight itself, ours what it may exceed 1 by.
    pytest.param(
        GrpoSettings(variant="cispo"),
        {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 5.0},
        id="cispo",
    ),
    pytest.param(
        GrpoSettings(variant="cispo", clip_high=0.3),
        {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.3},
        id="cispo with a low cap",
    ),
    pytest.param(
        GrpoSettings(variant="gspo"),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        id="gspo",
    ),
    pytest.param(
        GrpoSettings(variant="gspo", clip_low=0.1, clip_high=0.2),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.2},
        id="gspo with wide bounds",
    ),
]


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize(("settings", "trl_settings"), CASES)
def test_loss_and_gradient_equal_trl(settings: GrpoSettings, trl_settings: dict[str, Any], kl_coef: float) -> None:
    batch, policy_BT = problem([1, 4, 7, 3, 5, 2])
    theirs = trl_loss("GRPOTrainer", batch, policy_BT, beta=kl_coef, **trl_settings)
    ours = our_loss(settings.model_copy(update={"kl_coef": kl_coef}), batch, policy_BT)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(ours.gradient_BT, theirs.gradient_BT, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("settings", "trl_settings"), CASES[:4])
def test_clip_fractions_equal_trl(settings: GrpoSettings, trl_settings: dict[str, Any]) -> None:
    batch, policy_BT = problem([1, 4, 7, 3, 5, 2])
    theirs = trl_loss("GRPOTrainer", batch, policy_BT, **trl_settings).metrics
    ours = our_loss(settings, batch, policy_BT).metrics
    assert ours["update/clip_fraction_low"] == pytest.approx(theirs["clip_ratio/low_mean"][0])
    assert ours["update/clip_fraction_high"] == pytest.approx(theirs["clip_ratio/high_mean"][0])
    assert min(ours.values()) > 0


@pytest.mark.parametrize(("settings", "trl_settings"), [CASES[0], CASES[2]])
def test_empty_completions_count_in_trl_but_not_here(settings: GrpoSettings, trl_settings: dict[str, Any]) -> None:
    """TRL divides by all rows, we by the rows that have a token to train: 6 against 4 here."""
    batch, policy_BT = problem([0, 4, 7, 3, 0, 2])
    theirs = trl_loss("GRPOTrainer", batch, policy_BT, **trl_settings)
    ours = our_loss(settings, batch, policy_BT)
    assert ours.loss == pytest.approx(theirs.loss * 6 / 4, rel=1e-5)
    torch.testing.assert_close(ours.gradient_BT, theirs.gradient_BT * 6 / 4)


@pytest.mark.parametrize("clip", [0.2, None])
def test_rloo_equals_trl(clip: float | None) -> None:
    """TRL always clips the sequence ratio; the paper, and so our variant, does not: bounds out of reach stand for none.

    Our per-token form adds each sequence's ratio up over its tokens: the same gradient, another value. The mean over
    the tokens has TRL's value.
    """
    batch, policy_BT = problem([1, 4, 7, 3, 5, 2])
    theirs = trl_loss("RLOOTrainer", batch, policy_BT, epsilon_low=clip or 1e9, epsilon_high=clip or 1e9)
    settings = GrpoSettings(variant="rloo", clip_low=clip, clip_high=clip)
    ours = our_loss(settings, batch, policy_BT)
    torch.testing.assert_close(ours.gradient_BT, theirs.gradient_BT, rtol=1e-5, atol=1e-7)
    mean = our_loss(settings.model_copy(update={"aggregation": "sequence_mean"}), batch, policy_BT)
    assert mean.loss == pytest.approx(theirs.loss, rel=1e-5)
