"""The frozen model ``average``: a moving average of the policy's weights, and the KL to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.errors import CheckpointError, RecipeError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.models.language_model import LanguageModel
from rlkl.recipe.io import dump_recipe, load_recipe
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import examples, recipe_for

MODELS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "lora": {"lora": {"rank": 2}},
    "lora, recomputed, bfloat16": {"dtype": "bfloat16", "lora": {"rank": 2}, "gradient_checkpointing": True},
}
TERM = {"term": "kl", "to": "average", "coef": 0.5}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("models") / "policy", tied=True, seed=0))


def build(path: str, model: str, terms: list[dict[str, Any]], **learner: object) -> Learner:
    recipe = recipe_for(
        path,
        model=MODELS[model],
        update={"rule": "grpo", "terms": terms},
        learner={"track_reference_kl": False, **learner},
    )
    return Learner(LearnerSpec(recipe=recipe, model_path=path))


def train(learner: Learner, steps: int, first: int = 0) -> list[dict[str, float]]:
    return [learner.prepare(examples(step), step=step) | learner.step(step) for step in range(first, first + steps)]


def trained(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner._optimization.trained.items()}


def averages(learner: Learner) -> dict[str, Tensor]:
    return {name: mean.clone() for name, mean in learner._optimization.followers.average.tensors.items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def fail_half_way(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail between the two optimizer steps of the second step."""
    learner.prepare(examples(1), step=1)
    monkeypatch.setattr(learner._update, "observe", lambda metrics: 1 / 0)  # before the second optimizer step
    with pytest.raises(ZeroDivisionError):
        learner.step(1)


def assert_checkpoint_needs(path: str, term: dict[str, Any], message: str, folder: Path) -> None:
    """A run with the term refuses a checkpoint of one without it; the other way round is fine."""
    build(path, "float32", []).save(folder)
    with pytest.raises(CheckpointError, match=message):
        build(path, "float32", [term]).restore(folder)
    build(path, "float32", [term]).save(folder / "with")
    build(path, "float32", []).restore(folder / "with")


@pytest.mark.parametrize("model", MODELS)
def test_with_decay_1_it_is_the_frozen_start(path: str, model: str):
    follows = build(path, model, [{**TERM, "average_decay": 1.0}])
    stays = build(path, model, [{**TERM, "to": "reference", "name": "kl_average"}])
    found, wanted = train(follows, 4), train(stays, 4)
    assert wanted[-1]["term/kl_average_nats"] > 1e-3
    for one, other in zip(found, wanted, strict=True):
        assert one["term/kl_average_nats"] == pytest.approx(other["term/kl_average_nats"], rel=1e-4, abs=1e-7)
        assert one["loss/total"] == pytest.approx(other["loss/total"], rel=1e-4, abs=1e-7)
    for name, weight in trained(follows).items():
        torch.testing.assert_close(weight, trained(stays)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["bfloat16", "lora"])
def test_with_decay_0_it_is_the_policy(path: str, model: str):
    learner = build(path, model, [{**TERM, "average_decay": 0.0}], epochs=2)
    for record in train(learner, 3):
        assert record["term/kl_average_nats"] == pytest.approx(0.0, abs=1e-6)
        assert record["optim/grad_norm"] > 1e-3
    assert_same_bits(averages(learner), trained(learner))


@pytest.mark.parametrize("model", ["bfloat16", "lora"])
def test_it_moves_after_each_optimizer_step_and_holds_the_policy_back(path: str, model: str):
    learner = build(path, model, [{**TERM, "average_decay": 0.75}])
    wanted = averages(learner)
    assert_same_bits(wanted, trained(learner))
    for step in range(3):
        (record,) = train(learner, 1, step)
        assert (record["term/kl_average_nats"] > 1e-5) is (step > 0)
        wanted = {name: 0.75 * mean + 0.25 * trained(learner)[name] for name, mean in wanted.items()}
        for name, mean in averages(learner).items():
            torch.testing.assert_close(mean, wanted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", ["float32", "lora, recomputed, bfloat16"])
def test_a_coefficient_of_0_changes_no_bit(path: str, model: str):
    plain, with_term = build(path, model, []), build(path, model, [{**TERM, "coef": 0.0}])
    train(plain, 3)
    train(with_term, 3)
    assert_same_bits(trained(with_term), trained(plain))


@pytest.mark.parametrize("model", ["bfloat16", "lora"])
def test_it_gets_no_gradient_and_leaves_the_policy_as_it_is(path: str, model: str):
    learner = build(path, model, [{**TERM, "estimator": "k3"}, TERM])
    train(learner, 2)
    before, means = trained(learner), averages(learner)
    learner.prepare(examples(2), step=2)
    batch = learner._last
    assert batch is not None
    learner.try_rows(torch.arange(batch.batch.size))
    assert_same_bits(trained(learner), before)
    assert_same_bits(averages(learner), means)
    assert not any(mean.requires_grad for mean in means.values())
    frozen = learner._models.frozen["average"]
    if isinstance(frozen, LanguageModel):
        assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    else:
        assert sum(mean.numel() for mean in means.values()) < 0.1 * sum(p.numel() for p in learner.policy.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_has_it_bit_for_bit(path: str, model: str, tmp_path: Path):
    learner, resumed = (build(path, model, [{**TERM, "average_decay": 0.5}]) for _ in range(2))
    train(learner, 2)
    learner.save(tmp_path)
    resumed.restore(tmp_path)
    assert_same_bits(averages(resumed), averages(learner))
    assert train(resumed, 2, 2) == train(learner, 2, 2)
    assert_same_bits(trained(resumed), trained(learner))
    assert_same_bits(averages(resumed), averages(learner))


def test_a_checkpoint_without_it_is_refused(path: str, tmp_path: Path):
    assert_checkpoint_needs(path, TERM, "holds no average of the policy", tmp_path)


def test_a_batch_that_fails_half_way_moves_it_back(path: str, monkeypatch: pytest.MonkeyPatch):
    learner = build(path, "bfloat16", [TERM], epochs=2)
    train(learner, 1)
    before, means = trained(learner), averages(learner)
    fail_half_way(learner, monkeypatch)
    assert_same_bits(trained(learner), before)
    assert_same_bits(averages(learner), means)


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_outside_0_to_1_is_refused(decay: float):
    with pytest.raises(RecipeError, match=rf"update\.terms\[0\]\.average_decay = {decay}: expected a number"):
        load_recipe("quickstart", f"update.terms=[{{term: kl, to: average, average_decay: {decay}}}]")


def test_the_settings_are_read_back_from_the_recipe_of_a_run(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("reviews_average")))
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again.update.average_decay == 0.9
    assert again.update.keeps_average
    assert [term.frozen_model for term in again.update.terms] == ["reference", "average"]


def test_all_terms_share_one_decay():
    terms = "[{term: kl, to: average}, {term: masked_kl, to: average, token_ids: [1], average_decay: 0.5}]"
    with pytest.raises(RecipeError, match=r"terms\[1\]\.average_decay = 0\.5, and another term has 0\.99"):
        load_recipe("quickstart", f"update.terms={terms}")


def test_no_other_model_can_have_its_name(path: str):
    with pytest.raises((RecipeError, ValueError), match="average, lagged or reference"):
        recipe_for(path, models={"average": {"path": path}})


def test_an_adapter_of_the_head_is_averaged_too_but_refused_if_it_is_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    untied = str(tiny_qwen3(tmp_path / "untied", tied=False, seed=0))
    monkeypatch.setitem(MODELS, "head", {"lora": {"rank": 2, "target_modules": ["q_proj", "lm_head"]}})
    learner = build(untied, "head", [{**TERM, "average_decay": 0.0}])
    assert any("lm_head" in name for name in averages(learner))
    for record in train(learner, 2):
        assert record["term/kl_average_nats"] == pytest.approx(0.0, abs=1e-6)
    assert_same_bits(averages(learner), trained(learner))
    monkeypatch.setattr("rlkl.models.followers.is_shard", lambda tensor: True)
    with pytest.raises(RecipeError, match=r"learner\.ranks > 1, needs adapters within the decoder layers.*lm_head"):
        build(untied, "head", [TERM])
