"""SparsePO: its heads, its choice of pairs, its special cases, and both on a real learner."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.learner.learner import Learner
from rlkl.learner.live import live_signals
from rlkl.models.language_model import LanguageModel
from rlkl.types import Completion, Example, Probe, Prompt, Rollout, RolloutGroup
from rlkl.updates import build_update
from rlkl.updates.base import ModelShape
from rlkl.updates.settings import MaskedTerms, SparsePoSettings, TokenMask
from rlkl.updates.sparsepo.mask_heads import MaskHead, MaskHeads
from rlkl.updates.sparsepo.rule import SparsePo
from tests.builders import make_batch, prepared_batch, random_logprobs
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, weights

SHAPE = ModelShape(path="", hidden_size=16, layers=3, seed=0)
MASKS = get_args(TokenMask)
HEADS: list[TokenMask] = ["sparse_common", "sparse_independent"]


def paired_batch(padding: int = 0) -> Batch:
    """Three pairs (the second's rows apart) and a row without one; one response is empty."""
    batch = make_batch(
        lengths=[3, 2, 6, 1, 0, 5, 4], rewards=[1, 0, 1, 0, 0, 1, 0], groups=[0, 0, 1, 2, 1, 2, 3], padding=padding
    )
    chosen_B = torch.tensor([True, False, True, False, False, True, False])
    return replace(batch, list_B=torch.tensor([0, 0, 1, 2, 1, 2, -1]), rank_B=(~chosen_B).long()).recounted()


def signals_of(batch: Batch, *, channels: int = 2) -> Signals:
    """Random signals; every third mask is zero. For MaPO the same tensor stands for the layers' means."""
    generator = torch.Generator().manual_seed(5)
    inside_BT1 = batch.response_BT.unsqueeze(-1)
    said_BTK = torch.rand(*batch.response_BT.shape, channels, generator=generator)
    said_BTK[:, ::3] = 0
    own = {
        Signal.POLICY_LOGPROBS: random_logprobs(batch.response_BT, seed=9),
        Signal.KL_REFERENCE_TO_POLICY: torch.rand(batch.response_BT.shape, generator=generator) * batch.response_BT,
        Signal.HEADS: said_BTK * inside_BT1,
        Signal.PROXIMAL_HEADS: said_BTK * inside_BT1,
    }
    return batch.signals.merged(Signals(own))


def with_gradient(signals: Signals, *names: Signal) -> Signals:
    return Signals({name: signals[name].clone().requires_grad_(name in names) for name in signals})


def run(settings: SparsePoSettings, batch: Batch, signals: Signals) -> LossOutput:
    return build_update(settings).loss(batch, signals)


def gradient_of(output: LossOutput, x: Tensor) -> Tensor:
    return torch.autograd.grad(output.loss, x, retain_graph=True)[0]


def reference_loss(batch: Batch, signals: Signals, *, beta: float, kl_weight: float) -> Tensor:
    """DPO (0) and TDPO1 (1) pair by pair, written out."""
    pairs = [(0, 1), (2, 4), (5, 3)]
    ratio_BT = (signals[Signal.POLICY_LOGPROBS] - signals[Signal.REFERENCE_LOGPROBS]) * batch.response_BT
    total = torch.zeros(())
    for chosen, rejected in pairs:
        u = beta * (ratio_BT[chosen].sum() - ratio_BT[rejected].sum())
        kl_BT = signals[Signal.KL_REFERENCE_TO_POLICY]
        delta = beta * (kl_BT[rejected].sum() - kl_BT[chosen].sum())
        total = total + torch.log1p(torch.exp(-(u - kl_weight * delta)))
    return total / len(pairs)


@pytest.mark.parametrize(("mask", "kl_weight"), [("none", 0.0), ("ones", 1.0)])
def test_constant_masks_are_dpo_and_tdpo1(mask: TokenMask, kl_weight: float) -> None:
    batch = paired_batch()
    signals = with_gradient(signals_of(batch), Signal.POLICY_LOGPROBS, Signal.KL_REFERENCE_TO_POLICY)
    output = run(SparsePoSettings(mask=mask, beta=0.7), batch, signals)
    wanted = reference_loss(batch, signals, beta=0.7, kl_weight=kl_weight)
    torch.testing.assert_close(output.loss, wanted)
    policy_BT = signals[Signal.POLICY_LOGPROBS]
    torch.testing.assert_close(gradient_of(output, policy_BT), torch.autograd.grad(wanted, policy_BT)[0])


def test_heads_that_say_one_are_tdpo1_and_heads_that_say_zero_are_log_2() -> None:
    batch = paired_batch()
    signals = signals_of(batch)
    ones_BTK = torch.ones_like(signals[Signal.HEADS]) * batch.response_BT.unsqueeze(-1)
    tdpo1 = run(SparsePoSettings(mask="ones"), batch, signals).loss
    for mask in HEADS:
        says_one = signals.merged(Signals({Signal.HEADS: ones_BTK}))
        torch.testing.assert_close(run(SparsePoSettings(mask=mask), batch, says_one).loss, tdpo1)
        silent = run(SparsePoSettings(mask=mask), batch, signals.merged(Signals({Signal.HEADS: 0 * ones_BTK})))
        assert silent.loss.item() == pytest.approx(math.log(2))
        assert silent.metrics["mask/dead_pairs"] == 3


@pytest.mark.parametrize(
    ("masked_terms", "unmasked"), [("reward", Signal.KL_REFERENCE_TO_POLICY), ("kl", Signal.POLICY_LOGPROBS)]
)
def test_a_term_that_is_not_masked_counts_in_full(masked_terms: MaskedTerms, unmasked: Signal) -> None:
    batch = paired_batch()
    signals = signals_of(batch)
    zeros = Signals({Signal.HEADS: torch.zeros_like(signals[Signal.HEADS])})
    signals = with_gradient(signals.merged(zeros), Signal.POLICY_LOGPROBS, Signal.KL_REFERENCE_TO_POLICY)
    output = run(SparsePoSettings(mask="sparse_independent", masked_terms=masked_terms), batch, signals)
    both = {
        name: gradient_of(output, signals[name]) for name in (Signal.POLICY_LOGPROBS, Signal.KL_REFERENCE_TO_POLICY)
    }
    in_pair_BT = batch.response_BT & (batch.pair_B >= 0).unsqueeze(1)
    assert both[unmasked][in_pair_BT].all()
    assert not both.pop(unmasked)[~in_pair_BT].any()
    assert not next(iter(both.values())).any()


def test_swapping_the_pairs_turns_the_margin_around() -> None:
    batch = paired_batch()
    signals = signals_of(batch)
    ours = run(SparsePoSettings(beta=0.4), batch, signals).metrics
    swapped = run(SparsePoSettings(beta=0.4), replace(batch, rank_B=1 - batch.rank_B), signals).metrics
    assert ours["update/preference_margin"] == -swapped["update/preference_margin"] != 0
    assert ours["update/chosen_length_gap"] == -swapped["update/chosen_length_gap"] == ((3 - 2) + 6 + (5 - 1)) / 3
    assert ours["update/preference_accuracy"] + swapped["update/preference_accuracy"] == 1


def shared_first_token() -> tuple[Batch, Signals]:
    """One pair whose responses begin alike: same log-ratio, KL and mask at the first token; the second ones differ."""
    batch = make_batch(lengths=[2, 2], rewards=[1, 0], groups=[0, 0])
    batch = replace(batch, list_B=torch.tensor([0, 0]), rank_B=torch.tensor([0, 1])).recounted()

    def spread(values: list[list[float]]) -> Tensor:
        return torch.zeros(2, 4).masked_scatter(batch.response_BT, torch.tensor(values))

    return batch, batch.signals.merged(
        Signals(
            {
                Signal.POLICY_LOGPROBS: spread([[-0.5, -1.0], [-0.5, -2.0]]),
                Signal.REFERENCE_LOGPROBS: spread([[-0.9, -1.5], [-0.9, -1.2]]),
                Signal.KL_REFERENCE_TO_POLICY: spread([[0.3, 0.1], [0.3, 0.2]]),
                Signal.HEADS: spread([[2.0, 1.0], [2.0, 0.5]]).unsqueeze(-1).expand(-1, -1, 2),
                Signal.PROXIMAL_HEADS: spread([[2.0, 1.0], [2.0, 4.0]]).unsqueeze(-1),
            }
        )
    )


def test_a_shared_beginning_cancels_under_trained_masks_and_l1_counts_it() -> None:
    batch, signals = shared_first_token()
    settings = SparsePoSettings(mask="sparse_common", beta=0.5, l1_reward=0.1, l1_kl=0.1)
    output = run(settings, batch, signals)
    margin = 0.5 * (1.0 * (0.5 + 0.1) - 0.5 * (-0.8 + 0.2))
    assert output.metrics["update/preference_margin"].item() == pytest.approx(margin)
    assert output.terms["preference"].item() == pytest.approx(math.log1p(math.exp(-margin)))
    assert output.terms["l1"].item() == pytest.approx(0.1 * (2.0 + 1.0 + 2.0 + 0.5))


def test_a_shared_beginning_does_not_cancel_under_mapo() -> None:
    """Its masks are stretched over each response, so the same token weighs 1 in one of them and 0 in the other."""
    batch, signals = shared_first_token()
    output = run(SparsePoSettings(mask="mapo", beta=0.5), batch, signals)
    margin = 0.5 * ((0.4 + 0.3) - (-0.8 + 0.2))
    assert output.metrics["update/preference_margin"].item() == pytest.approx(margin)


@pytest.mark.parametrize("mask", MASKS)
def test_without_any_pair_the_loss_is_zero(mask: TokenMask) -> None:
    batch = replace(paired_batch(), list_B=torch.full((7,), -1)).recounted()
    signals = with_gradient(signals_of(batch), Signal.POLICY_LOGPROBS)
    output = run(SparsePoSettings(mask=mask, l1_reward=1.0), batch, signals)
    assert output.loss.item() == 0
    assert not gradient_of(output, signals[Signal.POLICY_LOGPROBS]).any()
    assert all(value.isfinite() for value in output.metrics.values())


def test_l1_sums_masks_over_both_responses_and_counts_a_common_mask_once() -> None:
    batch = paired_batch()
    signals = with_gradient(signals_of(batch), Signal.HEADS)
    said_BTK = signals[Signal.HEADS]
    in_pair_BT = (batch.response_BT & (batch.pair_B >= 0).unsqueeze(1)).unsqueeze(-1)
    reward, kl = (said_BTK * in_pair_BT).sum(dim=(0, 1)).tolist()
    independent = run(SparsePoSettings(mask="sparse_independent", beta=1e-9, l1_reward=0.3, l1_kl=0.2), batch, signals)
    assert independent.terms["l1"].item() == pytest.approx((0.3 * reward + 0.2 * kl) / 3)
    halved = run(SparsePoSettings(mask="sparse_common", beta=1e-9, l1_reward=0.3, l1_kl=0.2), batch, signals)
    assert halved.terms["l1"].item() == pytest.approx((0.15 * reward + 0.1 * kl) / 3)
    positive_BTK = (in_pair_BT & (said_BTK > 0)) * torch.tensor([0.3, 0.2]) / 3
    torch.testing.assert_close(gradient_of(independent, said_BTK), positive_BTK, atol=1e-8, rtol=1e-5)
    assert "l1" not in run(SparsePoSettings(), batch, signals).terms


def test_mask_metrics_are_means_over_sequences_and_tokens() -> None:
    batch = make_batch(lengths=[3, 2], rewards=[1, 0], groups=[0, 0])
    batch = replace(batch, list_B=torch.tensor([0, 0]), rank_B=torch.tensor([0, 1])).recounted()
    said_BTK = torch.zeros(2, 5, 2)
    said_BTK[0, 2:, 0] = torch.tensor([0.0, 2.0, 0.0])
    said_BTK[1, 2:4, 0] = torch.tensor([1.0, 0.5])
    said_BTK[:, :, 1] = 3
    signals = signals_of(batch).merged(Signals({Signal.HEADS: said_BTK}))
    metrics = run(SparsePoSettings(mask="sparse_independent", beta=0.5), batch, signals).metrics
    assert metrics["mask/reward_zero_fraction"].item() == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["mask/kl_zero_fraction"] == 0
    assert metrics["mask/reward_effective_beta"].item() == pytest.approx(0.5 * 3.5 / 5)
    assert metrics["mask/kl_effective_beta"].item() == pytest.approx(0.5 * 3)
    assert metrics["mask/dead_pairs"] == 0


def golden_head(mixer: list[float]) -> tuple[MaskHead, Tensor]:
    head = MaskHead(2, 3, eps=0.0)
    with torch.no_grad():
        head.weight_LH.copy_(torch.tensor([[1.0, 0, -1], [0, 1, 0]]))
        head.bias_L.copy_(torch.tensor([0.5, -0.25]))
        head.mixer_1L.copy_(torch.tensor([mixer]))
    first = torch.tensor([[1.0, 3, 5], [5, 3, 1], [2, 2, 5]])
    second = torch.tensor([[0.0, 1, 0], [1, 0, 0], [3, 0, 0]])
    return head, torch.stack([first, second], dim=1)[None]


@pytest.mark.parametrize(("mixer", "wanted"), [([0.5, 1.0], [1.164214, 1.474745, 0]), ([0.5, -1.0], [0, 1.474745, 0])])
def test_golden_mask_head(mixer: list[float], wanted: list[float]) -> None:
    head, layers_BTLH = golden_head(mixer)
    torch.testing.assert_close(head(layers_BTLH), torch.tensor([wanted]), atol=1e-5, rtol=0)


def test_through_a_dead_relu_no_parameter_moves_though_the_mask_is_pulled_at() -> None:
    head, layers_BTLH = golden_head([0.5, -1.0])
    mask_BT = head(layers_BTLH)
    (mask_BT * torch.tensor([1.0, 0.0, 1.0])).sum().backward()  # only the two dead tokens, L1 or not
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("mask", HEADS)
def test_heads_start_at_one_or_as_in_the_paper(mask: TokenMask) -> None:
    x_BTLH = torch.randn(1, 4000, 3, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(MaskHeads(SHAPE, SparsePoSettings(mask=mask))(x_BTLH), torch.ones(1, 4000, 2))
    heads = [MaskHeads(replace(SHAPE, seed=s), SparsePoSettings(mask=mask, mask_init="paper")) for s in range(40)]
    matrices = torch.cat([p.flatten() for h in heads for p in h.parameters() if p.ndim == 2])
    assert matrices.std().item() == pytest.approx(0.02, rel=0.05)
    zeros = torch.stack([(head(x_BTLH) == 0).float().mean() for head in heads])
    assert 0.3 < zeros.mean() < 0.7
    again = MaskHeads(SHAPE, SparsePoSettings(mask=mask, mask_init="paper"))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), heads[0].parameters(), strict=True))
    said_BTK = heads[0](x_BTLH)
    assert torch.equal(said_BTK[..., 0], said_BTK[..., 1]) == (mask == "sparse_common")


def test_parameters_per_head_are_as_many_as_the_paper_trains() -> None:
    assert sum(p.numel() for p in MaskHead(36, 1280).parameters()) == 48_712
    assert sum(p.numel() for p in MaskHead(24, 2048).parameters()) == 53_296


def test_only_a_dead_head_is_drawn_anew_and_not_for_ever() -> None:
    heads = MaskHeads(SHAPE, SparsePoSettings(mask="sparse_independent", mask_init="paper"))
    before = [mask.weight_LH.clone() for mask in heads.masks if isinstance(mask, MaskHead)]
    said_NK = torch.tensor([[0.0, 1.0]]).repeat(100, 1)
    assert not heads.redraw(torch.ones(100, 2))
    assert heads.redraw(said_NK)
    after = [mask.weight_LH for mask in heads.masks if isinstance(mask, MaskHead)]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True]
    assert sum(heads.redraw(said_NK) for _ in range(100)) < 30


def group_of(rewards: list[float], order: list[int], *, version: int = 0, ids: list[int] | None = None) -> RolloutGroup:
    rollouts = [
        Rollout(
            sample_index=index,
            completion=Completion(token_ids=((ids or list(range(9)))[index], 1), logprobs=None, finish_reason="stop"),
            reward=reward,
            components={},
            weights_version=version,
        )
        for index, reward in enumerate(rewards)
    ]
    prompt = Prompt(id="p", text="", token_ids=(3,))
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts[index] for index in order))


def picked(examples: list[Example]) -> list[tuple[int, int, int | None, int]]:
    return [(e.group, e.rollout.sample_index, e.list, e.rank) for e in examples]


def test_best_and_worst_are_paired_in_any_order_and_ties_are_left_out() -> None:
    rule = SparsePo(SparsePoSettings(min_gap=0.1))
    uniform, close = group_of([1.0, 1.0], [0, 1]), group_of([0.5, 0.6], [0, 1])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        groups = [uniform, group_of([0.2, 0.9, 0.1, 0.3], order), close, group_of([0.0, 1.0], [1, 0])]
        assert picked(rule.select(groups)) == [(1, 1, 0, 0), (1, 2, 0, 1), (3, 1, 1, 0), (3, 0, 1, 1)]
    assert rule.select([group_of([], []), group_of([1.0], [0]), uniform]) == []


def test_identical_completions_make_no_pair() -> None:
    assert SparsePo(SparsePoSettings()).select([group_of([1.0, 0.0], [0, 1], ids=[7, 7])]) == []


def test_among_equals_a_seeded_draw_decides() -> None:
    rule = SparsePo(SparsePoSettings())
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0]
    found = [picked(rule.select([group_of(rewards, [4, 3, 2, 1, 0], version=v)])) for v in range(60)]
    assert found == [picked(rule.select([group_of(rewards, [0, 1, 2, 3, 4], version=v)])) for v in range(60)]
    assert {pair[0][1] for pair in found} == {0, 2, 3}
    assert {pair[1][1] for pair in found} == {1, 4}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0))


def pairs(*, count: int = 4, decisive: int = 7, seed: int = 0) -> list[Example]:
    """Random answers of equal length without an end of sequence; the preferred one begins with one token always."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(8, 14, (length,), generator=generator).tolist())

    found = []
    for pair in range(count):
        prompt, rest = Prompt(id=str(pair), text="", token_ids=ids(2 + pair % 3)), ids(2)
        for chosen in (True, False):
            tokens = ((decisive if chosen else decisive - 1), *rest)
            completion = Completion(token_ids=tokens, logprobs=None, finish_reason="stop")
            rollout = Rollout(
                sample_index=0, completion=completion, reward=float(chosen), components={}, weights_version=0
            )
            found.append(Example(prompt=prompt, rollout=rollout, group=pair, list=pair, rank=int(not chosen)))
    return found


def learner_with(model_path: str, model: dict | None = None, learner: dict | None = None, **update: object) -> Learner:
    return build(
        model_path, model=model or {}, learner=learner or {}, update={"rule": "sparsepo", "beta": 1.0, **update}
    )


def heads_of(learner: Learner) -> MaskHeads:
    heads = learner._models.heads
    assert isinstance(heads, MaskHeads)
    return heads


@pytest.mark.parametrize("mask", MASKS)
def test_the_first_step_starts_at_log_2_and_says_nothing_of_a_sampler(model_path: str, mask: TokenMask) -> None:
    learner = learner_with(model_path, mask=mask, mask_init="paper")
    record = learner.prepare(pairs(), step=0) | learner.step(0)
    assert record["loss/total"] == pytest.approx(math.log(2), abs=1e-5)
    assert record["optim/grad_norm"] > 0
    assert set(record) & {"rollout/mismatch_kl", "kl/policy_to_reference"} == set()
    assert record["entropy/policy"] > 0


@pytest.mark.parametrize("model", [{}, {"lora": {"rank": 2}}], ids=["full", "LoRA"])
def test_heads_train_and_the_reference_does_not(model_path: str, model: dict) -> None:
    learner = learner_with(model_path, model, mask="sparse_independent")
    heads = heads_of(learner)
    before = {name: p.clone() for name, p in heads.named_parameters()}
    reference = learner._models.reference
    assert reference is not None
    reference_before = reference.layers(torch.tensor([[3, 4, 5]]))
    for step in range(3):
        learner.prepare(pairs(seed=step), step=step)
        learner.step(step)
    assert all(not torch.equal(p, before[name]) for name, p in heads.named_parameters())
    assert torch.equal(reference.layers(torch.tensor([[3, 4, 5]])), reference_before)


def test_masks_are_no_way_back_into_policy_or_reference(model_path: str) -> None:
    learner = learner_with(model_path, mask="sparse_independent", mask_init="paper")
    learner.prepare(pairs(), step=0)
    live = live_signals(learner._models, prepared_batch(learner), learner._signals, learner._update)
    said_BTK = live.signals[Signal.HEADS]
    reference = learner._models.reference
    assert isinstance(reference, LanguageModel)
    backbones = [*learner.policy.parameters(), *reference.requires_grad_(True).parameters()]
    assert set(torch.autograd.grad(said_BTK.sum(), backbones, retain_graph=True, allow_unused=True)) == {None}
    assert all(gradient.any() for gradient in torch.autograd.grad(said_BTK.sum(), [*heads_of(learner).parameters()]))


def test_head_matrices_alone_decay_and_every_parameter_is_in_one_group(model_path: str) -> None:
    learner = learner_with(model_path, learner={"weight_decay": 0.2}, mask_weight_decay=0.05)
    groups = learner._optimization.optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trained = [*learner.policy.parameters(), *heads_of(learner).parameters()]
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(trained)
    assert all(decay[id(p)] == (0.05 if p.ndim == 2 else 0.0) for p in heads_of(learner).parameters())
    assert all(decay[id(p)] == (0.2 if p.ndim == 2 else 0.0) for p in learner.policy.parameters())


def test_mapo_trains_the_policy_only(model_path: str) -> None:
    learner = learner_with(model_path, mask="mapo")
    before = weights(learner)
    learner.prepare(pairs(), step=0)
    columns = learner.token_columns()
    learner.step(0)
    assert all(name.startswith("policy.") for name in learner._optimization.trained)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())
    assert all(0 <= value <= 1 for row in columns["reward_mask"] for value in row)
    assert columns["reward_mask"] == columns["kl_mask"]


def test_masks_follow_the_prefix_only_and_are_kept_token_by_token(model_path: str) -> None:
    learner = learner_with(model_path, mask_init="paper", mask="sparse_independent")
    learner.prepare(pairs(), step=0)
    columns = learner.token_columns()
    assert [len(row) for row in columns["kl_mask"]] == [3] * 8
    for name in ("reward_mask", "kl_mask"):
        chosen, rejected = columns[name][::2], columns[name][1::2]
        assert [row[0] for row in chosen] == [row[0] for row in rejected]  # the prompt alone decides the first
        assert [row[1] for row in chosen] != [row[1] for row in rejected]  # the first token is in the state by then
    assert columns["reward_mask"] != columns["kl_mask"]


def test_a_dead_head_starts_over_in_the_learner(model_path: str) -> None:
    learner = learner_with(model_path, mask_init="paper")
    with torch.no_grad():
        heads_of(learner).masks[0].get_parameter("mixer_1L").fill_(-1.0)
    learner.prepare(pairs(), step=0)
    assert any(value > 0 for row in learner.token_columns()["reward_mask"] for value in row)


def test_a_restored_learner_goes_on_with_its_heads(model_path: str, tmp_path: Path) -> None:
    whole = learner_with(model_path, mask_init="paper")
    whole.prepare(pairs(), step=0)
    whole.step(0)
    whole.save(tmp_path)
    resumed = learner_with(model_path, mask_init="paper")
    resumed.restore(tmp_path)
    records = [learner.prepare(pairs(seed=1), step=1) | learner.step(1) for learner in (whole, resumed)]
    assert records[0] == records[1]


@pytest.mark.parametrize("mask", MASKS)
def test_the_decisive_token_is_learned(model_path: str, mask: TokenMask) -> None:
    learner = learner_with(model_path, mask=mask, learner={"lr": 2e-3})
    probes = [
        Probe(token_ids=example.prompt.token_ids + example.rollout.completion.token_ids[:1])
        for example in pairs(seed=99)
    ]

    def preferred_by() -> float:
        last = [row[-1] for row in learner.probe(probes)]
        return sum(last[::2]) - sum(last[1::2])

    start = preferred_by()
    for step in range(25):
        record = learner.prepare(pairs(seed=step), step=step) | learner.step(step)
    assert record["update/preference_accuracy"] == 1
    assert record["loss/preference"] < 0.3
    assert preferred_by() > start + 4
