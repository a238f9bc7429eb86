from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkl.errors import CheckpointError, LearnerError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.optimizers import build_optimizer
from rlkl.recipe import Recipe
from rlkl.types import Completion, Example, Probe, Prompt, Rollout
from rlkl.updates.base import HeadInput, Heads
from tests.models import tiny_qwen3


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0))


def recipe_for(model_path: str, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": model_path, **sections.pop("model", {})},
            "data": {"source": "unused.jsonl"},
            "learner": {"lr": 1e-2, "track_reference_kl": True, **sections.pop("learner", {})},
            **sections,
        }
    )


def build(model_path: str, **sections: Any) -> Learner:
    return Learner(LearnerSpec(recipe=recipe_for(model_path, **sections), model_path=model_path))


def examples(seed: int = 0, *, reward_scale: float = 1.0) -> list[Example]:
    """Four prompts, three completions each, of 1 to 6 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 14, (count,), generator=generator).tolist())

    found = []
    for group in range(4):
        prompt = Prompt(id=str(group), text="", token_ids=ids(2 + group))
        for sample in range(3):
            length = 1 + (group + 2 * sample) % 6
            completion = Completion(token_ids=ids(length), logprobs=(-2.0,) * length, finish_reason="stop")
            reward = reward_scale * float(torch.rand((), generator=generator))
            rollout = Rollout(
                sample_index=sample, completion=completion, reward=reward, components={}, weights_version=0
            )
            found.append(Example(prompt=prompt, rollout=rollout, group=group))
    return found


def train(learner: Learner, steps: int = 1) -> list[dict[str, float]]:
    return [learner.prepare(examples(step), step=0) | learner.step(step) for step in range(steps)]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.policy.published()}


def test_before_the_first_step_policy_and_reference_are_one(model_path: str):
    record = train(build(model_path, update={"kl_coef": 0.1}))[0]

    assert record["kl/policy_to_reference"] == 0.0
    assert record["loss/kl"] == 0.0
    assert record["update/clip_fraction_low"] == record["update/clip_fraction_high"] == 0.0
    assert record["optim/grad_norm"] > 0


def test_a_step_moves_the_policy_away_from_the_reference(model_path: str):
    records = train(build(model_path), steps=2)

    assert records[1]["kl/policy_to_reference"] != 0.0
    assert records[1]["kl/policy_to_reference_per_token"] == pytest.approx(
        records[1]["kl/policy_to_reference"] * 12 / sum(len(e.rollout.completion.token_ids) for e in examples(1))
    )


READS = {"kl_placement": "reward", "kl_coef": 1e-3}
"""GRPO with its KL in the reward: it reads the log-probs of the step's start, so `prepare` returns their metrics."""


def test_the_kl_is_of_all_rollouts_whatever_the_rule_selects(model_path: str):
    """Half of the examples left out: the same KL, but for the sampler's rounding, as with all of them trained on."""
    whole, half = build(model_path, update=READS), build(model_path, update=READS)
    train(whole)
    train(half)  # both off the reference, by the same step
    sampled = scored_by(whole, examples(1))

    wanted = whole.prepare(sampled, step=1)
    record = half.prepare(sampled[::2], sampled[1::2], step=1)

    assert wanted["kl/policy_to_reference"] != 0.0
    for key in ("kl/policy_to_reference", "kl/policy_to_reference_per_token"):
        assert record[key] == pytest.approx(wanted[key], rel=1e-4)
        assert half.prepare(sampled[::2], step=1)[key] != pytest.approx(wanted[key], rel=1e-2)


def scored_by(learner: Learner, found: list[Example]) -> list[Example]:
    """The examples with the log-probs that a sampler with the learner's weights would have told."""
    answers = learner.probe([Probe(token_ids=e.prompt.token_ids + e.rollout.completion.token_ids) for e in found])
    sampled = []
    for example, row in zip(found, answers, strict=True):
        logprobs = row[len(example.prompt.token_ids) - 1 :]
        completion = replace(example.rollout.completion, logprobs=logprobs)
        sampled.append(replace(example, rollout=replace(example.rollout, completion=completion)))
    return sampled


def test_a_reference_of_its_own_takes_the_place_of_the_start(model_path: str, tmp_path: Path):
    other = str(tiny_qwen3(tmp_path / "other", tied=False, seed=1))
    recipe = Recipe.model_validate(
        {
            "model": {"path": model_path},
            "data": {"source": "unused.jsonl"},
            "learner": {"track_reference_kl": True},
            "update": READS,
        }
    )
    to_other = Learner(LearnerSpec(recipe=recipe, model_path=model_path, reference_path=other))

    sampled = scored_by(to_other, examples())

    assert to_other.prepare(sampled, step=0)["kl/policy_to_reference"] != 0.0
    assert build(model_path, update=READS).prepare(sampled, step=0)["kl/policy_to_reference"] == 0.0


class FastHead(Heads):
    """Learns at five times the policy's rate."""

    reads = HeadInput.POLICY_HIDDEN
    lr_scale = 5.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_heads_may_learn_at_a_rate_of_their_own():
    policy, head = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    recipe = Recipe.model_validate({"model": {"path": "m"}, "data": {"source": "d.jsonl"}})

    optimizer = build_optimizer({"policy.w": policy, "heads.b": head}, recipe.learner, FastHead())

    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales == {id(policy): 1.0, id(head): 5.0}


def test_the_probe_is_what_transformers_computes(model_path: str):
    from transformers import AutoModelForCausalLM

    sequences = [(3, 4, 5, 6), (7, 8)]
    model = AutoModelForCausalLM.from_pretrained(model_path)

    probes = [Probe(token_ids=sequence) for sequence in sequences]
    for sequence, scores in zip(sequences, build(model_path).probe(probes), strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
        wanted = [float(logprobs[t, token]) for t, token in enumerate(sequence[1:])]
        assert scores == pytest.approx(wanted, abs=1e-5)


def test_several_epochs_and_minibatches_leave_the_start_and_start_clipping(model_path: str):
    learner = build(model_path, learner={"epochs": 3, "minibatches": 2, "lr": 3e-2})

    record = train(learner)[0]

    assert record["update/clip_fraction_low"] + record["update/clip_fraction_high"] > 0
    assert record["loss/total"] != 0.0


def test_lora_trains_only_its_adapters_and_publishes_them_merged(model_path: str):
    learner = build(model_path, model={"lora": {"rank": 2}})
    before, base = weights(learner), [p.clone() for n, p in learner.policy.named_parameters() if "lora" not in n]

    train(learner, steps=2)

    after = weights(learner)
    assert set(after) == set(weights(build(model_path)))
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all("proj" in name for name in changed)
    still = [p for n, p in learner.policy.named_parameters() if "lora" not in n]
    assert all(torch.equal(one, other) for one, other in zip(base, still, strict=True))


def test_lora_takes_the_policy_without_adapters_as_reference(model_path: str):
    full = build(model_path, update=READS)
    lora = build(model_path, model={"lora": {"rank": 2}}, update=READS)
    start = lora.prepare(examples(), step=0)["kl/policy_to_reference"]
    lora.step(0)
    moved = lora.prepare(examples(), step=0)

    assert start == 0.0
    assert moved["kl/policy_to_reference"] != 0.0
    assert full.prepare(examples(), step=0)["entropy/policy"] != moved["entropy/policy"]


def test_tied_embeddings_are_published_once(tmp_path: Path):
    tied = build(str(tiny_qwen3(tmp_path / "tied", tied=True, seed=0)))

    names = [name for name, _ in tied.policy.published()]

    assert len(names) == len(set(names))
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


@pytest.mark.parametrize("model", [{}, {"lora": {"rank": 2}}])
def test_a_restored_learner_goes_on_bit_for_bit(model_path: str, tmp_path: Path, model: dict):
    whole = build(model_path, model=model)
    train(whole)
    whole.save(tmp_path)
    whole.prepare(examples(7), step=0)
    record = whole.step(1)

    resumed = build(model_path, model=model)
    resumed.restore(tmp_path)
    resumed.prepare(examples(7), step=0)

    assert resumed.step(1) == record
    after, wanted = weights(resumed), weights(whole)
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


def test_the_saved_policy_loads_in_transformers(model_path: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    learner = build(model_path, model={"lora": {"rank": 2}})
    train(learner)
    learner.save(tmp_path)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()

    assert all(torch.equal(loaded[name], tensor) for name, tensor in learner.policy.published())


def test_another_models_state_is_refused(model_path: str, tmp_path: Path):
    build(model_path).save(tmp_path)

    with pytest.raises(CheckpointError, match="holds other parameters than this recipe trains"):
        build(model_path, model={"lora": {"rank": 2}}).restore(tmp_path)


def test_a_gradient_that_is_not_finite_stops_before_the_weights(model_path: str):
    learner = build(model_path)
    before = weights(learner)
    learner.prepare(examples(reward_scale=float("nan")), step=0)

    with pytest.raises(LearnerError, match=r"the gradient is not finite .* policy\.model"):
        learner.step(0)

    after = weights(learner)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_nothing_selected_is_a_step_that_does_nothing(model_path: str):
    learner = build(model_path)
    before = weights(learner)

    assert learner.prepare([], step=0) == {}
    assert learner.step(0) == {"optim/skipped": 1.0, "optim/lr": 0.0, "optim/grad_norm": 0.0}
    assert not learner.moved
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.policy.published())


def test_a_cosine_ends_at_its_end_though_groups_were_dropped(model_path: str):
    """Two of four groups are left in each step, so two of four minibatches; the third step has none at all."""
    settings = {"lr": 1.0, "schedule": "cosine", "minibatches": 4}
    learner = build(model_path, steps=4, learner=settings)
    whole = build(model_path, steps=4, learner=settings)
    rates = []
    for step in range(4):
        left = [] if step == 2 else [example for example in examples(step) if example.group < 2]
        learner.prepare(left, step=step)
        whole.prepare(examples(step), step=step)
        rates.append((learner.step(step)["optim/lr"], whole.step(step)["optim/lr"]))

    assert [rate for rate, _ in rates] == [rates[0][1], rates[1][1], 0.0, 0.0]
    assert rates[-1] == (0.0, 0.0)


def test_left_out_rollouts_without_tokens_are_no_sequences_of_the_kl(model_path: str):
    learner = build(model_path, update=READS)
    train(learner)
    sampled = scored_by(learner, examples(1))
    empty = Completion(token_ids=(), logprobs=(), finish_reason="length")
    empties = [replace(e, rollout=replace(e.rollout, completion=empty)) for e in sampled[:3]]

    alone = learner.prepare(sampled, step=1)
    beside = learner.prepare(sampled, empties, step=1)

    for key in ("kl/policy_to_reference", "kl/policy_to_reference_per_token"):
        assert alone[key] != 0.0
        assert beside[key] == alone[key]
    assert learner.prepare(empties, sampled, step=1)["kl/policy_to_reference"] == pytest.approx(
        alone["kl/policy_to_reference"], rel=1e-4
    )


@contextmanager
def losses_that_end(learner: Learner, monkeypatch: pytest.MonkeyPatch, *, after: int) -> Iterator[None]:
    """While entered, the rule's loss raises `IndexError` once it has been asked for so many times."""
    left = [learner._update.loss] * after
    with monkeypatch.context() as failing:
        failing.setattr(learner._update, "loss", lambda *arguments: left.pop()(*arguments))
        yield


def test_an_error_in_the_third_optimizer_step_undoes_the_first_two(model_path: str, monkeypatch: pytest.MonkeyPatch):
    """After it the learner goes on as if the failed step had never been tried."""
    sections = {"learner": {"epochs": 2, "minibatches": 2}, "update": {"rule": "ppo", "kl_target": 1e-3}}
    learner, untroubled = build(model_path, **deepcopy(sections)), build(model_path, **deepcopy(sections))
    for one in (learner, untroubled):
        train(one)
        one.moved = False
    learner.prepare(examples(5), step=1)
    with losses_that_end(learner, monkeypatch, after=2), pytest.raises(IndexError):
        learner.step(1)

    assert learner.finished_steps == 1
    assert not learner.moved
    assert all(torch.equal(tensor, weights(untroubled)[name]) for name, tensor in weights(learner).items())
    records = [one.prepare(examples(1), step=1) | one.step(1) for one in (learner, untroubled)]
    assert records[0] == records[1]
    assert all(torch.equal(tensor, weights(untroubled)[name]) for name, tensor in weights(learner).items())


def test_an_error_in_the_very_first_step_leaves_no_optimizer_state(model_path: str, monkeypatch: pytest.MonkeyPatch):
    learner, untroubled = (build(model_path, learner={"minibatches": 2}) for _ in range(2))
    with losses_that_end(learner, monkeypatch, after=1), pytest.raises(IndexError):
        train(learner)

    assert train(learner) == train(untroubled)
    assert all(torch.equal(tensor, weights(untroubled)[name]) for name, tensor in weights(learner).items())


def test_bfloat16_computes_close_to_float32_with_the_bits_that_it_publishes(model_path: str):
    low = build(model_path, model={"dtype": "bfloat16"})

    entropy = train(low)[0]["entropy/policy"]

    assert entropy == pytest.approx(train(build(model_path))[0]["entropy/policy"], rel=1e-2)
    held = low.policy.model.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in low.policy.published())
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}


def test_bfloat16_trains_by_float32_copies(model_path: str, tmp_path: Path):
    """Steps that bfloat16 is too coarse for add up, also across a resume."""
    small = {"model": {"dtype": "bfloat16"}, "learner": {"lr": 1e-5}}
    learner, resumed = build(model_path, **small), build(model_path, **small)
    start = {name: p.detach().clone() for name, p in learner._optimization.trained.items()}
    train(learner, steps=2)
    learner.save(tmp_path)
    resumed.restore(tmp_path)

    assert train(learner, steps=2) == train(resumed, steps=2)
    after = resumed._optimization.trained
    moved = {name: (p - start[name]).abs().max() for name, p in after.items()}
    assert all(1e-5 < way < 1e-4 for way in moved.values()), "4 steps of 1e-5"
    assert all(torch.equal(p, learner._optimization.trained[name]) for name, p in after.items())
    held = dict(resumed.policy.named_parameters())
    assert all(torch.equal(p.bfloat16(), held[name.removeprefix("policy.")]) for name, p in after.items())


def test_gradient_checkpointing_changes_memory_not_numbers(model_path: str):
    plain, saving = build(model_path), build(model_path, model={"gradient_checkpointing": True})

    assert train(plain) == train(saving)
    after = weights(saving)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(plain).items())


def test_a_learner_that_rests_between_steps_holds_no_gradient_and_learns_the_same(model_path: str):
    resting, busy = build(model_path), build(model_path)
    for step in range(3):
        records = [learner.prepare(examples(), step=step) | learner.step(step) for learner in (resting, busy)]
        assert records[0] == records[1]
        resting.rest()
        assert all(parameter.grad is None for parameter in resting.policy.parameters())
        assert any(parameter.grad is not None for parameter in busy.policy.parameters())
    assert all(torch.equal(tensor, weights(busy)[name]) for name, tensor in weights(resting).items())
