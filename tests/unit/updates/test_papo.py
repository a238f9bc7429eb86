"""PAPO's objective against the golden vector of its released code, and what must hold of each of its terms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.functional.perception import kl_clean_to_corrupted_k3
from rlkl.updates import build_update
from rlkl.updates.papo.rule import Papo
from rlkl.updates.papo.terms import CleanEntropy
from rlkl.updates.settings import GrpoSettings, PapoSettings
from tests.builders import PROMPT_TOKENS, make_batch, make_group, random_logprobs, with_frozen

CLEAN = [-0.2, -1.0]
CORRUPTED = [-0.5, -0.9]
GRPO_ALONE = PapoSettings(perception_coef=0.0)
AS_PAPO = GrpoSettings(aggregation="token_mean", clip_high=0.3, kl_coef=0.01)


def spread(batch: Batch, values: list[float]) -> Tensor:
    return torch.zeros(batch.response_BT.shape).masked_scatter(batch.response_BT, torch.tensor(values))


def golden_batch(advantage: float = 1.0) -> Batch:
    batch = make_batch(lengths=[2], rewards=[0.0], groups=[0], corrupted=[0])
    clean_BT = spread(batch, CLEAN)
    batch = with_frozen(batch, {Signal.PROXIMAL_LOGPROBS: clean_BT, Signal.REFERENCE_LOGPROBS: clean_BT})
    return replace(batch, advantages_BT=advantage * batch.response_BT.float())


def run(settings: PapoSettings | GrpoSettings, batch: Batch, policy_BT: Tensor, corrupted_BT: Tensor) -> Run:
    policy_BT, corrupted_BT = policy_BT.clone().requires_grad_(), corrupted_BT.clone().requires_grad_()
    own = Signals(
        {
            Signal.POLICY_LOGPROBS: policy_BT,
            Signal.CORRUPTED_LOGPROBS: corrupted_BT,
            Signal("logprobs", view="corrupted"): corrupted_BT,
        }
    )
    output = build_update(settings).loss(batch, batch.signals.merged(own))
    to_policy, to_corrupted = torch.autograd.grad(output.loss, (policy_BT, corrupted_BT), allow_unused=True)
    return Run(output, to_policy, to_corrupted)


class Run:
    def __init__(self, output: LossOutput, to_policy_BT: Tensor, to_corrupted_BT: Tensor | None) -> None:
        self.output = output
        self.loss = output.loss.item()
        self.to_policy_BT = to_policy_BT
        self.to_corrupted_BT = to_corrupted_BT


def golden(settings: PapoSettings, advantage: float = 1.0) -> Run:
    batch = golden_batch(advantage)
    return run(settings, batch, spread(batch, CLEAN), spread(batch, CORRUPTED))


def response(x_BT: Tensor | None) -> list[float]:
    assert x_BT is not None
    return x_BT[0, PROMPT_TOKENS:].tolist()


def some_batch() -> tuple[Batch, Tensor, Tensor]:
    """Two groups, one sequence without an image; policy and corrupted log-probs."""
    batch = make_batch(
        lengths=[3, 1, 4, 2], rewards=[1.0, 0.0, 0.5, 2.0], groups=[0, 0, 1, 1], corrupted=[0, 2, 3], padding=1
    )
    batch = Papo(PapoSettings()).credit(batch)
    return batch, random_logprobs(batch.response_BT, seed=9), random_logprobs(batch.response_BT, seed=10)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_golden_vector(beta: float) -> None:
    settings = PapoSettings(perception_coef=0.02, entropy_coef=0.03, corrupted_entropy_coef=0.03, kl_coef=beta)
    result = golden(settings)
    assert result.loss == pytest.approx(-0.96145989, abs=1e-7)
    assert response(result.to_policy_BT) == pytest.approx([-0.51759182, -0.51394829], abs=1e-7)
    assert result.to_corrupted_BT is None
    metrics = {key: value.item() for key, value in result.output.metrics.items() if key.startswith("perception/")}
    assert metrics == pytest.approx(
        {
            "perception/kl": 0.02299457,
            "perception/kl_variance": ((0.04081822 - 0.00517092) / 2) ** 2,
            "perception/entropy_clean": 0.6,
            "perception/entropy_corrupted": 0.7,
        },
        rel=1e-5,
    )
    assert {name: term.item() for name, term in result.output.terms.items() if name != "kl"} == pytest.approx(
        {"policy": -1.0, "perception": -0.02 * 0.02299457, "entropy": 0.018, "corrupted_entropy": 0.021}
    )


def test_golden_vector_with_recompute() -> None:
    settings = PapoSettings(perception_coef=0.02, entropy_coef=0.03, corrupted_entropy_coef=0.03, recompute=True)
    result = golden(settings)
    assert result.loss == pytest.approx(-0.96145989, abs=1e-7)
    assert response(result.to_policy_BT) == pytest.approx([-0.51759182, -0.51394829], abs=1e-7)
    assert response(result.to_corrupted_BT) == pytest.approx([-0.01240818, -0.01605171], abs=1e-7)


def test_an_image_that_changes_nothing_has_no_perception_term() -> None:
    batch = golden_batch(advantage=0.0)
    clean_BT = spread(batch, CLEAN)
    result = run(PapoSettings(recompute=True), batch, clean_BT, clean_BT)
    assert result.output.metrics["perception/kl"] == 0
    assert not result.to_policy_BT.any()
    assert result.to_corrupted_BT is not None
    assert not result.to_corrupted_BT.any()


def test_a_step_raises_tokens_that_the_image_supports() -> None:
    batch = golden_batch(advantage=0.0)
    before_BT, corrupted_BT = spread(batch, CLEAN), spread(batch, CORRUPTED)
    result = run(PapoSettings(perception_coef=1.0, kl_coef=0.0), batch, before_BT, corrupted_BT)
    after_BT = before_BT - 0.1 * result.to_policy_BT
    moved = response(after_BT - before_BT)
    assert moved[0] > 0 > moved[1]
    before, after = (kl_clean_to_corrupted_k3(clean_BT, corrupted_BT).sum() for clean_BT in (before_BT, after_BT))
    assert after > before


@pytest.mark.parametrize("variant", ["grpo", "dapo"])
def test_without_gamma_and_eta_it_is_grpo_bit_for_bit(variant: str) -> None:
    batch, policy_BT, corrupted_BT = some_batch()
    papo = GRPO_ALONE.model_copy(update={"variant": variant})
    grpo = AS_PAPO if variant == "grpo" else GrpoSettings(variant="dapo", kl_coef=0.01)
    assert papo.choices() == grpo.choices()
    ours, theirs = (run(settings, batch, policy_BT, corrupted_BT) for settings in (papo, grpo))
    assert ours.loss == theirs.loss
    assert torch.equal(ours.to_policy_BT, theirs.to_policy_BT)


def test_gradients_are_linear_in_gamma_and_eta1() -> None:
    batch, policy_BT, corrupted_BT = some_batch()

    def gradient(gamma: float, eta1: float) -> Tensor:
        settings = PapoSettings(perception_coef=gamma, entropy_coef=eta1)
        return run(settings, batch, policy_BT, corrupted_BT).to_policy_BT

    start_BT = gradient(0.0, 0.0)
    of_gamma_BT, of_eta1_BT = gradient(1.0, 0.0) - start_BT, gradient(0.0, 1.0) - start_BT
    assert of_gamma_BT.any()
    assert of_eta1_BT.any()
    torch.testing.assert_close(gradient(3.0, 2.0), start_BT + 3 * of_gamma_BT + 2 * of_eta1_BT)


def test_eta2_trains_only_with_recompute() -> None:
    batch, policy_BT, corrupted_BT = some_batch()

    def both(eta2: float, *, recompute: bool) -> Run:
        settings = PapoSettings(corrupted_entropy_coef=eta2, recompute=recompute)
        return run(settings, batch, policy_BT, corrupted_BT)

    off, on = both(0.0, recompute=False), both(1.0, recompute=False)
    assert torch.equal(off.to_policy_BT, on.to_policy_BT)
    assert on.to_corrupted_BT is None
    assert on.loss > off.loss
    off, on = both(0.0, recompute=True), both(1.0, recompute=True)
    assert off.to_corrupted_BT is not None
    assert on.to_corrupted_BT is not None
    assert not torch.equal(off.to_corrupted_BT, on.to_corrupted_BT)


def test_default_mode_reads_what_was_computed_at_the_start_of_the_step() -> None:
    """The frozen signal stands in the batch, so it stays while the policy's log-probs move between optimizer steps."""
    batch, policy_BT, _ = some_batch()

    def entropies(shift: float) -> tuple[float, float]:
        signals = batch.signals.merged(Signals({Signal.POLICY_LOGPROBS: policy_BT + shift}))
        metrics = Papo(PapoSettings()).loss(batch, signals).metrics
        return metrics["perception/entropy_clean"].item(), metrics["perception/entropy_corrupted"].item()

    (clean, corrupted), (moved, still) = entropies(0.0), entropies(-0.25)
    assert moved == pytest.approx(clean + 0.25)
    assert still == corrupted


def test_all_terms_are_token_means_of_the_whole_step() -> None:
    """The released code averages within each micro-batch; here k3 of every token weighs the same."""
    batch, policy_BT, corrupted_BT = some_batch()
    terms = run(PapoSettings(perception_coef=1.0, entropy_coef=1.0), batch, policy_BT, corrupted_BT).output.terms
    image_BT = batch.response_BT & batch.pictured_B[:, None]
    k_N = kl_clean_to_corrupted_k3(policy_BT, corrupted_BT)[image_BT]
    assert terms["perception"].item() == pytest.approx(-k_N.sum().item() / 10)
    assert terms["entropy"].item() == pytest.approx(-policy_BT[image_BT].sum().item() / 10)


def test_perception_follows_the_aggregation_and_entropies_stay_token_means() -> None:
    batch, policy_BT, corrupted_BT = some_batch()
    settings = PapoSettings(aggregation="sequence_mean", perception_coef=1.0, entropy_coef=1.0)
    terms = run(settings, batch, policy_BT, corrupted_BT).output.terms
    image_BT = batch.response_BT & batch.pictured_B[:, None]
    k_BT = torch.where(image_BT, kl_clean_to_corrupted_k3(policy_BT, corrupted_BT), 0.0)
    means_B = k_BT.sum(1) / torch.tensor([3, 1, 4, 2])
    assert terms["perception"].item() == pytest.approx(-means_B.mean().item())
    assert terms["entropy"].item() == pytest.approx(-policy_BT[image_BT].sum().item() / 10)


def test_equal_rewards_leave_the_perception_term_and_dapo_drops_them() -> None:
    batch, policy_BT, corrupted_BT = some_batch()
    batch = Papo(PapoSettings()).credit(replace(batch, rewards_B=torch.ones(4)))
    assert not run(GRPO_ALONE.model_copy(update={"kl_coef": 0.0}), batch, policy_BT, corrupted_BT).to_policy_BT.any()
    assert run(PapoSettings(kl_coef=0.0), batch, policy_BT, corrupted_BT).to_policy_BT.any()
    groups = [make_group("equal", [1.0, 1.0]), make_group("mixed", [0.0, 1.0])]
    assert {example.group for example in Papo(PapoSettings()).select(groups)} == {0, 1}
    assert {example.group for example in Papo(PapoSettings(variant="dapo")).select(groups)} == {1}


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.29, 1.0, -1.29),
        (1.31, 1.0, 0.0),  # beyond 1 + 0.3
        (0.79, -1.0, 0.0),  # beyond 1 - 0.2
        (0.81, -1.0, 0.81),
        (2.9, -1.0, 2.9),
        (3.1, -1.0, 0.0),  # dual clip
        (3.1, 1.0, 0.0),
    ],
)
def test_clipping_holds_the_surrogate_and_leaves_the_perception_term(
    ratio: float, advantage: float, slope: float
) -> None:
    batch = golden_batch(advantage)
    policy_BT = spread(batch, CLEAN) + torch.tensor(ratio).log()
    policy_BT = torch.where(batch.response_BT, policy_BT, 0.0)
    corrupted_BT = torch.where(batch.response_BT, policy_BT - 0.3, 0.0)
    alone = run(PapoSettings(perception_coef=0.0, kl_coef=0.0), batch, policy_BT, corrupted_BT)
    assert response(alone.to_policy_BT) == pytest.approx([slope / 2] * 2, abs=1e-6)
    whole = run(PapoSettings(perception_coef=1.0, kl_coef=0.0), batch, policy_BT, corrupted_BT)
    pull = torch.tensor(-0.3).expm1().item() / 2  # -(1 - r) / N
    assert response(whole.to_policy_BT - alone.to_policy_BT) == pytest.approx([pull] * 2, abs=1e-6)


def test_entropy_term_lowers_the_likelihood_loss_of_sampled_tokens() -> None:
    batch = golden_batch(advantage=0.0)
    policy_BT = spread(batch, CLEAN)
    settings = PapoSettings(perception_coef=0.0, kl_coef=0.0, entropy_coef=0.05)
    result = run(settings, batch, policy_BT, spread(batch, CORRUPTED))
    assert -(policy_BT - result.to_policy_BT).sum() < -policy_BT.sum()


def test_annealing_is_linear_and_scales_both_entropies() -> None:
    settings = PapoSettings(
        perception_coef=0.02, anneal_to=0.0, anneal_over=0.5, entropy_coef=0.05, corrupted_entropy_coef=0.05
    )

    def annealing(settings: PapoSettings, progress: float) -> float:
        return CleanEntropy(settings).annealing(progress)

    assert [annealing(settings, progress) for progress in (0.0, 0.125, 0.25, 0.5, 0.9)] == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert annealing(settings.model_copy(update={"anneal_to": 0.01}), 0.25) == 0.75
    assert annealing(settings.model_copy(update={"anneal_to": None}), 0.9) == 1.0
    batch, policy_BT, corrupted_BT = some_batch()
    full = run(settings, batch, policy_BT, corrupted_BT).output.terms
    half = run(settings, replace(batch, progress=0.25), policy_BT, corrupted_BT).output.terms
    for name in ("perception", "entropy", "corrupted_entropy"):
        assert half[name].item() == pytest.approx(full[name].item() / 2)
    assert half["policy"] == full["policy"]


def test_annealing_upwards_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"anneal_to = 0\.5 is not below perception_coef = 0\.02"):
        PapoSettings(anneal_to=0.5)


def test_sequences_without_an_image_contribute_grpos_terms_alone() -> None:
    batch, policy_BT, corrupted_BT = some_batch()
    settings = PapoSettings(perception_coef=1.0, entropy_coef=1.0, corrupted_entropy_coef=1.0)
    grpo = run(AS_PAPO, batch, policy_BT, corrupted_BT)
    unknown_BT = corrupted_BT.clone()
    unknown_BT[1] = float("nan")  # nobody computed it
    papo = run(settings, batch, policy_BT, unknown_BT)
    assert torch.equal(papo.to_policy_BT[1], grpo.to_policy_BT[1])
    assert not torch.equal(papo.to_policy_BT[0], grpo.to_policy_BT[0])
    text_only = replace(batch, pictured_B=torch.zeros(4, dtype=torch.bool)).recounted()
    alone = run(settings, text_only, policy_BT, torch.full_like(corrupted_BT, float("nan")))
    assert alone.loss == grpo.loss
    assert torch.equal(alone.to_policy_BT, grpo.to_policy_BT)
    assert alone.output.metrics["perception/kl"] == 0


def test_metrics_are_means_over_image_sequences_alone() -> None:
    batch, policy_BT, corrupted_BT = some_batch()
    batch = batch.recounted()
    metrics = run(PapoSettings(), batch, policy_BT, corrupted_BT).output.metrics
    k_BT = kl_clean_to_corrupted_k3(policy_BT, corrupted_BT)
    rows = [k_BT[row][batch.response_BT[row]] for row in (0, 2, 3)]
    assert metrics["perception/kl"].item() == pytest.approx(torch.cat(rows).mean().item())
    variance = sum(row.var(correction=0).item() for row in rows) / 3
    assert metrics["perception/kl_variance"].item() == pytest.approx(variance)


def test_logged_perception_loss_is_minus_gamma_times_the_metric() -> None:
    output = golden(PapoSettings()).output
    assert output.terms["perception"].item() == pytest.approx(-0.02 * output.metrics["perception/kl"].item())


def test_alarms_compare_with_the_runs_first_step() -> None:
    healthy = {
        "perception/kl": 0.5,
        "perception/kl_variance": 1.5,
        "perception/entropy_clean": 0.35,
        "perception/entropy_corrupted": 0.4,
        "update/clip_fraction_high": 0.0,
    }
    rule, trained_on_nothing = Papo(PapoSettings()), {"optim/skipped": 1.0}
    assert rule.alarms([trained_on_nothing]) == {}
    assert rule.alarms([healthy, *[{**healthy, "perception/kl": 1.9}] * 2, *[healthy] * 12]) == {}
    alarms = rule.alarms([trained_on_nothing, *[healthy] * 3, *[{**healthy, "perception/kl": 2.1}] * 300])
    assert list(alarms) == ["perception/kl"]
    assert "exceeds 2 (at the start it was 0.5)" in alarms["perception/kl"]
