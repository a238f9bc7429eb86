"""One pass less: the log-probs of the step's start come from the training pass if that is the step's only one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.learner.learner import Learner
from rlkl.learner.signals import frozen_heads
from rlkl.signals import Signal
from rlkl.types import SHARED_TOKEN_COLUMNS, Example
from rlkl.updates.base import PolicyUpdate
from tests.builders import prepared_batch
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, examples

RULES: dict[str, dict[str, Any]] = {
    "grpo": {"rule": "grpo"},
    "grpo without KL": {"rule": "grpo", "kl_coef": 0.0},
    "superhf": {"rule": "superhf"},
    "ppo without KL": {"rule": "ppo", "kl_coef": 0.0},
    "terms": {"rule": "grpo", "terms": [{"term": "entropy", "coef": 0.01}, {"term": "kl", "coef": 0.1}]},
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "tied", tied=True, seed=0))


def batch(step: int) -> list[Example]:
    """Every third completion is truncated."""
    found = examples(step)
    for number in range(0, len(found), 3):
        rollout = found[number].rollout
        cut = replace(rollout.completion, finish_reason="length")
        found[number] = replace(found[number], rollout=replace(rollout, completion=cut))
    return found


def run(learner: Learner, steps: int = 3) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    records = []
    for step in range(steps):
        known = learner.prepare(batch(step), batch(step + 7)[:4], step=step)
        records.append(known | learner.step(step))
    return records, {name: p.detach().clone() for name, p in learner.policy.named_parameters()}


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_bit_for_bit_the_same_with_one_pass_less(model_path: str, rule: str, monkeypatch: pytest.MonkeyPatch):
    learner = build(model_path, update=RULES[rule])
    assert learner.preparer.skips_proximal_pass
    fast, fast_weights = run(learner)
    monkeypatch.setattr("rlkl.learner.preparation.Preparer.skips_proximal_pass", False)
    slow, slow_weights = run(build(model_path, update=RULES[rule]))
    assert fast == slow
    assert all(torch.equal(weights, slow_weights[name]) for name, weights in fast_weights.items())


def test_sequences_that_the_rule_masks_out_are_not_trained_on(model_path: str, monkeypatch: pytest.MonkeyPatch):
    """Their log-probs have a pass of their own, over other rows together, so numbers agree up to rounding."""
    update = {"rule": "grpo", "mask_truncated": True}
    fast, fast_weights = run(build(model_path, update=update))
    monkeypatch.setattr("rlkl.learner.preparation.Preparer.skips_proximal_pass", False)
    slow, slow_weights = run(build(model_path, update=update))
    for one, other in zip(fast, slow, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    for name, weights in fast_weights.items():
        torch.testing.assert_close(weights, slow_weights[name], rtol=0.0, atol=2e-3)
    monkeypatch.setattr("rlkl.learner.learner._trained_rows", lambda batch: torch.arange(batch.size))
    _, all_weights = run(build(model_path, update=update))
    for name, weights in slow_weights.items():
        torch.testing.assert_close(weights, all_weights[name], rtol=0.0, atol=2e-3)


def passes(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> int:
    """Count the policy's forward passes in one step."""
    seen: list[object] = []
    hidden = learner.policy.hidden
    monkeypatch.setattr(learner.policy, "hidden", lambda *a, **k: seen.append(1) or hidden(*a, **k))
    learner.prepare(batch(0), step=0)
    learner.step(0)
    return len(seen)


def test_the_policy_runs_once_over_each_micro_batch(model_path: str, monkeypatch: pytest.MonkeyPatch):
    assert passes(build(model_path, update={"rule": "grpo"}), monkeypatch) == 1
    assert passes(build(model_path, update={"rule": "grpo"}, learner={"epochs": 2}), monkeypatch) == 3
    assert (
        passes(build(model_path, update={"rule": "grpo", "kl_placement": "reward", "kl_coef": 0.1}), monkeypatch) == 2
    )


def test_ppo_takes_log_probs_and_values_of_the_steps_start_from_one_pass(
    model_path: str, monkeypatch: pytest.MonkeyPatch
):
    update = {"rule": "ppo", "kl_coef": 0.1}
    assert passes(build(model_path, update=update), monkeypatch) == 2
    assert passes(build(model_path, update=update, learner={"epochs": 2}), monkeypatch) == 3
    assert passes(build(model_path, update={"rule": "ppo", "kl_coef": 0.0}), monkeypatch) == 2, "values alone"
    learner = build(model_path, update=update)
    learner.prepare(batch(0), step=0)
    signals = prepared_batch(learner).signals
    alone = frozen_heads(learner._models, prepared_batch(learner), learner._signals, device=torch.device("cpu"))
    assert torch.equal(signals[Signal.PROXIMAL_HEADS], alone)


def test_no_reference_pass_if_neither_rule_nor_recipe_asks(model_path: str):
    learner = build(model_path, update={"rule": "grpo", "kl_coef": 0.0}, learner={"track_reference_kl": False})
    assert learner._models.frozen == {}


def test_token_columns_see_the_log_probs_of_the_steps_start(model_path: str):
    learner = build(model_path, update={"rule": "grpo"})
    learner.prepare(batch(0), step=0)
    learner.step(0)
    prepared = prepared_batch(learner)
    fresh = build(model_path, update={"rule": "grpo"}, learner={"epochs": 2})
    fresh.prepare(batch(0), step=0)
    start_BT = prepared_batch(fresh).signals[Signal.PROXIMAL_LOGPROBS]
    assert torch.equal(prepared.signals[Signal.PROXIMAL_LOGPROBS], start_BT)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_advantages_and_log_probs_of_the_steps_start(model_path: str, rule: str):
    learner = build(model_path, update=RULES[rule])
    known = learner.prepare(batch(0), step=0)
    known |= learner.step(0)
    columns = learner.token_columns()
    lengths = [len(example.rollout.completion.token_ids) for example in batch(0)]
    assert set(columns) >= set(SHARED_TOKEN_COLUMNS)
    assert all([len(row) for row in columns[name]] == lengths for name in SHARED_TOKEN_COLUMNS)
    policy, reference = (sum(map(sum, columns[f"{model}_logprobs"])) for model in ("policy", "reference"))
    assert (policy - reference) / len(lengths) == pytest.approx(known["kl/policy_to_reference"], abs=1e-4)
    assert all(value < 0 for row in columns["policy_logprobs"] for value in row)
    assert all(value > 0 for row in columns["entropy"] for value in row)
    if RULES[rule]["rule"] == "grpo":
        assert any(value > 0 for row in columns["advantages"] for value in row)


def test_without_a_reference_there_is_no_column_of_it(model_path: str):
    learner = build(model_path, update={"rule": "grpo", "kl_coef": 0.0}, learner={"track_reference_kl": False})
    learner.prepare(batch(0), step=0)
    learner.step(0)
    assert list(learner.token_columns()) == ["advantages", "policy_logprobs", "entropy"]


def test_a_custom_rule_that_names_nothing_keeps_its_signals_before_credit(model_path: str):
    class Own(PolicyUpdate):
        @property
        def needs(self) -> frozenset[Signal]:
            return frozenset({Signal.POLICY_LOGPROBS, Signal.PROXIMAL_LOGPROBS, Signal.REFERENCE_LOGPROBS})

        def loss(self, batch: Any, signals: Any) -> Any:
            raise NotImplementedError

    assert Own(None).reads_before_loss == {Signal.PROXIMAL_LOGPROBS, Signal.REFERENCE_LOGPROBS}
