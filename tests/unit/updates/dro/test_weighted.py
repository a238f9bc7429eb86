"""Rules whose groups are weighted: which groups get a weight, what it multiplies, and what a checkpoint keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlkl.batch import Batch
from rlkl.errors import RecipeError
from rlkl.recipe.io import load_recipe
from rlkl.tracking.metrics.registry import check_known
from rlkl.updates import build_update
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.dro.settings import DroSettings
from rlkl.updates.settings import GrpoSettings, PapoSettings, PpoSettings
from rlkl.updates.terms.settings import EntropySettings
from tests.builders import make_batch

DRO = DroSettings(temperature=0.5)


def grpo(dro: DroSettings | None = DRO, **keys: Any) -> PolicyUpdate:
    return build_update(GrpoSettings(dro=dro, **keys))


def batch_of(rewards: list[list[float]], lengths: int = 2) -> Batch:
    flat = [reward for group in rewards for reward in group]
    groups = [number for number, group in enumerate(rewards) for _ in group]
    return make_batch(lengths=[lengths] * len(flat), rewards=flat, groups=groups)


EASY_AND_HARD = [[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]  # mean rewards 0.75 and 0.25, one loss 0.5 above the other


def step(update: PolicyUpdate, batch: Batch) -> tuple[Batch, dict[str, float]]:
    credited = update.credit(batch)
    metrics = update.batch_metrics(credited)
    update.observe(metrics)
    return credited, metrics


def ratio_B(weighted: Batch, plain: Batch) -> list[float]:
    return (weighted.advantages_BT.sum(1) / plain.advantages_BT.sum(1)).tolist()


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"])
def test_the_advantages_of_each_group_are_multiplied_by_its_weight(variant: str):
    batch = batch_of(EASY_AND_HARD)
    credited, metrics = step(grpo(variant=variant), batch)
    plain = grpo(None, variant=variant).credit(batch)
    hard = 2 * math.e / (1 + math.e)  # exp(-0.25 / 0.5) is e times exp(-0.75 / 0.5); mean 1 over two groups
    assert ratio_B(credited, plain) == pytest.approx([2 - hard] * 4 + [hard] * 4)
    assert metrics["dro/groups"] == 2
    assert metrics["dro/weight_max"] == pytest.approx(hard)
    assert metrics["dro/ess"] == pytest.approx(4 / (2 * (hard**2 + (2 - hard) ** 2)))
    assert metrics["dro/tail_reward"] == 0.25  # ceil(0.3 * 2) = 1 group
    assert metrics["dro/soft_worst_reward"] == pytest.approx(-0.5 * math.log((math.exp(-1.5) + math.exp(-0.5)) / 2))
    check_known(metrics)


def test_groups_of_equal_rewards_get_no_weight_under_grpo():
    credited, metrics = step(grpo(), batch_of([*EASY_AND_HARD, [0.0] * 4]))
    alone, _ = step(grpo(), batch_of(EASY_AND_HARD))
    assert metrics["dro/groups"] == 2
    assert credited.advantages_BT[:8].tolist() == alone.advantages_BT.tolist()
    assert not credited.advantages_BT[8:].any()
    assert metrics["dro/tail_reward"] == 0.0  # the tail is over all groups


def test_papo_weighs_as_grpo_does():
    settings = PapoSettings(dro=DRO)
    batch = batch_of(EASY_AND_HARD)
    assert settings.dro_groups == "with_spread"
    weighted = build_update(settings).credit(batch).advantages_BT
    assert torch.equal(weighted, grpo().credit(batch).advantages_BT)


def test_ppo_weighs_all_groups_and_leaves_the_returns():
    settings = PpoSettings(kl_coef=0.0, critic="none")
    batch = batch_of([[1.0], [0.0]])  # one sample each: no spread
    plain = build_update(settings).credit(batch)
    credited, metrics = step(build_update(settings.model_copy(update={"dro": DRO})), batch)
    low = 2 / (1 + math.exp(2))
    assert ratio_B(credited, plain) == pytest.approx([low, 2 - low])
    assert torch.equal(credited.returns_BT, plain.returns_BT)
    assert metrics["dro/groups"] == 2


def test_groups_without_a_token_to_train_get_no_weight():
    batch = batch_of(EASY_AND_HARD)
    response_BT = batch.response_BT.clone()
    response_BT[:4] = False
    _, metrics = step(grpo(), replace(batch, response_BT=response_BT).recounted())
    assert metrics["dro/groups"] == 1
    assert metrics["dro/weight_max"] == 1.0


def test_equal_mean_rewards_change_nothing():
    batch = batch_of([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(grpo().credit(batch).advantages_BT, grpo(None).credit(batch).advantages_BT)


def test_a_constant_added_to_all_rewards_changes_no_weight():
    shifted = [[reward + 64.0 for reward in group] for group in EASY_AND_HARD]
    found, wanted = (grpo().credit(batch_of(rewards)).advantages_BT for rewards in (shifted, EASY_AND_HARD))
    assert torch.allclose(found, wanted, rtol=1e-6)


def test_the_order_of_sequences_changes_no_weight():
    batch = batch_of([*EASY_AND_HARD, [0.0, 1.0, 0.0, 1.0]])
    order_B = torch.randperm(batch.size, generator=torch.Generator().manual_seed(3))
    found = grpo().credit(batch.rows(order_B)).advantages_BT
    assert torch.allclose(found, grpo().credit(batch).advantages_BT[order_B], rtol=1e-6)


def test_a_step_without_spread_has_no_weights_and_is_not_remembered():
    update = grpo()
    step(update, batch_of(EASY_AND_HARD))
    before = update.state()
    credited, metrics = step(update, batch_of([[1.0, 1.0], [0.0, 0.0]]))
    assert metrics == {"dro/groups": 0.0, "dro/tail_reward": 0.0}
    assert not credited.advantages_BT.any()
    assert update.state() == before


def test_credit_and_metrics_remember_nothing_before_the_step_is_observed():
    update = grpo()
    for _ in range(2):
        update.batch_metrics(update.credit(batch_of(EASY_AND_HARD)))
    assert update.state() == {}


def test_a_level_of_easier_steps_lets_the_cut_act():
    update = grpo(DroSettings(temperature=0.1, max_weight=2.0, rate=1e-6))
    step(update, batch_of([[1.0, 0.9], [1.0, 0.8]]))
    _, metrics = step(update, batch_of(EASY_AND_HARD))
    assert metrics["dro/weight_max"] == pytest.approx(1.0)  # both groups are far harder than before: both are cut


def test_a_resumed_rule_weighs_exactly_as_one_that_was_never_stopped():
    generator = torch.Generator().manual_seed(5)
    batches = [batch_of(torch.rand(6, 4, generator=generator).tolist()) for _ in range(8)]
    never_stopped, resumed = grpo(DroSettings(temperature=0.1)), grpo(DroSettings(temperature=0.1))
    for batch in batches[:4]:
        step(never_stopped, batch)
    resumed.load_state(json.loads(json.dumps(never_stopped.state())))
    for batch in batches[4:]:
        (wanted, wanted_metrics), (found, metrics) = step(never_stopped, batch), step(resumed, batch)
        assert torch.equal(found.advantages_BT, wanted.advantages_BT)
        assert metrics == wanted_metrics
    assert resumed.state() == never_stopped.state() != {}


def test_the_state_is_kept_beside_that_of_the_rule_and_of_its_terms():
    settings = PpoSettings(kl_coef=0.1, dro=DRO, critic="none", terms=[EntropySettings(term="entropy", coef=0.1)])
    update = build_update(settings)
    step(update, batch_of(EASY_AND_HARD))
    state = update.state()
    assert {"kl_coef", "kl_error", "dro/level"} == state.keys()
    other = build_update(settings)
    other.load_state({**state, "kl_coef": 0.7})
    assert other.state() == {**state, "kl_coef": 0.7}
    other.load_state({"kl_coef": 0.7, "kl_error": 0.0})  # as before the first step
    assert "dro/level" not in other.state()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["update.rule=superhf"], "does not declare any; take rule = grpo, papo or ppo"),
        (["update.rule=sparsepo"], "does not declare any"),
        (["scoring.normalize=group"], "scoring.normalize = group sets each of them to 0"),
        (["rollout.prompts_per_step=1"], "rollout.prompts_per_step = 1"),
        (["update.dro.temperature=0"], "update.dro.temperature"),
        (["update.dro.rate=0"], "update.dro.rate"),
        (["update.dro.max_weight=0.5"], "update.dro.max_weight"),
    ],
)
def test_settings_that_cannot_work_are_refused(keys: list[str], words: str):
    with pytest.raises(RecipeError, match=words):
        load_recipe("quickstart", "update.dro={temperature: 0.5}", *keys)


def test_a_custom_rule_declares_whether_it_has_advantages():
    reference = "recipes/rule_example.py:Reinforce"
    with pytest.raises(RecipeError, match=r"Settings\.dro_groups"):
        load_recipe("quickstart", f"update.rule={reference}", "update.dro={}")
