"""Distillation in the real learner: its divergences against numbers computed without it, and stored answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkl.functional.divergences import jensen_shannon
from rlkl.functional.windows import WindowKl
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.types import Example
from tests.builders import prepared_batch
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import examples, recipe_for


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: str(tiny_qwen3(folder / name, tied=False, seed=seed)) for seed, name in enumerate(("policy", "teacher"))
    }


def learner_with(paths: dict[str, str], update: Mapping[str, object], **learner: object) -> Learner:
    models = {"teacher": {"path": paths["teacher"]}}
    recipe = recipe_for(paths["policy"], update={"rule": "distill", **update}, learner=learner, models=models)
    return Learner(LearnerSpec(recipe=recipe, model_path=paths["policy"], frozen_paths={"teacher": paths["teacher"]}))


def with_some_stored(found: list[Example]) -> list[Example]:
    """Every third example as an answer that the policy did not sample."""

    def stored(example: Example) -> Example:
        completion = replace(example.rollout.completion, logprobs=None)
        return replace(example, rollout=replace(example.rollout, completion=completion, sample_index=-1))

    return [stored(one) if number % 3 == 0 else one for number, one in enumerate(found)]


@torch.no_grad()
def logprobs(path: str, ids_BT: Tensor, temperature: float) -> Tensor:
    logits = AutoModelForCausalLM.from_pretrained(path)(input_ids=ids_BT).logits
    return (logits / temperature).log_softmax(-1)[:, :-1]


@pytest.mark.parametrize(
    ("update", "key"),
    [
        ({"jsd_beta": 0.2}, "distill/jsd"),
        ({"kept_mass": 0.4}, "distill/kl"),
        ({"kept_mass": 0.4, "direction": "model_to_policy"}, "distill/kl"),
    ],
    ids=["jsd", "kept", "kept forward"],
)
@pytest.mark.parametrize("tokens", [8192, 20, 1])
def test_the_divergence_is_that_of_both_models_however_the_step_is_cut(
    paths: dict[str, str], update: dict[str, object], key: str, tokens: int
):
    learner = learner_with(paths, update, micro_batch_tokens=tokens)
    record = learner.prepare(examples(), step=0)
    batch = prepared_batch(learner)
    record |= learner.step(0)
    policy, teacher = (logprobs(paths[name], batch.token_ids_BT, 1.0) for name in ("policy", "teacher"))
    at_BT, targets = batch.response_BT[:, 1:], batch.token_ids_BT[:, 1:]
    policy_NV, teacher_NV, targets_N = policy[at_BT], teacher[at_BT], targets[at_BT]
    if "jsd_beta" in update:
        wanted_N = jensen_shannon(policy_NV, teacher_NV, 0.2)
    else:
        columns = WindowKl(0.4, "direction" in update)(policy_NV, teacher_NV, targets_N, None).unbind(dim=1)
        wanted_N = columns[0]
        for name, column_N in zip(("outside", "coverage", "window_tokens"), columns[1:], strict=True):
            assert record[f"distill/{name}"] == pytest.approx(float(column_N.mean()), rel=1e-3)
    assert record[key] == pytest.approx(float(wanted_N.mean()), rel=1e-3)
    assert record["loss/distill"] == pytest.approx(float(wanted_N.mean()), rel=1e-3)
    assert record["optim/grad_norm"] > 0


@pytest.mark.parametrize(
    "update",
    [{"jsd_beta": 0.5, "top_k": 4}, {"kept_mass": 0.9}, {"kept_mass": 0.9, "gate_tokens": 4}],
    ids=["jsd", "kept", "gate"],
)
def test_the_policy_comes_to_the_teacher(paths: dict[str, str], update: dict[str, object]):
    learner = learner_with(paths, update)
    records = [learner.prepare(examples(), step=step) | learner.step(step) for step in range(12)]
    assert records[-1]["loss/distill"] < 0.5 * records[0]["loss/distill"]


def test_a_teacher_like_the_policy_gives_no_gradient(paths: dict[str, str]):
    for update in ({"jsd_beta": 0.3}, {"kept_mass": 0.5}, {"kept_mass": 0.5, "gate_tokens": 4}):
        learner = learner_with({**paths, "teacher": paths["policy"]}, update)
        record = learner.prepare(examples(), step=0) | learner.step(0)
        assert record["loss/distill"] == pytest.approx(0.0, abs=1e-6)
        assert record["optim/grad_norm"] < 1e-5


def test_stored_answers_are_trained_on_with_the_weights_of_samples_and_stay_out_of_the_policys_metrics(
    paths: dict[str, str],
):
    mixed, sampled = with_some_stored(examples()), examples()
    learner, other = (learner_with(paths, {}) for _ in range(2))
    record = learner.prepare(mixed, step=0) | learner.step(0)
    whole = other.prepare(sampled, step=0) | other.step(0)
    for key in ("loss/distill", "distill/kl", "optim/grad_norm"):
        assert record[key] == pytest.approx(whole[key], rel=1e-6), key
    assert "kl/policy_to_reference" in record
    own = [one for one in mixed if one.rollout.completion.logprobs is not None]
    alone = learner_with(paths, {})
    wanted = alone.prepare(own, step=0) | alone.step(0)
    for key in ("rollout/mismatch_kl", "rollout/mismatch_max", "entropy/policy", "kl/policy_to_reference"):
        assert record[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-7), key


def test_a_step_of_stored_answers_alone_has_no_metrics_of_samples(paths: dict[str, str]):
    none = [
        replace(one, rollout=replace(one.rollout, completion=replace(one.rollout.completion, logprobs=None)))
        for one in examples()
    ]
    learner = learner_with(paths, {})
    record = learner.prepare(none, step=0) | learner.step(0)
    assert record["loss/distill"] > 0
    assert "rollout/mismatch_kl" not in record
    assert "kl/policy_to_reference" not in record


def test_a_restored_learner_goes_on_alike(paths: dict[str, str], tmp_path: Path):
    assert_goes_on_alike(paths, {"jsd_beta": 0.5}, tmp_path)


def assert_goes_on_alike(paths: dict[str, str], update: Mapping[str, object], folder: Path) -> None:
    """A step, a checkpoint, and then the same second step in a learner that is restored."""
    learner, resumed = (learner_with(paths, update) for _ in range(2))
    learner.prepare(examples(), step=0)
    learner.step(0)
    learner.save(folder)
    resumed.restore(folder)
    last = [one.prepare(examples(1), step=1) | one.step(1) for one in (learner, resumed)]
    assert last[0] == last[1]
