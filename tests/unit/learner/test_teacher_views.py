"""Samples compared with a teacher: against the logits of both models, however it is cut, and on two ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkl.errors import MissingSignalError, NumericalFault
from rlkl.functional.kl import exact_kl
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.ranks import Ranks
from rlkl.learner.teacher_views import teacher_views
from rlkl.types import Completion, Example, TeacherView
from rlkl.updates.base import SampleCorrection
from rlkl.updates.distill.rule import Distill
from tests.models import tiny_qwen2_5_vl, tiny_qwen3
from tests.pictures import processor_of
from tests.ranks import join, run_processes
from tests.unit.learner.test_distill_in_learner import logprobs
from tests.unit.learner.test_learner import examples, recipe_for
from tests.unit.learner.test_seeing_learner import examples as seeing_examples


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


def make_models(folder: Path) -> dict[str, str]:
    return {
        name: str(tiny_qwen3(folder / name, tied=False, seed=seed)) for seed, name in enumerate(("policy", "teacher"))
    }


def build(
    paths: Mapping[str, str], ranks: Ranks | None = None, *, update: Mapping[str, Any] | None = None, **sections: Any
) -> Learner:
    recipe = recipe_for(
        paths["policy"],
        update={"rule": "distill", "corrections": 1, **(update or {})},
        models={"teacher": {"path": paths["teacher"]}},
        **sections,
    )
    spec = LearnerSpec(recipe=recipe, model_path=paths["policy"], frozen_paths={"teacher": paths["teacher"]})
    return Learner(spec, ranks)


def assert_same(found: list[TeacherView], wanted: list[TeacherView]) -> None:
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.nats == pytest.approx(theirs.nats, rel=1e-3, abs=1e-5)
        assert ours.logprobs == pytest.approx(theirs.logprobs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("direction", ["policy_to_model", "model_to_policy"])
def test_views_are_those_of_the_logits_of_both_models(paths: dict[str, str], direction: str):
    learner = build(paths, update={"direction": direction}, rollout={"temperature": 0.7})
    found = teacher_views(learner.preparer, examples())
    for example, view in zip(examples(), found, strict=True):
        completion = example.rollout.completion.token_ids
        ids_BT = torch.tensor([example.prompt.token_ids + completion])
        own, teachers = (logprobs(paths[name], ids_BT, 0.7)[0, -len(completion) :] for name in ("policy", "teacher"))
        sides = (own, teachers) if direction == "policy_to_model" else (teachers, own)
        top_T = teachers.argmax(dim=-1)
        assert view.token_ids == tuple(top_T.tolist())
        assert view.nats == pytest.approx(exact_kl(*sides).tolist(), rel=1e-3, abs=1e-5)
        assert view.logprobs == pytest.approx(own.gather(-1, top_T[:, None])[:, 0].tolist(), abs=1e-4)


@pytest.mark.parametrize("learner", [{"micro_batch_tokens": 1}, {"micro_batch_tokens": 24}, {"logits_chunk_tokens": 3}])
def test_the_cut_and_the_order_change_nothing(paths: dict[str, str], learner: dict[str, int]):
    whole = teacher_views(build(paths).preparer, examples())
    assert_same(teacher_views(build(paths, learner=learner).preparer, examples()), whole)
    assert_same(teacher_views(build(paths).preparer, examples()[::-1]), whole[::-1])


def test_comparing_trains_nothing_and_changes_no_later_step(paths: dict[str, str]):
    plain, compared = build(paths), build(paths)
    teacher_views(compared.preparer, examples(5))
    for learner in (plain, compared):
        learner.prepare(examples(), step=0)
    assert plain.step(0) == compared.step(0)
    first, second = (teacher_views(one.preparer, examples(5)) for one in (plain, compared))
    assert first == second
    assert first != teacher_views(build(paths).preparer, examples(5))  # with the weights as they are now


def test_empty_completions_have_empty_views(paths: dict[str, str]):
    empty = Completion(token_ids=(), logprobs=(), finish_reason="length")
    found = [replace(e, rollout=replace(e.rollout, completion=empty)) for e in examples()[:3]]
    assert teacher_views(build(paths).preparer, found) == [TeacherView(nats=(), token_ids=(), logprobs=())] * 3


def test_a_policy_with_fresh_adapters_is_the_model_that_it_started_from(paths: dict[str, str]):
    """So a teacher with its weights agrees with it to the last bit, at every token."""
    learner = build({**paths, "teacher": paths["policy"]}, model={"lora": {"rank": 2}})
    assert all(view.nats == (0.0,) * len(view.nats) for view in teacher_views(learner.preparer, examples()))


def test_pictures_are_seen_by_both_models(tmp_path: Path):
    seeing = {name: str(tiny_qwen2_5_vl(tmp_path / name, seed=n)) for n, name in enumerate(("policy", "teacher"))}
    found = seeing_examples(processor_of(seeing["policy"]))
    learner = build(seeing)
    together = teacher_views(learner.preparer, found)
    assert_same(together, [teacher_views(learner.preparer, [one])[0] for one in found])
    assert min(min(view.nats) for view in together) > 0


def test_a_teacher_that_no_signal_names_and_a_number_that_is_not_finite_are_errors(paths: dict[str, str]):
    learner = build(paths)

    class Other(Distill):
        sample_correction = SampleCorrection(teacher="other", rounds=1)  # pyright: ignore

    other = replace(learner.preparer, update=Other(learner.preparer.update.settings))
    with pytest.raises(MissingSignalError, match="names this model as the teacher: a signal among its needs"):
        teacher_views(other, examples())
    with torch.no_grad():
        next(learner.policy.parameters()).fill_(float("nan"))
    with pytest.raises(NumericalFault, match="the policy and the model teacher on a sample is not finite"):
        teacher_views(learner.preparer, examples())


def test_two_ranks_return_what_one_returns(tmp_path: Path):
    run_processes(be_a_rank, 2, tmp_path, make_models(tmp_path))


def be_a_rank(number: int, folder: Path, paths: dict[str, str]) -> None:
    cut: dict[str, Any] = {"learner": {"micro_batch_tokens": 24}}
    found = teacher_views(build(paths, join(folder, "views", number, 2), **cut).preparer, examples())
    assert_same(found, teacher_views(build(paths, **cut).preparer, examples()))


def uncorrected(found: list[Example]) -> list[Example]:
    return [
        replace(e, rollout=replace(e.rollout, completion=replace(e.rollout.completion, corrections=()))) for e in found
    ]


def corrected_examples() -> list[Example]:
    """Every second completion with the teacher's token in its middle."""

    def with_one(example: Example) -> Example:
        middle = len(example.rollout.completion.token_ids) // 2
        completion = replace(example.rollout.completion, corrections=((middle, 0.3),))
        return replace(example, rollout=replace(example.rollout, completion=completion))

    return [with_one(one) if number % 2 else one for number, one in enumerate(examples())]


def test_the_teachers_token_is_trained_on_and_is_no_sample(paths: dict[str, str]):
    """The loss is that of the tokens, whoever chose them; the KL to the reference is over the policy's own ones."""
    marked, plain = build(paths), build(paths)
    for learner in (marked, plain):  # away from the reference
        learner.prepare(examples(7), step=0)
        learner.step(0)
    records = [
        learner.prepare(found, step=1) | learner.step(1)
        for learner, found in ((marked, corrected_examples()), (plain, uncorrected(corrected_examples())))
    ]
    for key in ("loss/distill", "optim/grad_norm", "distill/kl"):
        assert records[0][key] == records[1][key]
    assert records[0]["kl/policy_to_reference"] != records[1]["kl/policy_to_reference"]
    columns = marked.token_columns()["provenance"]
    for example, row in zip(corrected_examples(), columns, strict=True):
        size = len(example.rollout.completion.token_ids)
        assert row == (example.rollout.completion.provenance or (0,) * size)
    assert plain.token_columns()["provenance"] == [(0.0,) * len(row) for row in columns]
    assert "provenance" not in build_without(paths)


def build_without(paths: dict[str, str]) -> dict[str, Any]:
    learner = build(paths, update={"corrections": 0})
    learner.prepare(examples(), step=0)
    learner.step(0)
    return learner.token_columns()
