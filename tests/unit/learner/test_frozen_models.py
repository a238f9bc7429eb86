"""Frozen models by name: their signals from the real learner, against numbers computed without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkl.batch import Batch, LossOutput
from rlkl.errors import MissingSignalError, RecipeError
from rlkl.functional.reduce import masked, token_mean_weights
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.signals import CUSTOM, supply
from rlkl.recipe.io import recipe_from
from rlkl.signals import Signal, Signals
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.terms.base import Term
from tests.builders import prepared_batch
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import examples, recipe_for


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: str(tiny_qwen3(folder / name, tied=False, seed=seed)) for seed, name in enumerate(("policy", "teacher"))
    }


def learner_with(paths: dict[str, str], terms: list[dict], **learner: object) -> Learner:
    models = {"teacher": {"path": paths["teacher"]}}
    recipe = recipe_for(paths["policy"], update={"rule": "grpo", "terms": terms}, learner=learner, models=models)
    return Learner(LearnerSpec(recipe=recipe, model_path=paths["policy"], frozen_paths={"teacher": paths["teacher"]}))


@torch.no_grad()
def next_token_logprobs(path: str, batch_ids: Tensor) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(path)(input_ids=batch_ids).logits.log_softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        {"direction": "policy_to_model"},
        {"direction": "model_to_policy"},
        {"estimator": "k1"},
        {"estimator": "k3"},
        {"estimator": "cauchy_schwarz"},
    ],
    ids=["exact", "exact reverse", "k1", "k3", "cauchy_schwarz"],
)
def test_the_kl_to_a_teacher_is_that_of_both_models(paths: dict[str, str], settings: dict):
    term = {"term": "kl", "to": "teacher", "coef": 0.5, **settings}
    learner = learner_with(paths, [term], track_reference_kl=False)
    assert learner._models.frozen.keys() == {"teacher"}
    record = learner.prepare(examples(), step=0)
    batch = prepared_batch(learner)
    record |= learner.step(0)

    policy, teacher = (next_token_logprobs(paths[name], batch.token_ids_BT)[:, :-1] for name in ("policy", "teacher"))
    chosen = batch.token_ids_BT[:, 1:, None]
    p, q = (x.gather(-1, chosen)[..., 0] for x in (policy, teacher))
    wanted_BT = {
        "exact": (policy.exp() * (policy - teacher)).sum(-1),
        "exact reverse": (teacher.exp() * (teacher - policy)).sum(-1),
        "k1": p - q,
        "k3": (q - p).exp() - 1 - (q - p),
        "cauchy_schwarz": -torch.nn.functional.cosine_similarity(policy.exp(), teacher.exp(), dim=-1).log() * 2,
    }[settings.get("estimator", "exact") + (" reverse" if settings.get("direction") == "model_to_policy" else "")]
    mean = float(wanted_BT[batch.response_BT[:, 1:]].mean())
    assert abs(mean) > 1e-3
    assert record["term/kl_teacher_nats"] == pytest.approx(mean, rel=1e-3)
    assert record["loss/kl_teacher"] == pytest.approx(0.5 * mean, rel=1e-3)


def test_a_kl_to_reference_and_teacher_at_once_and_the_policy_learns_from_the_teacher(paths: dict[str, str]):
    terms = [
        {"term": "kl", "to": "teacher", "direction": "model_to_policy", "coef": 1.0},
        {"term": "kl", "to": "reference", "coef": 0.01, "top_k": 8},
        {"term": "entropy", "coef": 0.0},
    ]
    learner = learner_with(paths, terms, lr=1e-2)
    records = [learner.prepare(examples(reward_scale=0.0), step=step) | learner.step(step) for step in range(8)]
    assert {"loss/kl_teacher", "loss/kl_reference", "loss/entropy_bonus"} <= records[0].keys()
    assert records[0]["term/kl_reference_nats"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1]["term/kl_teacher_nats"] < 0.7 * records[0]["term/kl_teacher_nats"]
    assert records[-1]["term/kl_reference_nats"] > 1e-3


def test_the_steered_coefficient_of_a_term_is_in_the_checkpoint(paths: dict[str, str], tmp_path: Path):
    terms = [{"term": "kl", "to": "teacher", "target": 1e-3, "horizon": 12, "coef": 0.1}]
    learner, resumed = (learner_with(paths, terms) for _ in range(2))
    for step in range(2):
        learner.prepare(examples(step), step=step)
        learner.step(step)
    learner.save(tmp_path)
    resumed.restore(tmp_path)

    last = [one.prepare(examples(2), step=2) | one.step(2) for one in (learner, resumed)]
    assert last[0] == last[1]
    assert last[0]["term/kl_teacher_coef"] == pytest.approx(0.1 * 1.2 * 1.2)


class Distill(PolicyUpdate):
    """A rule that needs a teacher."""

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal("kl_to_policy", "teacher")})

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        raise NotImplementedError


def test_a_model_that_the_recipe_does_not_name_is_refused_at_set_up(paths: dict[str, str]):
    """A rule's at set-up, with rule and signal; a term's when the recipe is read."""
    values = recipe_for(paths["policy"]).model_dump(exclude={"update"})
    recipe = recipe_from({**values, "update": {"rule": f"{__name__}:Distill"}})
    with pytest.raises(
        MissingSignalError, match=r"rule 'Distill' needs the signal .*teacher.* Add it: models: \{teacher:"
    ):
        Learner(LearnerSpec(recipe=recipe, model_path=paths["policy"]))
    update = {"rule": "grpo", "terms": [{"term": "kl", "to": "teachr"}]}
    with pytest.raises(
        RecipeError, match=r"update\.terms\[0\]\.to = 'teachr' names no model of models; did you mean 'teacher'"
    ):
        recipe_from({**values, "models": {"teacher": {"path": "p"}}, "update": update})


@pytest.mark.parametrize("rule", ["grpo", "ppo"])
def test_replayed_sequences_count_nowhere_in_the_rule(paths: dict[str, str], rule: str):
    """Not in its groups, its whitening, its loss or its metrics, even with great rewards and a main group's number."""
    replayed = [
        replace(example, role="replay", rollout=replace(example.rollout, reward=100.0)) for example in examples(1)
    ]
    recipe = recipe_for(paths["policy"], update={"rule": rule, "kl_coef": 0.1})
    plain, mixed = (Learner(LearnerSpec(recipe=recipe, model_path=paths["policy"])) for _ in range(2))
    record = plain.prepare(examples(), step=0) | plain.step(0)
    with_replay = mixed.prepare([*examples(), *replayed], step=0) | mixed.step(0)
    assert record["optim/grad_norm"] > 1e-3
    assert with_replay == pytest.approx(record, rel=1e-4, abs=1e-6)


class Remember(Term):
    """Cross-entropy on replayed sequences."""

    role = "replay"

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS})

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        return -(token_mean_weights(batch.response_BT, batch.denominators) * policy_BT).sum()


def test_a_term_trains_on_its_own_role(paths: dict[str, str]):
    replayed = [replace(example, role="replay", group=example.group + 100) for example in examples(1)]
    alone, mixed = (learner_with(paths, [{"term": f"{__name__}:Remember"}]) for _ in range(2))
    record = alone.prepare(examples(), step=0) | alone.step(0)
    assert record["loss/remember"] == 0.0
    with_replay = mixed.prepare([*examples(), *replayed], step=0) | mixed.step(0)
    assert with_replay["loss/policy"] == pytest.approx(record["loss/policy"], abs=1e-6)
    tokens = sum(len(example.rollout.completion.token_ids) for example in replayed)
    ids, places = [], []
    for example in replayed:
        ids.append(example.prompt.token_ids + example.rollout.completion.token_ids)
        places.append(len(example.prompt.token_ids))
    total = 0.0
    for sequence, start in zip(ids, places, strict=True):
        logprobs_TV = next_token_logprobs(paths["policy"], torch.tensor([sequence]))[0]
        total -= sum(float(logprobs_TV[t - 1, sequence[t]]) for t in range(start, len(sequence)))
    assert with_replay["loss/remember"] == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        (Signal.HEADS, "HEADS.*The rule has no heads"),
        (Signal.PROXIMAL_HEADS, "HEADS.*The rule has no heads"),
        (Signal.CORRUPTED_LOGPROBS, "CORRUPTED_LOGPROBS.*The rule makes no view corrupted"),
    ],
)
def test_signals_that_a_term_cannot_have_are_refused_at_set_up(
    paths: dict[str, str], monkeypatch: pytest.MonkeyPatch, needed: Signal, message: str
):
    monkeypatch.setattr(Remember, "needs", frozenset({needed}))
    with pytest.raises(MissingSignalError, match=message):
        learner_with(paths, [{"term": f"{__name__}:Remember"}])


def test_a_signal_of_ones_own_cannot_take_the_name_of_a_built_in_one():
    with pytest.raises(ValueError, match=r"'logprobs' is a quantity of rlkl"):
        supply("logprobs", lambda models, batch, settings: batch.rollout_logprobs_BT)
    assert "logprobs" not in CUSTOM


RULE_WITH_A_SIGNAL = """
import torch
from rlkl.batch import LossOutput
from rlkl.functional.reduce import masked, token_mean_weights
from rlkl.signals import Signal
from rlkl.updates.base import PolicyUpdate

{code}
FROZEN = Signal("top_logprob", moment="step_start")


class Sharpen(PolicyUpdate):
    needs = frozenset({{TOP, FROZEN}})

    def loss(self, batch, signals):
        weights_BT = token_mean_weights(batch.response_BT, batch.denominators)
        loss = -(weights_BT * masked(signals[TOP], batch.response_BT)).sum()
        gap = (weights_BT * masked(signals[TOP] - signals[FROZEN], batch.response_BT)).abs().sum()
        return LossOutput(loss=loss, terms={{"top": loss.detach()}}, metrics={{"rule/gap": gap.detach()}})
"""
PAGE = Path(__file__).parents[3] / "docs" / "your_own_rule.md"


def test_a_rule_brings_a_signal_of_its_own(paths: dict[str, str], tmp_path: Path):
    """With the code of docs/your_own_rule.md; no file of rlkl changes."""
    section = PAGE.read_text().partition("## A signal of your own")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    file = tmp_path / "sharpen.py"
    file.write_text(RULE_WITH_A_SIGNAL.format(code=code))
    recipe = recipe_from(
        {
            **recipe_for(paths["policy"], learner={"lr": 1e-2}).model_dump(exclude={"update"}),
            "update": {"rule": f"{file}:Sharpen"},
        }
    )
    learner = Learner(LearnerSpec(recipe=recipe, model_path=paths["policy"]))
    records = [learner.prepare(examples(), step=step) | learner.step(step) for step in range(5)]
    assert records[0]["rule/gap"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1]["loss/top"] < 0.7 * records[0]["loss/top"]
