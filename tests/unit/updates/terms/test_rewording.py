"""The term ``rewording``: the same response after another wording of its prompt."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkl.batch import Batch
from rlkl.commands.plan_work import most_tokens, work_of
from rlkl.costs.find import find_shape
from rlkl.data.packing import minibatches, pack
from rlkl.data.prompts import check_prompts, load_prompts
from rlkl.data.rows import Encoder
from rlkl.errors import DataError, RecipeError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import DataSection
from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.signals import Signal, Signals
from rlkl.tasks import task_rows
from rlkl.tasks.characters import character_tokenizer
from rlkl.training.faults import read_fault, write_fault
from rlkl.types import Completion, Example, Prompt, Rollout, Selection
from rlkl.updates.grpo.settings import GrpoSettings
from rlkl.updates.superhf.settings import SuperHfSettings
from rlkl.updates.terms.rewording.settings import RewordingSettings
from rlkl.updates.terms.rewording.term import Rewording
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import recipe_for
from tests.unit.updates.terms.test_checks import FACTS

TERM: dict[str, Any] = {"term": "rewording", "column": "other", "coef": 0.5}


def example(group: int, sample: int = 0, *, logprobs: tuple[float, ...] | None = (-1.0, -2.0)) -> Example:
    prompt = Prompt(id=f"row-{group}", text="", token_ids=(2 + group, 3), wordings={"other": (3, 4, 2 + group)})
    completion = Completion(token_ids=(5 + sample, 6 + group), logprobs=logprobs, finish_reason="stop")
    rollout = Rollout(
        sample_index=sample, completion=completion, reward=float(sample), components={}, weights_version=0
    )
    return Example(prompt=prompt, rollout=rollout, group=group, weight=1.0 + group)


def batch_of(examples: list[Example]) -> Batch:
    term = Rewording(RewordingSettings.model_validate(TERM))
    return pack([*examples, *term.viewed(examples, 1 + max(e.group for e in examples))], completion_limit=8)


def test_each_sampled_response_comes_again_after_the_other_wording():
    examples = [example(0), example(0, 1), example(1), example(1, 1, logprobs=None)]
    replayed = replace(example(2), role="replay")
    found = Rewording(RewordingSettings.model_validate(TERM)).viewed([*examples, replayed], 3)
    assert [one.rollout for one in found] == [one.rollout for one in examples[:3]], "not the stored answer"
    assert [one.prompt.token_ids for one in found] == [(3, 4, 2), (3, 4, 2), (3, 4, 3)]
    assert [one.group for one in found] == [3, 3, 4]
    assert [one.weight for one in found] == [1.0, 1.0, 2.0]
    assert {one.role for one in found} == {"view"}


def test_the_number_by_hand():
    term = Rewording(RewordingSettings.model_validate(TERM))
    batch = batch_of([example(0), example(1)])
    assert batch.denominators.tokens == 4
    assert batch.denominators.of("view").tokens == 4
    other_BT = torch.zeros(4, 5)
    other_BT[2, 3:] = torch.tensor([-1.5, -2.0])  # the sampler gave -1 and -2 after the prompt itself
    other_BT[3, 3:] = torch.tensor([-1.0, -1.0])
    signals = Signals({Signal.POLICY_LOGPROBS: other_BT.requires_grad_()})
    nats = (math.exp(-0.5) - 1 + 0.5 + 2.0 * (math.exp(1.0) - 1 - 1.0)) / 4  # the second has the weight 2
    loss = term.loss(batch.only("view"), signals)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * nats)
    assert float(term.metrics(batch.only("view"), signals)["nats"]) == pytest.approx(nats)
    gradient_BT = other_BT.grad
    assert gradient_BT is not None
    wanted = 0.5 / 4 * torch.tensor([math.exp(-0.5) - 1, 0.0, 0.0, 2 * (math.exp(1.0) - 1)])
    torch.testing.assert_close(gradient_BT[2:, 3:].flatten(), wanted)
    assert not gradient_BT[:2].any(), "the rule's own sequences get none"


def test_its_expected_gradient_is_that_of_the_kl():
    own_V = torch.tensor([0.5, 0.3, 0.2]).log()
    logits_V = torch.tensor([0.3, -0.4, 0.9], requires_grad=True)
    other_V = logits_V.log_softmax(-1)
    (wanted,) = torch.autograd.grad((own_V.exp() * (own_V - other_V)).sum(), logits_V, retain_graph=True)
    log_ratio_V = other_V - own_V
    expected = (own_V.exp() * (log_ratio_V.exp() - 1 - log_ratio_V)).sum()
    (found,) = torch.autograd.grad(expected, logits_V)
    torch.testing.assert_close(found, wanted)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("models") / "policy", tied=True, seed=0))


def learn(path: str, terms: list[dict[str, Any]], examples: list[Example], **learner: Any) -> dict[str, float]:
    recipe = recipe_for(path, update={"rule": "grpo", "terms": terms}, learner={"track_reference_kl": False, **learner})
    made = Learner(LearnerSpec(recipe=recipe, model_path=path))
    return made.prepare(examples, step=0) | made.step(0)


def test_in_a_learner_it_is_the_k3_of_the_policy_after_the_other_wording(path: str):
    examples = [example(group, sample) for group in range(2) for sample in range(3)]
    found, plain = learn(path, [TERM], examples), learn(path, [], examples)
    policy = Learner(LearnerSpec(recipe=recipe_for(path), model_path=path)).policy
    nats = 0.0
    for one in examples:
        ids = (*one.prompt.wordings["other"], *one.rollout.completion.token_ids)
        with torch.no_grad():
            logprobs_TV = policy.head(policy.hidden(torch.tensor([ids])))[0].float().log_softmax(-1)
        for place, (token, own) in enumerate(zip(ids[3:], (-1.0, -2.0), strict=True)):
            log_ratio = float(logprobs_TV[2 + place, token]) - own
            nats += one.weight * (math.exp(log_ratio) - 1 - log_ratio) / 12
    assert found["term/rewording_nats"] == pytest.approx(nats, rel=1e-4)
    assert found["loss/rewording"] == pytest.approx(0.5 * nats, rel=1e-4)
    assert found["optim/grad_norm"] != pytest.approx(plain["optim/grad_norm"], rel=1e-3)
    for key in ("loss/policy", "policy/entropy", "term/sequences"):
        if key in plain:
            assert found[key] == pytest.approx(plain[key], rel=1e-4, abs=1e-6), f"{key}: the rule does not see them"


def test_it_depends_on_no_cut_into_micro_batches(path: str):
    examples = [example(group, sample) for group in range(2) for sample in range(3)]
    whole, cut = (learn(path, [TERM], examples, micro_batch_tokens=size) for size in (4096, 8))
    for key in ("loss/rewording", "loss/total", "optim/grad_norm"):
        assert cut[key] == pytest.approx(whole[key], rel=1e-3, abs=1e-6)


def test_each_optimizer_step_gets_its_share():
    batch = batch_of([example(group, sample) for group in range(4) for sample in range(2)])
    for rows_B in minibatches(batch, 2, seed=0, step=0, epoch=0):
        assert batch.role_B[rows_B].bincount().tolist() == [4, 0, 4]


def write(folder: Path, rows: list[dict[str, Any]]) -> DataSection:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSection(source=str(folder / "rows.jsonl"), max_prompt_tokens=5, max_bad_fraction=0.8)


ENCODER = Encoder(tokenizer=character_tokenizer(), wordings={"update.terms[0].column": "other"})


def test_wordings_are_encoded_as_the_prompt_is_and_bad_ones_left_out(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"prompt": "2+3=", "other": "3+2="},
        {"prompt": "2+4="},
        {"prompt": "2+5=", "other": " "},
        {"prompt": "2+6=", "other": "10+10="},
    ]
    source = load_prompts(write(tmp_path, rows), ENCODER, seed=0)
    (prompt,) = source.prompts
    assert prompt.wordings == {"other": tuple(character_tokenizer().encode("3+2="))}
    assert (source.report.malformed, source.report.empty, source.report.too_long) == (1, 1, 1)
    again = load_prompts(write(tmp_path, [{"prompt": "2+3=", "other": "3+2 ="}]), ENCODER, seed=0)
    assert again.fingerprint != source.fingerprint


def test_a_column_that_is_not_there_is_refused(tmp_path: Path):
    section = write(tmp_path, [{"prompt": "2+3=", "othr": "3+2="}])
    with pytest.raises(DataError, match=r"update\.terms\[0\]\.column = 'other' is not a column .*othr"):
        load_prompts(section, ENCODER, seed=0)
    with pytest.raises(DataError, match=r"update\.terms\[0\]\.column = 'other' is not a column"):
        check_prompts(section, ENCODER.wordings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["update.terms=[{term: rewording}]"], "column is not set: name the column"),
        (
            ["update.terms=[{term: rewording, column: a}, {term: rewording, column: b}]"],
            r"update\.terms\[0\] and update\.terms\[1\] both add another wording",
        ),
        (
            [
                "update.rule=sparsepo",
                "rollout.workers=0",
                "data.chosen_column=c",
                "data.rejected_column=r",
                "update.terms=[{term: rewording, column: a}]",
            ],
            r"with data\.chosen_column nothing is sampled",
        ),
    ],
)
def test_recipes_that_it_does_not_fit_are_refused(words: list[str], message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", *words)


def test_picked_completions_are_warned_of():
    settings = RewordingSettings.model_validate(TERM)
    assert list(settings.warnings(FACTS, GrpoSettings())) == []
    (warning,) = settings.warnings(FACTS, SuperHfSettings())
    assert "picked by their rewards, so the estimate is biased" in warning


def test_the_settings_are_read_back_from_the_recipe_of_a_run(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("arithmetic_rewording")))
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again.update.wording_columns == {"update.terms[0].column": "wording"}


def test_the_plan_counts_added_sequences(path: str):
    shape = find_shape(path)[0]
    plain, reworded, replaying = (
        load_recipe("quickstart", "learner.track_reference_kl=false", "learner.micro_batch_tokens=1000000", *words)
        for words in (
            [],
            ["update.terms=[{term: rewording, column: a}]"],
            ["update.terms=[{term: replay, states: s, sequences: 512}]"],
        )
    )
    once, twice, half_more = (work_of(one, shape).learner for one in (plain, reworded, replaying))
    assert twice == pytest.approx(2 * once)
    assert once < half_more <= 2 * once
    assert most_tokens(reworded) == 2 * most_tokens(plain)


def test_the_rows_of_the_world_name_both_wordings():
    rows = task_rows("arithmetic/ascending")
    assert {"id": "2+3", "prompt": "2+3=", "wording": "3+2=", "answer": "5"} in rows
    parts = [{row["prompt"] for row in task_rows(f"arithmetic/ascending/{part}")} for part in ("train", "test")]
    assert parts[0]
    assert parts[1]
    assert not parts[0] & parts[1]
    exchanged = task_rows("arithmetic/exchanged")
    assert {row["wording"] for row in exchanged} == parts[1]
    others = {row["wording"] for row in rows}
    assert not others & {row["prompt"] for row in rows}


def test_a_kept_fault_has_the_wordings_of_its_prompts(tmp_path: Path):
    kept = [example(0), example(1, 1)]
    selection = Selection(groups=[], examples=kept, left_out=[], metrics={})
    write_fault(tmp_path, selection, step=2, message="lost")
    read = read_fault(tmp_path).examples
    assert [one.prompt.wordings for one in read] == [one.prompt.wordings for one in kept]
    term = Rewording(RewordingSettings.model_validate(TERM))
    assert [one.prompt.token_ids for one in term.viewed(read, 2)] == [
        one.prompt.token_ids for one in term.viewed(kept, 2)
    ]
