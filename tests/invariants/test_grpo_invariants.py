"""What must hold for every update rule, whatever its formula. A further rule adds its settings to `RULES`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from rlkl.batch import Batch, Signal, Signals
from rlkl.updates import build_update
from rlkl.updates.settings import (
    GRPO_VARIANTS,
    DistillSettings,
    GrpoSettings,
    ListwiseSettings,
    PapoSettings,
    PpoSettings,
    SparsePoSettings,
    SuperHfSettings,
    TokenMask,
    UpdateSettings,
)
from rlkl.updates.terms.masked_kl.settings import MaskedKlSettings
from rlkl.updates.terms.settings import EntropySettings, KlSettings
from tests.builders import make_batch, random_logprobs, with_frozen

TERMS = [
    KlSettings(coef=0.2, free_nats=0.05),
    KlSettings(coef=0.2, estimator="k3"),
    KlSettings(coef=0.2, estimator="k1", target=0.5),
    MaskedKlSettings(coef=0.5, token_ids=[*range(1, 25)]),
    EntropySettings(coef=0.1),
]

RULES: list[UpdateSettings] = [
    *(GrpoSettings(variant=variant) for variant in GRPO_VARIANTS),
    *(GrpoSettings(variant=variant, kl_coef=0.3) for variant in GRPO_VARIANTS),
    GrpoSettings(kl_coef=0.3, kl_estimator="k2"),
    GrpoSettings(terms=TERMS),
    PpoSettings(terms=TERMS),
    SuperHfSettings(terms=TERMS),
    PapoSettings(terms=TERMS),
    SparsePoSettings(terms=TERMS),
    GrpoSettings(kl_coef=0.3, kl_placement="reward"),
    GrpoSettings(variant="rloo", kl_coef=0.3, kl_placement="reward", mask_truncated=True),
    GrpoSettings(variant="gspo", clip_low=0.1, clip_high=0.2, mask_truncated=True),
    PapoSettings(entropy_coef=0.05, corrupted_entropy_coef=0.05),
    PapoSettings(entropy_coef=0.05, corrupted_entropy_coef=0.05, recompute=True),
    PapoSettings(variant="dapo", kl_coef=0.0, perception_coef=0.5, mask_truncated=True),
    PapoSettings(variant="gspo", perception_coef=0.5, anneal_to=0.1),
    PpoSettings(),
    PpoSettings(whiten=False, value_clip=None, gae_lambda=0.5, discount=0.9),
    PpoSettings(critic="none", kl_coef=0.0),
    SuperHfSettings(),
    SuperHfSettings(kl_coef=0.0),
    SuperHfSettings(compat=True),
    DistillSettings(terms=TERMS),
    DistillSettings(direction="model_to_policy", top_k=2),
    DistillSettings(placement="reward", reward_coef=0.5),
    *(SparsePoSettings(mask=mask, l1_reward=0.1, l1_kl=0.2) for mask in get_args(TokenMask)),
    SparsePoSettings(mask="sparse_independent", masked_terms="kl"),
    ListwiseSettings(),
    ListwiseSettings(terms=TERMS),
    ListwiseSettings(over_tokens="mean", tau=0.5, tau_unit="reward"),
]
REWARDS_ALONE: list[UpdateSettings] = [
    *(
        s
        for s in RULES
        if isinstance(s, GrpoSettings) and not isinstance(s, PapoSettings) and s.kl_coef == 0 and not s.terms
    ),
    PapoSettings(kl_coef=0.0, perception_coef=0.0),
    PpoSettings(critic="none", kl_coef=0.0, gae_lambda=1.0),
]
"""Rules for which equal rewards leave nothing to learn."""

TEACHER = Signal("logprobs", "teacher", moment="step_start")
LEARNED: dict[Signal, int | slice] = {
    Signal.POLICY_LOGPROBS: 0,
    Signal.HEADS: slice(1, 3),
    Signal.CORRUPTED_LOGPROBS: 3,
    Signal("logprobs", view="corrupted"): 3,
    Signal.KL_REFERENCE_TO_POLICY: 4,
    Signal.KL_POLICY_TO_REFERENCE: 5,
    Signal.POLICY_ENTROPY: 6,
    Signal("kl_to_policy", "teacher", top_k=2): 4,
    Signal("kl_from_policy", "teacher"): 5,
}
"""Columns of the ``[B, T, K]`` tensor from which `evaluate` takes a rule's differentiable signals."""
COLUMNS = 7


def name(settings: UpdateSettings) -> str:
    return "-".join(str(value) for value in settings.model_dump(exclude_defaults=True).values()) or "defaults"


each_rule = pytest.mark.parametrize("settings", RULES, ids=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    loss: float
    gradient_BTK: Tensor
    metrics: dict[str, float]


def example() -> Batch:
    batch = make_batch(
        lengths=[3, 1, 0, 6, 2, 5, 4],
        rewards=[1.0, 0.0, 0.25, 2.0, 0.0, 1.0, 0.5],
        groups=[0, 0, 0, 1, 1, 1, 2],
        truncated=[3],
        corrupted=[0, 2, 3, 6],
        padding=2,
    )
    pair_B = torch.tensor([0, -1, 0, 1, 1, -1, -1])
    chosen_B = torch.tensor([True, False, False, False, True, False, False])
    batch = replace(batch, list_B=pair_B, rank_B=(~chosen_B).long()).recounted()
    heads_BTK = torch.stack([random_logprobs(batch.response_BT, seed=seed) for seed in (4, 5)], dim=-1)
    teacher_BT = random_logprobs(batch.response_BT, seed=6)
    return with_frozen(batch, {Signal.PROXIMAL_HEADS: heads_BTK, TEACHER: teacher_BT})


def prepared(settings: UpdateSettings, batch: Batch) -> Batch:
    """A batch as the learner hands it to `loss`."""
    return build_update(settings).credit(batch).recounted()


def learned_of(batch: Batch) -> Tensor:
    """What a model might say, zero outside the response."""
    return torch.stack([random_logprobs(batch.response_BT, seed=9 + k) for k in range(COLUMNS)], dim=-1)


def evaluate(settings: UpdateSettings, batch: Batch, learned_BTK: Tensor) -> Result:
    learned_BTK = learned_BTK.clone().requires_grad_()
    rule = build_update(settings)
    own = {signal: learned_BTK[..., columns] for signal, columns in LEARNED.items()}
    output = rule.loss(batch, batch.signals.merged(Signals(own)))
    (gradient_BTK,) = torch.autograd.grad(output.loss, learned_BTK)
    values = {**output.terms, **output.metrics}
    return Result(
        loss=output.loss.item(),
        gradient_BTK=gradient_BTK,
        metrics={key: value.item() for key, value in values.items()},
    )


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-6)
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(ours.gradient_BTK, theirs.gradient_BTK, rtol=1e-5, atol=1e-7)


def cut_for(settings: UpdateSettings, cut: list[list[int]], batch: Batch) -> list[list[int]]:
    """The cut as micro-batches are cut for this rule."""
    compares = isinstance(settings, SparsePoSettings | ListwiseSettings)
    return with_whole_pairs(cut, batch) if compares else cut


def with_whole_pairs(cut: list[list[int]], batch: Batch) -> list[list[int]]:
    """The cut with the rows of each list moved to its first, since micro-batches never part a list."""
    pairs = batch.pair_B.tolist()
    home = {row: pairs.index(pair) if pair >= 0 else row for row, pair in enumerate(pairs)}
    moved = [[row for row in home if home[row] in rows] for rows in cut]
    return [rows for rows in moved if rows]


@each_rule
@pytest.mark.parametrize(
    "cut",
    [[[0], [1], [2], [3], [4], [5], [6]], [[0, 1, 2], [3, 4, 5, 6]], [[6, 1], [3, 0, 2], [5, 4]]],
    ids=["single rows", "two halves", "mixed groups"],
)
def test_the_cut_into_micro_batches_does_not_matter(settings: UpdateSettings, cut: list[list[int]]) -> None:
    batch = prepared(settings, example())
    learned_BTK = learned_of(batch)
    whole = evaluate(settings, batch, learned_BTK)
    gradient_BTK = torch.zeros_like(learned_BTK)
    parts = []
    for rows in cut_for(settings, cut, batch):
        micro_batch = batch.rows(torch.tensor(rows))
        width = micro_batch.response_BT.shape[1]
        part = evaluate(settings, micro_batch, learned_BTK[rows, :width])
        gradient_BTK[rows, :width] += part.gradient_BTK
        parts.append(part)
    summed = {key: sum((part.metrics[key] for part in parts), start=0.0) for key in whole.metrics}
    assert_same(Result(loss=sum(part.loss for part in parts), gradient_BTK=gradient_BTK, metrics=summed), whole)
    assert whole.gradient_BTK.abs().max() > 0 or whole.metrics["update/clip_fraction_low"] > 0


@each_rule
def test_padding_does_not_matter(settings: UpdateSettings) -> None:
    batch = prepared(settings, example())
    learned_BTK = learned_of(batch)
    width = learned_BTK.shape[1]
    tight = batch.rows(torch.arange(batch.size))
    assert tight.response_BT.shape[1] < width
    ours = evaluate(settings, tight, learned_BTK[:, : tight.response_BT.shape[1]])
    padded_BTK = pad(ours.gradient_BTK, (0, 0, 0, width - ours.gradient_BTK.shape[1]))
    assert_same(replace(ours, gradient_BTK=padded_BTK), evaluate(settings, batch, learned_BTK))


@each_rule
def test_the_side_of_the_padding_does_not_matter(settings: UpdateSettings) -> None:
    """Every sequence moved to the right end of its row."""
    batch = example()
    learned_BTK = learned_of(batch)
    shift = (batch.response_BT.shape[1] - batch.attention_BT.sum(dim=1)).tolist()

    def moved(x: Tensor) -> Tensor:
        return torch.stack([row.roll(by, dims=0) for row, by in zip(x, shift, strict=True)])

    left = replace(
        with_frozen(batch, {signal: moved(batch.signals[signal]) for signal in batch.signals}),
        token_ids_BT=moved(batch.token_ids_BT),
        attention_BT=moved(batch.attention_BT),
        response_BT=moved(batch.response_BT),
        rollout_logprobs_BT=moved(batch.rollout_logprobs_BT),
    )
    whole = evaluate(settings, prepared(settings, batch), learned_BTK)
    ours = evaluate(settings, prepared(settings, left), moved(learned_BTK))
    assert_same(ours, replace(whole, gradient_BTK=moved(whole.gradient_BTK)))


@each_rule
def test_the_order_of_rows_and_the_numbers_of_groups_do_not_matter(settings: UpdateSettings) -> None:
    order = torch.tensor([4, 6, 0, 3, 2, 5, 1])
    renumbered = torch.tensor([40, 7, 19])
    batch = example()
    learned_BTK = learned_of(batch)
    whole = evaluate(settings, prepared(settings, batch), learned_BTK)
    shuffled = batch.rows(order)
    shuffled = prepared(settings, replace(shuffled, group_B=renumbered[shuffled.group_B]))
    width = shuffled.response_BT.shape[1]
    ours = evaluate(settings, shuffled, learned_BTK[order, :width])
    assert_same(ours, replace(whole, gradient_BTK=whole.gradient_BTK[order, :width]))


@each_rule
def test_nan_outside_the_response_never_leaks(settings: UpdateSettings) -> None:
    batch = example()
    learned_BTK = learned_of(batch)
    clean = evaluate(settings, prepared(settings, batch), learned_BTK)

    def poisoned(x: Tensor) -> Tensor:
        inside = batch.response_BT if x.ndim == 2 else batch.response_BT.unsqueeze(-1)
        return torch.where(inside, x, float("nan"))

    dirty = with_frozen(batch, {signal: poisoned(batch.signals[signal]) for signal in batch.signals})
    dirty = prepared(settings, replace(dirty, rollout_logprobs_BT=poisoned(batch.rollout_logprobs_BT)))
    ours = evaluate(settings, dirty, poisoned(learned_BTK))
    assert_same(ours, clean)
    assert not ours.gradient_BTK[~batch.response_BT].any()


@each_rule
def test_extreme_log_probs_keep_loss_and_gradient_finite(settings: UpdateSettings) -> None:
    batch = prepared(settings, example())
    extreme_BTK = learned_of(batch) * torch.tensor([200.0, 1.0]).repeat(batch.response_BT.shape[1] // 2)[:, None]
    for sign in (1, -1):
        swapped = with_frozen(batch, {Signal.PROXIMAL_LOGPROBS: extreme_BTK[..., 0]}) if sign < 0 else batch
        result = evaluate(settings, swapped, extreme_BTK if sign > 0 else learned_of(batch))
        assert result.gradient_BTK.isfinite().all()
        assert all(torch.tensor(value).isfinite() for value in (result.loss, *result.metrics.values()))


@pytest.mark.parametrize("settings", REWARDS_ALONE, ids=name)
def test_equal_rewards_give_exactly_no_gradient(settings: UpdateSettings) -> None:
    batch = replace(example(), rewards_B=torch.full((7,), 0.1))
    batch = prepared(settings, batch)
    assert not evaluate(settings, batch, learned_of(batch)).gradient_BTK.any()


@pytest.mark.parametrize(
    "settings", [s for s in RULES if isinstance(s, GrpoSettings | PpoSettings) and not s.terms], ids=name
)
def test_zero_advantages_give_the_policy_exactly_no_gradient(settings: UpdateSettings) -> None:
    """Everything else that pulls at the policy is switched off: the KL in the loss, perception, entropy."""
    others = {"kl_coef": 0.0, "perception_coef": 0.0, "entropy_coef": 0.0, "anneal_to": None}
    alone = settings.model_copy(update={key: value for key, value in others.items() if hasattr(settings, key)})
    batch = prepared(alone, example())
    to_policy_BT = evaluate(alone, batch, learned_of(batch)).gradient_BTK[..., 0]
    still = replace(batch, advantages_BT=torch.zeros_like(batch.advantages_BT))
    assert not evaluate(alone, still, learned_of(batch)).gradient_BTK[..., 0].any()
    clips_all = isinstance(alone, GrpoSettings) and alone.choices().ratio == "sequence_mean"  # in this example
    assert to_policy_BT.any() or clips_all


@pytest.mark.parametrize(
    "settings", [s for s in RULES if isinstance(s, SparsePoSettings | ListwiseSettings) and not s.terms], ids=name
)
def test_without_a_preference_there_is_exactly_no_gradient(settings: UpdateSettings) -> None:
    batch = replace(example(), list_B=torch.full((7,), -1)).recounted()
    assert not evaluate(settings, prepared(settings, batch), learned_of(batch)).gradient_BTK.any()


@pytest.mark.parametrize("settings", [s for s in RULES if isinstance(s, GrpoSettings) and s.mask_truncated], ids=name)
def test_masked_truncated_rows_give_exactly_no_gradient(settings: UpdateSettings) -> None:
    batch = example()
    gradient_BTK = evaluate(settings, prepared(settings, batch), learned_of(batch)).gradient_BTK
    assert not gradient_BTK[batch.truncated_B].any()
    assert gradient_BTK[~batch.truncated_B].any()


@pytest.mark.parametrize("settings", [GrpoSettings(kl_coef=1.0)], ids=name)
def test_k3_in_the_loss_descends_the_kl_from_reference_to_policy(settings: UpdateSettings) -> None:
    """Enumerates a vocabulary of five tokens: one response token, drawn from the policy, zero advantage."""
    logits_V = torch.tensor([0.5, -1.0, 0.0, 1.5, 0.2], requires_grad=True)
    reference_V = torch.tensor([0.1, 0.7, -0.4, 0.3, -1.2]).log_softmax(0)
    policy_V = logits_V.log_softmax(0)
    batch = make_batch(lengths=[1], rewards=[0.0], groups=[0])
    expected = torch.zeros(())
    for token in range(5):
        frozen = {
            Signal.PROXIMAL_LOGPROBS: policy_V[token].detach() * batch.response_BT,
            Signal.REFERENCE_LOGPROBS: reference_V[token] * batch.response_BT,
            Signal.POLICY_LOGPROBS: policy_V[token] * batch.response_BT,
        }
        output = build_update(settings).loss(batch, batch.signals.merged(Signals(frozen)))
        expected = expected + policy_V[token].detach().exp() * output.loss
    (ours,) = torch.autograd.grad(expected, logits_V, retain_graph=True)
    forward = (reference_V.exp() * (reference_V - policy_V)).sum()
    reverse = (policy_V.exp() * (policy_V - reference_V)).sum()
    torch.testing.assert_close(expected, reverse)
    torch.testing.assert_close(ours, torch.autograd.grad(forward, logits_V, retain_graph=True)[0])
    assert (ours - torch.autograd.grad(reverse, logits_V)[0]).abs().max() > 0.05
