"""The rule listwise: its choice of lists, its numbers by hand, what must not change them, and a real learner."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.commands.plan_work import most_tokens
from rlkl.recipe.io import load_recipe
from rlkl.types import Completion, Example, Prompt, Rollout, RolloutGroup
from rlkl.updates import build_update
from rlkl.updates.base_settings import FilterSettings
from rlkl.updates.listwise.rule import Listwise
from rlkl.updates.settings import ListwiseSettings, SparsePoSettings
from tests.builders import FACTS, make_batch, prepared_batch, random_logprobs, with_policy
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build


def listed_batch(padding: int = 0) -> Batch:
    """A list of four with a tie, one of three whose rows are apart, one of two, a row without a list."""
    batch = make_batch(
        lengths=[3, 2, 6, 1, 0, 5, 4, 2, 3, 1],
        rewards=[1.0, 0.0, 2.0, 0.0, 0.25, 0.5, 0.5, 1.5, 3.0, 2.0],
        groups=[0, 0, 1, 0, 1, 2, 1, 3, 0, 2],
        padding=padding,
    )
    ranks = torch.tensor([1, 2, 0, 3, 2, 1, 1, 0, 0, 0])
    return replace(batch, list_B=torch.tensor([0, 0, 1, 0, 1, 2, 1, -1, 0, 2]), rank_B=ranks).recounted()


def policy_of(batch: Batch) -> Tensor:
    return random_logprobs(batch.response_BT, seed=9)


def run(settings: ListwiseSettings, batch: Batch, policy_BT: Tensor) -> tuple[LossOutput, Tensor]:
    policy_BT = policy_BT.clone().requires_grad_()
    output = build_update(settings).loss(batch, with_policy(batch, policy_BT))
    return output, torch.autograd.grad(output.loss, policy_BT)[0]


def values(output: LossOutput) -> dict[str, float]:
    return {name: float(x) for name, x in {"loss": output.loss.detach(), **output.terms, **output.metrics}.items()}


EACH = [
    ListwiseSettings(beta=0.7),
    ListwiseSettings(beta=0.7, over_tokens="mean", tau=0.4, tau_unit="reward"),
]
each = pytest.mark.parametrize("settings", EACH, ids=["sum", "mean"])


def worked() -> tuple[Batch, Signals]:
    """Three responses with log-ratios 1 + 1, -1, 0.5 and rewards 4, 2, 0."""
    batch = make_batch(lengths=[2, 1, 1], rewards=[4.0, 2.0, 0.0], groups=[0, 0, 0])
    batch = replace(batch, list_B=torch.zeros(3, dtype=torch.int64), rank_B=torch.arange(3)).recounted()
    ratios_BT = torch.zeros(batch.response_BT.shape).masked_scatter(
        batch.response_BT, torch.tensor([1.0, 1.0, -1.0, 0.5])
    )
    return batch, with_policy(batch, batch.signals[Signal.REFERENCE_LOGPROBS] + ratios_BT)


def test_hand_computed_numbers() -> None:
    """Beta 0.5: scores 1, -0.5, 0.25. The rewards' standard deviation is 2, so alpha = softmax(2, 1, 0)."""
    batch, signals = worked()
    output = build_update(ListwiseSettings(beta=0.5)).loss(batch, signals)
    alpha = [0.66524096, 0.24472847]
    wanted = alpha[0] * math.log(1 + math.exp(-1.5) + math.exp(-0.75)) + alpha[1] * math.log(1 + math.exp(0.75))
    assert values(output) == pytest.approx(
        {
            "loss": wanted,
            "listwise": wanted,
            "update/rank_accuracy": 2 / 3,
            "update/rank_margin": 0.75,
            "update/best_implicit_reward": 1.0,
            "update/best_weight": alpha[0],
            "update/best_length_gap": 2 - 4 / 3,
            "update/tied_fraction": 0.0,
        }
    )


def test_the_mean_over_tokens_and_tau_in_units_of_reward() -> None:
    """Beta 0.5: scores 0.5, -0.5, 0.25. Alpha = softmax(4, 2, 0) with tau 1 and reward as its unit."""
    batch, signals = worked()
    settings = ListwiseSettings(beta=0.5, over_tokens="mean", tau_unit="reward")
    alpha = [0.86681333, 0.11731043]
    wanted = alpha[0] * math.log(1 + math.exp(-1) + math.exp(-0.25)) + alpha[1] * math.log(1 + math.exp(0.75))
    assert build_update(settings).loss(batch, signals).loss.item() == pytest.approx(wanted)


def test_tied_responses_are_both_orders_and_share_their_metrics() -> None:
    """Scores 1 and -0.5 are tied best: alpha = 0.4683 each with tau 1 in units of reward, 0.0634 for the last."""
    batch, signals = worked()
    batch = replace(batch, rewards_B=torch.tensor([2.0, 2.0, 0.0]))
    output = build_update(ListwiseSettings(beta=0.5, tau_unit="reward")).loss(batch, signals)
    alpha = 1 / (2 + math.exp(-2))
    terms = [math.exp(x) for x in (1, -0.5, 0.25)]
    pairs = (math.log(terms[0] + terms[2]) + math.log(terms[1] + terms[2])) / 2
    assert output.loss.item() == pytest.approx(alpha * (math.log(sum(terms)) + pairs - 0.5))
    found = values(output)
    assert found["update/best_weight"] == pytest.approx(2 * alpha)
    assert found["update/tied_fraction"] == pytest.approx(2 / 3)
    assert (found["update/best_implicit_reward"], found["update/rank_margin"]) == pytest.approx((0.25, 0.0), abs=1e-6)
    assert found["update/rank_accuracy"] == 0.5


@pytest.mark.parametrize("tau_unit", ["group_std", "reward"])
def test_lists_of_two_are_dpo_times_the_weight_of_the_better(tau_unit: str) -> None:
    batch = make_batch(lengths=[3, 2, 4, 1], rewards=[1.0, 0.2, -1.0, 2.0], groups=[0, 0, 1, 1])
    batch = replace(batch, list_B=torch.tensor([0, 0, 1, 1]), rank_B=torch.tensor([0, 1, 1, 0])).recounted()
    listwise = ListwiseSettings.model_validate({"beta": 0.4, "tau": 0.5, "tau_unit": tau_unit})
    ours, gradient_BT = run(listwise, batch, policy_of(batch))
    gaps = [math.sqrt(2)] * 2 if tau_unit == "group_std" else [0.8, 3.0]
    weights = [1 / (1 + math.exp(-gap / 0.5)) for gap in gaps]
    policy_BT = policy_of(batch).requires_grad_()
    wanted = torch.zeros(())
    for weight, rows in zip(weights, ([0, 1], [2, 3]), strict=True):
        pair = batch.rows(torch.tensor(rows)).recounted()
        width = pair.response_BT.shape[1]
        dpo = build_update(SparsePoSettings(mask="none", beta=0.4))
        wanted = wanted + weight * dpo.loss(pair, with_policy(pair, policy_BT[rows, :width])).loss / 2
    torch.testing.assert_close(ours.loss, wanted)
    torch.testing.assert_close(gradient_BT, torch.autograd.grad(wanted, policy_BT)[0])


@each
def test_padding_does_not_matter(settings: ListwiseSettings) -> None:
    batch, wide = listed_batch(), listed_batch(padding=3)
    ours, gradient_BT = run(settings, batch, policy_of(batch))
    policy_BT = torch.nn.functional.pad(policy_of(batch), (0, 3), value=math.nan)
    theirs, wide_BT = run(settings, wide, policy_BT)
    assert values(ours) == pytest.approx(values(theirs))
    torch.testing.assert_close(wide_BT[:, :-3], gradient_BT)
    assert not wide_BT[:, -3:].any()


@each
def test_the_order_of_rows_and_the_numbers_of_lists_do_not_matter(settings: ListwiseSettings) -> None:
    batch, order = listed_batch(), torch.tensor([4, 9, 6, 0, 8, 3, 2, 5, 1, 7])
    ours, gradient_BT = run(settings, batch, policy_of(batch))
    moved = batch.rows(order)
    moved = replace(moved, list_B=torch.tensor([40, 7, 19, -1])[moved.list_B])
    theirs, moved_BT = run(settings, moved, policy_of(batch)[order])
    assert values(theirs) == pytest.approx(values(ours))
    torch.testing.assert_close(moved_BT, gradient_BT[order])


@each
def test_the_cut_into_micro_batches_does_not_matter(settings: ListwiseSettings) -> None:
    batch = listed_batch()
    whole, gradient_BT = run(settings, batch, policy_of(batch))
    found, total = torch.zeros_like(gradient_BT), dict.fromkeys(values(whole), 0.0)
    for rows in ([7, 8, 3, 1, 0], [6, 2, 4], [5, 9]):
        part = batch.rows(torch.tensor(rows))
        width = part.response_BT.shape[1]
        output, found[rows, :width] = run(settings, part, policy_of(batch)[rows, :width])
        total = {name: total[name] + value for name, value in values(output).items()}
    assert total == pytest.approx(values(whole))
    torch.testing.assert_close(found, gradient_BT)


@each
def test_only_listed_responses_have_a_gradient_and_each_list_pulls_as_much_as_it_pushes(
    settings: ListwiseSettings,
) -> None:
    batch = listed_batch()
    _, gradient_BT = run(settings, batch, policy_of(batch))
    assert not gradient_BT[7].any()
    assert not gradient_BT[~batch.response_BT].any()
    lengths_B = batch.response_BT.sum(dim=1).clamp(min=1)
    per_response_B = gradient_BT.sum(dim=1) / (1 if settings.over_tokens == "mean" else lengths_B)
    assert per_response_B[[5, 9]].sum().abs() < 1e-6  # no list with an empty response, which has no token to pull at
    assert per_response_B[9] < 0 < per_response_B[5]


@each
def test_log_ratios_of_ten_thousand_stay_finite(settings: ListwiseSettings) -> None:
    batch = listed_batch()
    for sign in (1, -1):
        output, gradient_BT = run(settings, batch, policy_of(batch) * sign * 1e4)
        assert gradient_BT.isfinite().all()
        assert all(math.isfinite(value) for value in values(output).values())


def test_a_list_weighs_as_its_rows_and_without_lists_there_is_no_loss() -> None:
    batch = listed_batch()
    alone, _ = run(EACH[0], batch, policy_of(batch))
    double, _ = run(EACH[0], replace(batch, weight_B=2 * batch.weight_B), policy_of(batch))
    assert double.loss.item() == pytest.approx(2 * alone.loss.item())
    nothing, gradient_BT = run(
        EACH[0], replace(batch, list_B=torch.full_like(batch.list_B, -1)).recounted(), policy_of(batch)
    )
    assert nothing.loss.item() == 0
    assert not gradient_BT.any()
    assert all(math.isfinite(value) for value in values(nothing).values())


def group_of(rewards: list[float], order: list[int], *, same: bool = False) -> RolloutGroup:
    rollouts = [
        Rollout(
            sample_index=index,
            completion=Completion(token_ids=(7 if same else 7 + index, 1), logprobs=None, finish_reason="stop"),
            reward=reward,
            components={},
            weights_version=0,
        )
        for index, reward in enumerate(rewards)
    ]
    return RolloutGroup(
        prompt=Prompt(id="p", text="", token_ids=(3,)), rollouts=tuple(rollouts[index] for index in order)
    )


def picked(examples: list[Example]) -> list[tuple[int, int, int | None, int]]:
    return [(e.group, e.rollout.sample_index, e.list, e.rank) for e in examples]


def test_groups_become_lists_best_first_and_equal_ones_are_skipped() -> None:
    rule = Listwise(ListwiseSettings(min_gap=0.1))
    uniform, close = group_of([1.0, 1.0, 1.0], [0, 1, 2]), group_of([0.5, 0.6], [0, 1])
    same = group_of([0.0, 1.0], [0, 1], same=True)
    for order in ([0, 1, 2], [2, 1, 0]):
        groups = [uniform, group_of([0.2, 0.9, 0.2], order), close, same, group_of([0.0, 1.0], [1, 0])]
        found = picked(rule.select(groups))
        assert found == [(1, 1, 0, 0), (1, 0, 0, 1), (1, 2, 0, 2), (4, 1, 1, 0), (4, 0, 1, 1)]
    assert rule.select([group_of([], []), group_of([1.0], [0]), uniform]) == []


def test_rewards_that_are_equal_in_float32_count_as_tied() -> None:
    batch = make_batch(lengths=[1, 2], rewards=[1.0, 1.0 + 1e-12], groups=[0, 0])
    batch = replace(batch, list_B=torch.zeros(2, dtype=torch.int64), rank_B=torch.arange(2)).recounted()
    output, gradient_BT = run(EACH[0], batch, policy_of(batch))
    assert values(output)["update/tied_fraction"] == 1
    assert values(output)["update/best_weight"] == 1
    assert gradient_BT.isfinite().all()


@pytest.mark.parametrize("update", [{"samples_per_prompt": 1}, {"filter": FilterSettings(keep="top_k", value=1)}])
def test_a_single_completion_is_a_warning(update: dict) -> None:
    facts = replace(FACTS, samples_per_prompt=update.get("samples_per_prompt", 4))
    (warning,) = ListwiseSettings(filter=update.get("filter")).warnings(facts)
    assert "nothing is learned" in warning
    assert list(ListwiseSettings().warnings(FACTS)) == []


def test_a_micro_batch_holds_all_that_pass_the_filter() -> None:
    assert ListwiseSettings().sequences_together(8) == 8
    assert ListwiseSettings(filter=FilterSettings(keep="top_fraction", value=0.5)).sequences_together(8) == 4
    assert SparsePoSettings().sequences_together(8) == 2


@pytest.mark.parametrize(("name", "sequences"), [("grpo", 1), ("sparsepo", 2), ("listwise", 8)])
def test_a_plan_counts_that_a_list_shares_a_micro_batch(name: str, sequences: int) -> None:
    recipe = load_recipe(f"reviews_{name}", "learner.micro_batch_tokens=1")
    assert most_tokens(recipe) == sequences * (recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0))


def groups(seed: int = 0) -> list[RolloutGroup]:
    """Three prompts of four random completions; the reward counts the token 7, so there are ties."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(6, 10, (count,), generator=generator).tolist())

    found = []
    for number in range(3):
        rollouts = []
        for sample in range(4):
            tokens = ids(2 + (number + sample) % 3)
            completion = Completion(token_ids=tokens, logprobs=(-2.0,) * len(tokens), finish_reason="stop")
            reward = float(tokens.count(7)) / len(tokens)
            rollouts.append(
                Rollout(sample_index=sample, completion=completion, reward=reward, components={}, weights_version=0)
            )
        prompt = Prompt(id=str(number), text="", token_ids=ids(2 + number))
        found.append(RolloutGroup(prompt=prompt, rollouts=tuple(rollouts)))
    return found


@pytest.mark.parametrize(
    ("changed", "terms"),
    [
        ({}, []),
        ({"micro_batch_tokens": 1, "minibatches": 2}, [{"term": "kl", "coef": 0.1}, {"term": "entropy", "coef": 0.01}]),
    ],
    ids=["plain", "with terms"],
)
def test_a_learner_raises_the_better_responses(model_path: str, changed: dict, terms: list) -> None:
    update = {"rule": "listwise", "beta": 1.0, "terms": terms}
    learner = build(model_path, update=update, learner={"lr": 3e-3, **changed})
    records = []
    for step in range(8):
        examples = build_update(ListwiseSettings()).select(groups())
        records.append(learner.prepare(examples, step=step) | learner.step(step))
    assert records[-1]["loss/listwise"] < records[0]["loss/listwise"]
    assert records[-1]["update/rank_accuracy"] > 0.9


def test_micro_batches_and_packing_do_not_change_the_gradient(model_path: str) -> None:
    examples = build_update(ListwiseSettings()).select(groups(1))
    assert {e.list for e in examples} == {0, 1, 2}
    found = []
    for tokens, packed in ((8192, False), (8192, True), (1, True), (30, False)):
        learner = build(model_path, update={"rule": "listwise", "beta": 1.0}, learner={"lr": 0.0})
        learner._signals = replace(learner._signals, micro_batch_tokens=tokens, packed=packed)
        learner.prepare(examples, step=0)
        cuts = learner._signals.cuts(prepared_batch(learner))
        assert len(cuts) == (1 if tokens == 8192 else 3)
        assert all(len(set(prepared_batch(learner).list_B[rows].tolist())) == 1 for rows in cuts) == (tokens < 8192)
        learner.step(0)
        found.append([p.grad.clone() for p in learner.policy.parameters() if p.grad is not None])
    for other in found[1:]:
        for one, gradient in zip(found[0], other, strict=True):
            torch.testing.assert_close(gradient, one, rtol=1e-3, atol=2e-6)
