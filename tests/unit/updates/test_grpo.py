"""GRPO and its variants on one worked example.

Two completions of one prompt, of 1 and 3 tokens, with advantages +1 and -1. All policy log-probs are -1; the ratios
policy / proximal are 1.5 for the first completion and 1.5, 1, 0.5 for the second.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.errors import MissingSignalError
from rlkl.updates import build_update
from rlkl.updates.grpo.rule import Grpo
from rlkl.updates.settings import GRPO_VARIANTS, GrpoChoices, GrpoSettings, GrpoVariant
from tests.builders import COMPLETION_LIMIT, PROMPT_TOKENS, make_batch, make_group, with_frozen, with_policy

RATIOS_BT = torch.tensor([[1.5, 1.0, 1.0], [1.5, 1.0, 0.5]])


def worked_example() -> Batch:
    batch = make_batch(lengths=[1, 3], rewards=[1.0, 0.0], groups=[0, 0])
    response_BT = batch.response_BT
    proximal_BT = torch.zeros(response_BT.shape)
    proximal_BT[:, PROMPT_TOKENS:] = -1 - RATIOS_BT.log()
    reference_BT = -1 + math.log(2.0) * torch.ones(response_BT.shape)  # r = reference / policy = 2 everywhere
    batch = with_frozen(batch, {Signal.PROXIMAL_LOGPROBS: proximal_BT, Signal.REFERENCE_LOGPROBS: reference_BT})
    return replace(batch, advantages_BT=torch.tensor([[1.0], [-1.0]]) * response_BT)


def run(settings: GrpoSettings) -> tuple[LossOutput, list[float]]:
    """The loss of the worked example and its gradient at the four response tokens."""
    batch = worked_example()
    policy_BT = torch.full(batch.response_BT.shape, -1.0, requires_grad=True)
    output = build_update(settings).loss(batch, with_policy(batch, policy_BT))
    (grad_BT,) = torch.autograd.grad(output.loss, policy_BT)
    return output, grad_BT[batch.response_BT].tolist()


S = 0.75 ** (1 / 3)  # the geometric mean of 1.5, 1 and 0.5


@pytest.mark.parametrize(
    ("settings", "loss", "gradient", "clipped_low", "clipped_high"),
    [
        # Tokens: -1.2 (clipped) | 1.5, 1, 0.8 (clipped); mean of -1.2 and 1.1.
        (GrpoSettings(), -0.05, [0, 1.5 / 6, 1 / 6, 0], 1 / 4, 1 / 4),
        # The same tokens: (-1.2 + 3.3) / (2 sequences * 8 tokens allowed).
        (GrpoSettings(variant="dr_grpo"), 2.1 / 16, [0, 1.5 / 16, 1 / 16, 0], 1 / 4, 1 / 4),
        # Upper bound 1.28; (-1.28 + 3.3) / 4 tokens.
        (GrpoSettings(variant="dapo"), 2.02 / 4, [0, 1.5 / 4, 1 / 4, 0], 1 / 4, 1 / 4),
        # Sequence ratios 1.5 and 0.9086, both beyond bounds as narrow as GSPO's; all three tokens of the second count.
        (GrpoSettings(variant="gspo"), (-1.0004 + 0.9997) / 2, [0, 0, 0, 0], 3 / 4, 1 / 4),
        (GrpoSettings(variant="gspo", clip_low=0.1, clip_high=0.6), (-1.5 + S) / 2, [-0.75, S / 6, S / 6, S / 6], 0, 0),
        # -weight * A * logprob with logprob -1: 1.5 | -1.5, -1, -0.5; nothing near the cap of 5.
        (GrpoSettings(variant="cispo"), (1.5 - 3) / 4, [-1.5 / 4, 1.5 / 4, 1 / 4, 0.5 / 4], 0, 0),
        (GrpoSettings(variant="cispo", clip_high=0.2), (1.2 - 2.7) / 4, [-0.3, 0.3, 0.25, 0.125], 0, 2 / 4),
        # Sequence ratios 1.5 and 1.5 * 1 * 0.5 = 0.75, on every token: (-1.5 + 3 * 0.75) / 2 sequences.
        (GrpoSettings(variant="rloo"), 0.375, [-0.75, 0.375, 0.375, 0.375], 0, 0),
        # A key of the recipe goes before the variant's.
        (GrpoSettings(aggregation="token_mean"), (-1.2 + 3.3) / 4, [0, 1.5 / 4, 1 / 4, 0], 1 / 4, 1 / 4),
    ],
)
def test_policy_loss_by_hand(
    settings: GrpoSettings, loss: float, gradient: list[float], clipped_low: float, clipped_high: float
) -> None:
    output, grad = run(settings)
    assert output.loss.item() == pytest.approx(loss, abs=1e-6)
    assert grad == pytest.approx(gradient, abs=1e-6)
    assert {name: term.item() for name, term in output.terms.items()} == {"policy": output.loss.item()}
    assert output.metrics["update/clip_fraction_low"].item() == pytest.approx(clipped_low)
    assert output.metrics["update/clip_fraction_high"].item() == pytest.approx(clipped_high)


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [(None, 1 - math.log(2.0), -1.0), ("k3", 1 - math.log(2.0), -1.0), ("k2", math.log(2.0) ** 2 / 2, -math.log(2.0))],
)
def test_kl_in_the_loss_by_hand(estimator: str | None, value: float, slope: float) -> None:
    """r = 2 at every token, so the mean of k3 is 1 - log 2 and its slope in the policy's log-prob is 1 - r."""
    without, grad_without = run(GrpoSettings())
    output, grad = run(GrpoSettings.model_validate({"kl_coef": 0.1, "kl_estimator": estimator}))
    assert output.terms["kl"].item() == pytest.approx(0.1 * value, rel=1e-5)
    assert output.terms["policy"].item() == without.loss.item()
    assert output.loss.item() == pytest.approx(without.loss.item() + 0.1 * value, rel=1e-5)
    difference = [a - b for a, b in zip(grad, grad_without, strict=True)]
    assert difference == pytest.approx([0.1 * slope / 2] + [0.1 * slope / 6] * 3, rel=1e-4)
    assert not any(term.requires_grad for term in (*output.terms.values(), *output.metrics.values()))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("grpo", [0.0, 1 / (1 + 1e-4), -1 / (1 + 1e-4), 0.0]),
        ("dr_grpo", [0.0, 1.0, -1.0, 0.0]),
        ("rloo", [0.0, 1.5, -1.5, 0.0]),
    ],
)
def test_credit_spreads_a_sequence_advantage_over_its_response(variant: GrpoVariant, expected: list[float]) -> None:
    batch = make_batch(lengths=[2, 1, 3, 2], rewards=[1.0, 2.0, 0.0, 5.0], groups=[0, 0, 0, 1])
    credited = build_update(GrpoSettings(variant=variant)).credit(batch)
    for row, advantage in enumerate(expected):
        torch.testing.assert_close(credited.advantages_BT[row], advantage * batch.response_BT[row])


def test_kl_in_the_reward_comes_off_before_the_baseline() -> None:
    batch = make_batch(lengths=[1, 3], rewards=[1.0, 0.0], groups=[0, 0])
    proximal_BT = torch.full(batch.response_BT.shape, -1.0)
    reference_BT = torch.full(batch.response_BT.shape, -1.5)  # k1 = 0.5 a token: 0.5 and 1.5 a sequence
    batch = with_frozen(batch, {Signal.PROXIMAL_LOGPROBS: proximal_BT, Signal.REFERENCE_LOGPROBS: reference_BT})
    update = build_update(GrpoSettings(variant="dr_grpo", kl_coef=0.2, kl_placement="reward"))
    # Rewards 1 - 0.1 and 0 - 0.3; mean 0.3.
    credited = update.credit(batch)
    assert credited.advantages_BT[:, PROMPT_TOKENS].tolist() == pytest.approx([0.6, -0.6])
    policy_BT = torch.full(batch.response_BT.shape, -1.0, requires_grad=True)
    assert list(update.loss(credited, with_policy(credited, policy_BT)).terms) == ["policy"]


def test_mask_truncated_takes_the_row_out_but_keeps_its_reward_in_the_baseline() -> None:
    batch = make_batch(lengths=[2, 3, 1], rewards=[3.0, 0.0, 0.0], groups=[0, 0, 0], truncated=[1])
    credited = build_update(GrpoSettings(variant="dr_grpo", mask_truncated=True)).credit(batch)
    assert credited.advantages_BT.sum(dim=1).tolist() == [2 * 2.0, 0.0, -1.0]
    assert credited.response_BT.sum(dim=1).tolist() == [2, 0, 1]
    assert credited.recounted().denominators.sequences == 2
    assert credited.recounted().denominators.tokens == 3


def test_truncated_rows_train_unless_masked() -> None:
    batch = make_batch(lengths=[2, 3], rewards=[1.0, 0.0], groups=[0, 0], truncated=[1])
    assert torch.equal(build_update(GrpoSettings()).credit(batch).response_BT, batch.response_BT)


GROUPS = [make_group("a", [1.0, 1.0]), make_group("b", [0.0, 1.0]), make_group("c", [0.5]), make_group("d", [2.0, 0.0])]


def test_select_takes_everything() -> None:
    examples = build_update(GrpoSettings()).select(GROUPS)
    assert [(e.group, e.rollout.sample_index) for e in examples] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (3, 0),
        (3, 1),
    ]


@pytest.mark.parametrize("settings", [GrpoSettings(variant="dapo"), GrpoSettings(drop_uniform_groups=True)])
def test_select_drops_groups_of_equal_rewards(settings: GrpoSettings) -> None:
    examples = build_update(settings).select(GROUPS)
    assert [(e.group, e.prompt.id, e.rollout.reward) for e in examples] == [
        (1, "b", 0.0),
        (1, "b", 1.0),
        (3, "d", 2.0),
        (3, "d", 0.0),
    ]


def test_a_variant_can_keep_uniform_groups() -> None:
    assert len(build_update(GrpoSettings(variant="dapo", drop_uniform_groups=False)).select(GROUPS)) == 7


def test_the_reference_is_needed_only_for_a_kl() -> None:
    plain = {Signal.POLICY_LOGPROBS, Signal.PROXIMAL_LOGPROBS}
    assert build_update(GrpoSettings()).needs == plain
    assert build_update(GrpoSettings(kl_placement="reward")).needs == plain
    assert build_update(GrpoSettings(kl_coef=0.1)).needs == plain | {Signal.REFERENCE_LOGPROBS}
    assert build_update(GrpoSettings(kl_coef=0.1, kl_placement="reward")).needs == plain | {Signal.REFERENCE_LOGPROBS}


def test_a_missing_signal_is_named() -> None:
    batch = worked_example()
    policy = Signals({Signal.POLICY_LOGPROBS: torch.zeros(batch.response_BT.shape)}, rule="grpo")
    with pytest.raises(MissingSignalError, match="'grpo' needs the signal PROXIMAL_LOGPROBS"):
        Grpo(GrpoSettings()).loss(batch, policy)


@pytest.mark.parametrize(
    ("estimator", "placement", "reason"),
    [("k1", "loss", "zero in expectation"), ("k2", "reward", "Take k1"), ("k3", "reward", "Take k1")],
)
def test_estimators_without_a_gradient_are_refused(estimator: str, placement: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        GrpoSettings.model_validate({"kl_estimator": estimator, "kl_placement": placement})


@pytest.mark.parametrize("key", ["clip_low", "clip_high"])
def test_a_clip_of_null_is_not_clipped_and_one_left_out_is_the_variants(key: str) -> None:
    null, left_out = GrpoSettings.model_validate({"variant": "dapo", key: None}), GrpoSettings(variant="dapo")
    assert getattr(null.choices(), key) is None
    assert left_out.choices() == GRPO_VARIANTS["dapo"]
    for settings in (null, left_out):
        assert GrpoSettings.model_validate(settings.model_dump()).choices() == settings.choices()
        assert settings.resolved().choices() == settings.choices()
        assert settings.model_copy().choices() == settings.choices()


def test_resolved_settings_show_the_variant_and_change_nothing() -> None:
    settings = GrpoSettings(variant="dapo", clip_low=0.1, kl_placement="reward")
    resolved = settings.resolved()
    assert settings.choices() == GrpoChoices(
        advantage="group_std",
        ratio="token",
        surrogate="clip",
        aggregation="token_mean",
        clip_low=0.1,
        clip_high=0.28,
        drop_uniform_groups=True,
    )
    assert (resolved.aggregation, resolved.clip_low, resolved.clip_high) == ("token_mean", 0.1, 0.28)
    assert (resolved.drop_uniform_groups, resolved.kl_estimator) == (True, "k1")
    assert resolved.resolved() == resolved


@pytest.mark.parametrize("variant", list(GRPO_VARIANTS))
def test_resolved_settings_train_the_same(variant: GrpoVariant) -> None:
    settings = GrpoSettings(variant=variant, kl_coef=0.1)
    reread = GrpoSettings.model_validate(settings.resolved().model_dump())
    (ours, our_gradient), (theirs, their_gradient) = run(settings), run(reread)
    assert ours.loss.item() == theirs.loss.item()
    assert our_gradient == their_gradient


def test_the_worked_example_is_what_it_says() -> None:
    """Guards the hand arithmetic above against a change in the builders."""
    batch = worked_example()
    ratios: Tensor = (-1 - batch.signals[Signal.PROXIMAL_LOGPROBS][batch.response_BT]).exp()
    assert ratios.tolist() == pytest.approx([1.5, 1.5, 1.0, 0.5])
    assert (batch.denominators.sequences, batch.denominators.tokens) == (2, 4)
    assert batch.denominators.completion_limit == COMPLETION_LIMIT == 8
