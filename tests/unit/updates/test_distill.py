"""On-policy distillation: values by hand, a vocabulary of five tokens enumerated, and what the recipe may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkl.batch import Batch, Signal, Signals
from rlkl.commands.plan_warnings import warnings_about
from rlkl.errors import RecipeError
from rlkl.functional.divergences import JensenShannon
from rlkl.functional.kl import exact_kl
from rlkl.functional.windows import WindowKl
from rlkl.quantities import Divergence
from rlkl.recipe.io import load_recipe
from rlkl.system.machine import this_machine
from rlkl.training.selection import left_out, token_columns
from rlkl.types import Completion, Example, Prompt, Rollout, RolloutGroup, Selection
from rlkl.updates.base import SampleCorrection
from rlkl.updates.distill.rule import Distill
from rlkl.updates.distill.stored import STORED_SAMPLE
from rlkl.updates.settings import DistillSettings, GrpoSettings
from rlkl.updates.wrapped import Wrapped
from tests.builders import FACTS, PROMPT_TOKENS, make_batch, with_frozen

TEACHER = Signal("logprobs", "teacher", moment="step_start")


def two_answers(**frozen: list[list[float]]) -> Batch:
    """A completion of three tokens and one of two, with frozen log-probs of policy and teacher."""
    batch = make_batch(lengths=[3, 2], rewards=[1.0, 0.0], groups=[0, 0])
    named = {"policy": Signal.PROXIMAL_LOGPROBS, "teacher": TEACHER}
    return with_frozen(batch, {named[name]: spread(batch, rows) for name, rows in frozen.items()})


def spread(batch: Batch, rows: list[list[float]]) -> Tensor:
    values_BT = torch.zeros(batch.response_BT.shape)
    for row, values in enumerate(rows):
        values_BT[row, PROMPT_TOKENS : PROMPT_TOKENS + len(values)] = torch.tensor(values)
    return values_BT


def test_the_loss_is_the_mean_of_the_exact_kl_over_tokens() -> None:
    rule, batch = Distill(DistillSettings()), two_answers()
    signal = Signal("kl_from_policy", "teacher")
    output = rule.loss(batch, Signals({signal: spread(batch, [[0.1, 0.2, 0.4], [0.3, 0.5]])}))

    assert rule.needs == {signal}
    assert output.loss.item() == pytest.approx(1.5 / 5)
    assert output.terms["distill"].item() == pytest.approx(1.5 / 5)
    assert output.metrics["distill/kl"].item() == pytest.approx(1.5 / 5)


def test_the_direction_and_the_tokens_of_the_kl_are_the_recipes() -> None:
    settings = DistillSettings(teacher="big", direction="model_to_policy", top_k=64)
    assert Distill(settings).needs == {Signal("kl_to_policy", "big", top_k=64)}


def test_as_a_reward_the_advantage_is_the_log_ratio_of_the_sampled_token() -> None:
    rule = Distill(DistillSettings(placement="reward", max_log_ratio=2.0))
    batch = two_answers(policy=[[-1.0, -2.0, -4.0], [-3.0, -5.0]], teacher=[[-1.5, -1.0, -9.0], [-3.0, -1.0]])
    credited = rule.credit(batch)

    torch.testing.assert_close(credited.advantages_BT, spread(batch, [[-0.5, 1.0, -2.0], [0.0, 2.0]]))
    assert rule.batch_metrics(credited) == {
        "distill/kl": pytest.approx(-(-0.5 + 1.0 - 5.0 + 0.0 + 4.0) / 5),
        "distill/cut_fraction": pytest.approx(2 / 5),
    }
    live_BT = batch.signals[Signal.PROXIMAL_LOGPROBS].clone().requires_grad_()
    loss = rule.loss(credited, batch.signals.merged(Signals({Signal.POLICY_LOGPROBS: live_BT}))).loss
    (gradient_BT,) = torch.autograd.grad(loss, live_BT)
    torch.testing.assert_close(gradient_BT, -credited.advantages_BT / 5)


def test_rewards_act_beside_the_teacher_by_their_coefficient() -> None:
    rule = Distill(DistillSettings(placement="reward", reward_coef=0.5))
    batch = two_answers(policy=[[-1.0] * 3, [-1.0] * 2], teacher=[[-1.0] * 3, [-1.0] * 2])
    of_one = 0.5 * 0.5 / (0.5**0.5 + 1e-4)  # (reward - mean) / (std + 1e-4), rewards 1 and 0

    torch.testing.assert_close(rule.credit(batch).advantages_BT, spread(batch, [[of_one] * 3, [-of_one] * 2]))
    apart = replace(batch, rewards_B=torch.tensor([9.0, -9.0]))
    alone = Distill(DistillSettings(placement="reward"))
    assert not alone.credit(apart).advantages_BT.any()


@pytest.mark.parametrize("placement", ["loss", "reward"])
def test_a_teacher_like_the_policy_gives_exactly_no_gradient(placement: str) -> None:
    rule = Distill(DistillSettings.model_validate({"placement": placement}))
    logits_V = torch.tensor([0.5, -1.0, 0.0, 1.5, 0.2], requires_grad=True)
    loss = expected_loss(rule, logits_V, logits_V.detach().log_softmax(0))
    (gradient_V,) = torch.autograd.grad(loss, logits_V)
    torch.testing.assert_close(gradient_V, torch.zeros(5), rtol=0, atol=1e-7)


def expected_loss(rule: Distill, logits_V: Tensor, teacher_V: Tensor) -> Tensor:
    """The loss of one response token, averaged over all five tokens that the policy may draw."""
    policy_V = logits_V.log_softmax(0)
    batch = make_batch(lengths=[1], rewards=[0.0], groups=[0])
    total = torch.zeros(())
    for token in range(5):
        drawn = with_frozen(
            batch,
            {
                Signal.PROXIMAL_LOGPROBS: policy_V[token].detach() * batch.response_BT,
                TEACHER: teacher_V[token] * batch.response_BT,
            },
        )
        live = {
            Signal.POLICY_LOGPROBS: policy_V[token] * batch.response_BT,
            Signal("kl_from_policy", "teacher"): exact_kl(policy_V, teacher_V) * batch.response_BT,
            Signal("kl_to_policy", "teacher"): exact_kl(teacher_V, policy_V) * batch.response_BT,
        }
        credited = rule.credit(drawn)
        total = total + policy_V[token].detach().exp() * rule.loss(credited, drawn.signals.merged(Signals(live))).loss
    return total


def test_as_a_reward_the_expected_gradient_is_that_of_the_exact_reverse_kl() -> None:
    logits_V = torch.tensor([0.5, -1.0, 0.0, 1.5, 0.2], requires_grad=True)
    teacher_V = torch.tensor([0.1, 0.7, -0.4, 0.3, -1.2]).log_softmax(0)

    def gradient(**settings: str) -> Tensor:
        rule = Distill(DistillSettings.model_validate(settings))
        return torch.autograd.grad(expected_loss(rule, logits_V, teacher_V), logits_V)[0]

    torch.testing.assert_close(gradient(placement="reward"), gradient(direction="policy_to_model"))
    assert (gradient(placement="reward") - gradient(direction="model_to_policy")).abs().max() > 0.05


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"placement": "reward", "top_k": 5}, "top_k with placement = reward: it acts with placement = loss only"),
        ({"reward_coef": 0.5, "clip": 0.1}, "clip and reward_coef with placement = loss: it acts with placement = rew"),
        ({"clip": 0.0, "placement": "reward"}, "clip"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(words: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DistillSettings.model_validate(words)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"jsd_beta": 0.0}, "jsd_beta = 0: it lies above 0 and below 1. The limit for 0 is direction: model_to_policy"),
        ({"jsd_beta": 1.0}, "jsd_beta = 1: it lies above 0 and below 1"),
        ({"jsd_beta": 0.5, "direction": "model_to_policy"}, "direction = model_to_policy with jsd_beta = 0.5"),
        ({"jsd_beta": 0.5, "placement": "reward"}, "jsd_beta with placement = reward: it acts with placement = loss"),
        ({"kept_mass": 0.9, "jsd_beta": 0.5}, "jsd_beta with kept_mass = 0.9: kept_mass is of the KL over the whole"),
        ({"kept_mass": 0.9, "top_k": 8}, "top_k with kept_mass = 0.9"),
        ({"kept_mass": 1.0}, "kept_mass"),
        ({"gate_tokens": 8}, "gate_tokens = 8 without kept_mass: the gate's window holds at least the probability"),
        ({"gate_tokens": 0, "kept_mass": 0.9}, "gate_tokens"),
        ({"gate_temperature": 0.2, "kept_mass": 0.9}, "gate_temperature without gate_tokens: there is no gate"),
        ({"gate_lr_scale": 2.0}, "gate_lr_scale without gate_tokens"),
        ({"gate_tokens": 8, "kept_mass": 0.9, "gate_temperature": 0.0}, "gate_temperature"),
        ({"gate_tokens": 8, "kept_mass": 0.9, "top_k": 4}, "top_k with kept_mass = 0.9"),
        (
            {"gate_tokens": 8, "placement": "reward"},
            "gate_tokens with placement = reward: it acts with placement = loss",
        ),
        ({"on_policy_fraction": 0.5}, "on_policy_fraction = 0.5: the other sequences are answers of the data. Name"),
        ({"answer_column": "answer"}, "answer_column = answer with on_policy_fraction = 1: no stored answer"),
        ({"on_policy_fraction": 1.5, "answer_column": "answer"}, "on_policy_fraction"),
        (
            {"on_policy_fraction": 0.5, "answer_column": "answer", "placement": "reward"},
            "on_policy_fraction and answer_column with placement = reward",
        ),
        (
            {"corrections": 1, "placement": "reward"},
            "corrections with placement = reward: it acts with placement = loss",
        ),
        ({"corrections": 9}, "corrections"),
        ({"corrections": -1}, "corrections"),
        (
            {"corrections": 1, "on_policy_fraction": 0, "answer_column": "answer"},
            "corrections = 1 with on_policy_fraction = 0: no sample is trained on, so none needs a correction",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DistillSettings.model_validate(words)


def test_a_dumped_recipe_with_all_keys_is_accepted() -> None:
    for words in (
        {},
        {"jsd_beta": 0.1, "top_k": 5},
        {"kept_mass": 0.9},
        {"kept_mass": 0.9, "gate_tokens": 4, "gate_temperature": 0.2, "gate_lr_scale": 3.0},
        {"corrections": 3},
        {"placement": "reward", "clip": 0.1},
    ):
        settings = DistillSettings.model_validate(words)
        assert DistillSettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("words", "by"),
    [
        ({"jsd_beta": 0.1, "top_k": 4}, JensenShannon(0.1, 4)),
        ({"kept_mass": 0.9}, WindowKl(0.9, forward=False)),
        ({"kept_mass": 0.9, "direction": "model_to_policy"}, WindowKl(0.9, forward=True)),
        ({"kept_mass": 0.9, "gate_tokens": 4}, WindowKl(0.9, False, temperature=0.1)),
    ],
)
def test_another_divergence_is_descended_as_the_kl_is(words: dict[str, object], by: Divergence) -> None:
    rule, batch = Distill(DistillSettings.model_validate({"teacher": "big", **words})), two_answers()
    signal = Signal("divergence", "big", by=by)
    assert rule.divergence == signal
    assert signal in rule.needs
    nats_BT = spread(batch, [[0.1, 0.2, 0.4], [0.3, 0.5]])
    if "kept_mass" not in words:
        output = rule.loss(batch, Signals({signal: nats_BT}))
        metrics = {"distill/jsd": pytest.approx(1.5 / 5)}
    else:
        others = [torch.full_like(nats_BT, x) for x in (0.1, 0.95, 2.0)]  # outside, coverage, tokens
        values = {signal: torch.stack([nats_BT, *others], dim=-1)}
        if "gate_tokens" in words:
            values[Signal.HEADS] = torch.full_like(nats_BT, 0.4).unsqueeze(-1)
        assert rule.needs == values.keys()
        output = rule.loss(batch, Signals(values))
        named = {"kl": 1.5 / 5, "outside": 0.1, "coverage": 0.95, "window_tokens": 2.0}
        named |= {"gate": 0.4} if "gate_tokens" in words else {}
        metrics = {f"distill/{name}": pytest.approx(value) for name, value in named.items()}
    assert output.loss.item() == pytest.approx(1.5 / 5)
    assert {name: value.item() for name, value in output.metrics.items()} == metrics


def test_a_plan_says_that_a_gate_narrows() -> None:
    words = ("update={rule: distill, kept_mass: 0.9, gate_tokens: 4}", "models={teacher: {path: x}}")
    (found,) = [warning for warning in warnings_of(*words) if "gate" in warning]
    assert found.startswith("update.gate_tokens = 4: the gate is trained on the same loss, which never rises when")
    assert "update.kept_mass = 0.9" in found


def stored_groups(prompts: int, samples: int) -> list[RolloutGroup]:
    return [
        RolloutGroup(
            prompt=Prompt(id=f"p{number}", text="", token_ids=(1, 2), answers=((7, number, 1),)),
            rollouts=tuple(
                Rollout(
                    sample_index=sample,
                    completion=Completion(token_ids=(5, 1), logprobs=(-1.0, -0.5), finish_reason="stop"),
                    reward=0.5,
                    components={},
                    weights_version=3,
                    draw=10 + number,
                )
                for sample in range(samples)
            ),
        )
        for number in range(prompts)
    ]


def selected(groups: list[RolloutGroup], fraction: float, seed: int = 0) -> list[Example]:
    rule = Distill(DistillSettings(on_policy_fraction=fraction, answer_column="answer" if fraction < 1 else None))
    rule.seed = seed
    return rule.select(groups)


@pytest.mark.parametrize(("fraction", "stored"), [(1.0, 0), (0.75, 5), (0.5, 10), (0.0, 20)])
def test_a_share_of_the_step_is_stored_answers(fraction: float, stored: int) -> None:
    groups = stored_groups(10, 2)
    examples = selected(groups, fraction)
    assert [example.group for example in examples] == [number for number in range(10) for _ in range(2)]
    assert {example.role for example in examples} == {"main"}
    assert sum(example.rollout.completion.logprobs is None for example in examples) == stored
    for example in examples:
        completion = example.rollout.completion
        if completion.logprobs is None:
            assert completion.token_ids == (7, example.group, 1)
            assert (example.rollout.sample_index, example.rollout.weights_version) == (STORED_SAMPLE, 3)
        else:
            assert completion.token_ids == (5, 1)


def test_the_stored_answers_are_chosen_by_seed_and_draw_and_not_by_rewards_or_order() -> None:
    groups = stored_groups(12, 1)

    def chosen(groups: list[RolloutGroup], seed: int = 0) -> set[str]:
        return {one.prompt.id for one in selected(groups, 0.5, seed) if one.rollout.completion.logprobs is None}

    better = [replace(one, rollouts=tuple(replace(r, reward=9.0) for r in one.rollouts)) for one in groups[:6]]
    assert chosen(groups) == chosen(groups[::-1]) == chosen([*better, *groups[6:]])
    assert len({frozenset(chosen(groups, seed)) for seed in range(5)}) == 5


def test_samples_that_make_room_count_as_left_out() -> None:
    """So that the KL to the reference is of all samples, and no number of a stored answer is a sample's."""
    groups = stored_groups(4, 1)
    examples = selected(groups, 0.5)
    replaced = {one.group for one in examples if one.rollout.sample_index == STORED_SAMPLE}
    assert {one.group for one in left_out(groups, examples)} == replaced
    selection = Selection(groups=groups, examples=examples, left_out=(), metrics={})
    columns = token_columns(selection, {"entropy": [(0.1,)] * 4})
    assert [row is None for row in columns["entropy"]] == [number in replaced for number in range(4)]


def test_stored_answers_come_with_warnings_where_they_mislead() -> None:
    words = ("update={rule: distill, answer_column: answer, on_policy_fraction: 0}", "models={teacher: {path: x}}")
    found = "\n".join(warnings_of(*words))
    assert "the policy's samples are measured and not trained on" in found
    words = (
        "update={rule: distill, answer_column: answer, on_policy_fraction: 0.5, terms: [{term: kl, estimator: k3}]}",
        words[1],
    )
    assert "stored answers are no sample of the policy" in "\n".join(warnings_of(*words))


def warnings_of(*words: str) -> list[str]:
    recipe = load_recipe("quickstart", *words)
    facts = replace(FACTS, prompts_per_step=1, samples_per_prompt=1, tracks_reference_kl=False)
    return list(recipe.update.warnings(facts))


def test_a_recipe_without_the_teacher_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"distill needs a model named 'teacher', and models has none; add models: "):
        load_recipe("quickstart", "update={rule: distill}")


def test_a_plan_says_what_needs_the_rewards_that_are_missing() -> None:
    words = ("update={rule: distill}", "models={teacher: {path: x}}", "rewards=[]")
    for word, use in (("data.sampler=pass_rate", "draws by pass rates"), ("scoring.normalize=group", "is of rewards")):
        found = warnings_about(load_recipe("quickstart", *words, word), this_machine())
        assert any(use in warning and "rewards is empty" in warning for warning in found)


@pytest.mark.parametrize(("more", "warned"), [("", False), (", placement: reward, reward_coef: 0.5", True)])
def test_a_plan_says_when_rewards_are_needed_and_that_the_teacher_is_used(
    more: str, warned: bool, tmp_path: Path
) -> None:
    words = (f"update={{rule: distill, teacher: big{more}}}", f"models={{big: {{path: {tmp_path}}}}}", "rewards=[]")
    found = warnings_about(load_recipe("quickstart", *words), this_machine())
    assert any(warning.startswith("rewards is empty: rlkl train refuses that") for warning in found) == warned
    assert not [warning for warning in found if "models.big" in warning]


CORRECTED = ("update={rule: distill, corrections: 1}", "models={teacher: {path: x}}")


def test_the_rule_asks_for_corrections_also_through_a_wrapper() -> None:
    assert Distill(DistillSettings()).sample_correction is None
    settings = DistillSettings(teacher="big", corrections=3, direction="model_to_policy")
    wanted = SampleCorrection(teacher="big", rounds=3, direction="model_to_policy")
    assert Distill(settings).sample_correction == wanted
    assert Wrapped(Distill(settings)).sample_correction == wanted
    assert settings.correction_rounds == 3
    assert GrpoSettings().correction_rounds == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("rollout.schedule=stream", "rollout.schedule = stream, but with update.corrections = 1 the learner compares"),
        ("rollout.schedule=one_step_off", "so it cannot step meanwhile; set rollout.schedule: alternate"),
        ("rollout.placement=colocated", "engines that sleep while it works lose their weights; set rollout.placement"),
    ],
)
def test_corrections_need_engines_and_learner_in_turns(words: str, problem: str) -> None:
    assert load_recipe("quickstart", *CORRECTED).update.correction_rounds == 1
    with pytest.raises(RecipeError, match=problem):
        load_recipe("quickstart", *CORRECTED, words)


def test_corrections_come_with_warnings_where_they_mislead() -> None:
    term = "update={rule: distill, corrections: 1, terms: [{term: kl, estimator: k3}]}"
    assert "corrected completions are no sample of the policy" in "\n".join(warnings_of(term, CORRECTED[1]))
    assert not [one for one in warnings_of(*CORRECTED) if "corrections" in one]
    worded = "update={rule: distill, corrections: 1, terms: [{term: rewording, column: other}]}"
    assert "with update.terms rewording: corrected completions" in "\n".join(warnings_of(worded, CORRECTED[1]))
    tracked = load_recipe("quickstart", *CORRECTED).update.warnings(FACTS)
    assert "kl/policy_to_reference is measured on corrected" in "\n".join(tracked)
