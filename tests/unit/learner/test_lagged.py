"""The frozen model ``lagged``: the policy's own weights of some optimizer steps ago, and the KL to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.errors import RecipeError
from rlkl.learner.learner import Learner
from rlkl.models.language_model import LanguageModel
from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.signals import Signal
from tests.unit.learner.test_average import (
    MODELS,
    assert_checkpoint_needs,
    assert_same_bits,
    build,
    fail_half_way,
    path,
    train,
    trained,
)
from tests.unit.learner.test_learner import examples, recipe_for

__all__ = ["path"]

TERM: dict[str, Any] = {"term": "kl", "to": "lagged", "coef": 0.5, "lag": 3}


def used(learner: Learner) -> dict[str, Tensor]:
    return {name: weight.float().clone() for name, weight in learner._optimization.followers.lagged.used.items()}


def waiting(learner: Learner) -> dict[str, Tensor]:
    return {name: weight.float().clone() for name, weight in learner._optimization.followers.lagged.waiting.items()}


def policy_weights(learner: Learner) -> dict[str, Tensor]:
    """Return the trained weights as the policy runs on them."""
    own = {f"policy.{name}": p for name, p in learner.policy.named_parameters()}
    return {name: own[name].detach().float().clone() for name in trained(learner)}


@pytest.mark.parametrize("model", ["float32", "bfloat16", "lora"])
def test_over_7_optimizer_steps_it_is_3_to_5_steps_old(path: str, model: str):
    learner = build(path, model, [TERM])
    history = [policy_weights(learner)]
    runs_on = [0, 0, 0, 0, 0, 0, 3, 3]
    """After so many optimizer steps: the number of the step whose weights are used."""
    waits = [0, 0, 0, 3, 3, 3, 6, 6]
    for made in range(8):
        assert_same_bits(used(learner), history[runs_on[made]])
        assert_same_bits(waiting(learner), history[waits[made]])
        (record,) = train(learner, 1, made)
        assert (record["term/kl_lagged_nats"] > 1e-6) is (made > 0)
        history.append(policy_weights(learner))


def test_optimizer_steps_count_and_not_training_steps(path: str):
    learner = build(path, "float32", [{**TERM, "lag": 2}], epochs=2)
    start = policy_weights(learner)
    train(learner, 1)
    after_2 = policy_weights(learner)
    assert_same_bits(used(learner), start)
    assert_same_bits(waiting(learner), after_2)
    train(learner, 1, 1)
    assert_same_bits(used(learner), after_2)


def test_a_lag_of_1_is_the_policy_before_its_last_optimizer_step(path: str):
    learner = build(path, "float32", [{**TERM, "lag": 1}])
    for step in range(3):
        before = policy_weights(learner)
        train(learner, 1, step)
        assert_same_bits(used(learner), before)


@pytest.mark.parametrize("model", MODELS)
def test_at_the_first_step_it_has_no_gradient_and_then_it_holds_the_policy_back(path: str, model: str):
    plain, held = build(path, model, []), build(path, model, [{**TERM, "coef": 5.0}])
    one, other = train(plain, 1)[0], train(held, 1)[0]
    assert other["term/kl_lagged_nats"] == pytest.approx(0.0, abs=1e-6)
    assert other["optim/grad_norm"] == pytest.approx(one["optim/grad_norm"], rel=1e-3)
    train(plain, 3, 1)
    train(held, 3, 1)
    start = used(held)  # step 0 up to step 5
    free, kept = (
        sum(float((x - start[n]).square().sum()) for n, x in policy_weights(m).items()) for m in (plain, held)
    )
    assert kept < free


@pytest.mark.parametrize("model", ["float32", "lora, recomputed, bfloat16"])
def test_a_coefficient_of_0_changes_no_bit(path: str, model: str):
    plain, with_term = build(path, model, []), build(path, model, [{**TERM, "coef": 0.0}])
    train(plain, 4)
    train(with_term, 4)
    assert_same_bits(trained(with_term), trained(plain))


@pytest.mark.parametrize("finished", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_a_run_that_is_resumed_inside_a_lag_has_it_bit_for_bit(path: str, model: str, finished: int, tmp_path: Path):
    learner, resumed = (build(path, model, [TERM]) for _ in range(2))
    train(learner, finished)
    learner.save(tmp_path)
    resumed.restore(tmp_path)
    assert_same_bits(used(resumed), used(learner))
    assert_same_bits(waiting(resumed), waiting(learner))
    assert train(resumed, 4, finished) == train(learner, 4, finished)
    assert_same_bits(trained(resumed), trained(learner))
    assert_same_bits(used(resumed), used(learner))


def test_a_checkpoint_without_it_is_refused(path: str, tmp_path: Path):
    assert_checkpoint_needs(path, TERM, "holds no earlier weights of the policy", tmp_path)


def test_a_batch_that_fails_half_way_moves_it_back(path: str, monkeypatch: pytest.MonkeyPatch):
    learner = build(path, "bfloat16", [{**TERM, "lag": 1}], epochs=2)
    train(learner, 1)
    before, next_before = used(learner), waiting(learner)
    fail_half_way(learner, monkeypatch)
    assert_same_bits(used(learner), before)
    assert_same_bits(waiting(learner), next_before)


def test_the_kl_is_that_of_two_models_computed_apart(path: str):
    learner = build(path, "float32", [{**TERM, "lag": 1, "direction": "model_to_policy"}])
    train(learner, 2)
    old = LanguageModel(path, dtype=torch.float32, device=torch.device("cpu"))
    own = {f"policy.{name}": p for name, p in old.named_parameters()}
    with torch.no_grad():
        for name, weight in used(learner).items():
            own[name].copy_(weight)
    learner.prepare(examples(2), step=2)
    assert learner._last is not None
    batch = learner._last.batch
    with torch.no_grad():
        old_BTV, new_BTV = (
            model.head(model.hidden(batch.token_ids_BT)).float().log_softmax(-1) for model in (old, learner.policy)
        )
    kl_BT = (old_BTV.exp() * (old_BTV - new_BTV)).sum(-1)[:, :-1][batch.response_BT[:, 1:]]
    found = learner.try_rows(torch.arange(batch.size))
    assert float(kl_BT.mean()) > 1e-6
    assert found["term/kl_lagged_nats"] == pytest.approx(float(kl_BT.mean()), rel=1e-3)


def test_adapters_of_an_earlier_step_give_what_the_policy_gave_then(path: str):
    learner = build(path, "lora", [{**TERM, "lag": 1}])
    train(learner, 2)
    learner.prepare(examples(2), step=2)
    assert learner._last is not None
    batch = learner._last.batch
    with torch.no_grad():
        now_BTH = learner.policy.hidden(batch.token_ids_BT)
    train(learner, 1, 2)
    with torch.no_grad():
        then_BTH = learner._models.frozen["lagged"].hidden(batch.token_ids_BT)
        later_BTH = learner.policy.hidden(batch.token_ids_BT)
    assert torch.equal(then_BTH[batch.attention_BT], now_BTH[batch.attention_BT])
    assert not torch.allclose(later_BTH[batch.attention_BT], now_BTH[batch.attention_BT], atol=1e-4)
    assert sum(weight.numel() for weight in used(learner).values()) < 0.1 * sum(
        p.numel() for p in learner.policy.parameters()
    )


def test_beside_the_average_each_follows_in_its_own_way(path: str):
    both = build(path, "lora", [{**TERM, "coef": 0.0}, {"term": "kl", "to": "average", "coef": 0.0}])
    alone = build(path, "lora", [{**TERM, "coef": 0.0}])
    train(both, 4)
    train(alone, 4)
    assert_same_bits(used(both), used(alone))
    assert_same_bits(waiting(both), waiting(alone))


def test_masked_kl_and_sampled_estimators_read_it(path: str):
    terms = [{**TERM, "estimator": "k3"}, {"term": "masked_kl", "to": "lagged", "lag": 3, "token_ids": [1, 2]}]
    learner = build(path, "float32", terms)
    assert Signal("logprobs", "lagged", moment="step_start") in learner._update.needs
    last = train(learner, 3)[-1]
    assert last["term/kl_lagged_nats"] > 1e-6
    assert last["term/masked_kl_lagged_nats"] > 1e-6


@pytest.mark.parametrize("lag", [0, -3, 1.5])
def test_a_lag_that_is_no_whole_number_above_0_is_refused(lag: float):
    with pytest.raises(RecipeError, match=rf"update\.terms\[0\]\.lag = {lag}: expected"):
        load_recipe("quickstart", f"update.terms=[{{term: kl, to: lagged, lag: {lag}}}]")


def test_the_settings_are_read_back_from_the_recipe_of_a_run(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("reviews_lagged")))
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again.update.lag == 10
    assert again.update.keeps_lagged
    assert not again.update.keeps_average
    assert [term.frozen_model for term in again.update.terms] == ["reference", "lagged"]


def test_all_terms_share_one_lag():
    terms = "[{term: kl, to: lagged}, {term: masked_kl, to: lagged, token_ids: [1], lag: 5}]"
    with pytest.raises(RecipeError, match=r"terms\[1\]\.lag = 5, and another term has 10: there is one lagged model"):
        load_recipe("quickstart", f"update.terms={terms}")


def test_no_other_model_can_have_its_name(path: str):
    with pytest.raises((RecipeError, ValueError), match="lagged or reference"):
        recipe_for(path, models={"lagged": {"path": path}})
