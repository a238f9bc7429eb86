"""Correcting samples: places by hand, a scripted teacher, real models in one process, and runs that are killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rlkl.data.packing import pack
from rlkl.errors import RecipeError, RolloutError
from rlkl.rollout.collect import Draw, build_requests
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.hf_engine import HfEngine
from rlkl.rollout.stopping import StopWatch, decode
from rlkl.tasks.characters import EOS_ID, character_tokenizer
from rlkl.training.correcting import (
    Corrector,
    WorstError,
    build_corrector,
    corrected,
    correction_metrics,
    worst_error,
)
from rlkl.types import Completion, Example, Prompt, Rollout, RolloutGroup, TeacherView
from rlkl.updates import build_update
from rlkl.updates.base import SampleCorrection
from tests.hands_in_process import HandsInProcess
from tests.models import tiny_qwen3
from tests.scheduled import DIGITS, NO_DELAYS, build, hands_of, killed_and_resumed
from tests.unit.learner.test_distill_in_learner import learner_with

STOP, LIMIT = 1, 6


def sampled(*token_ids: int, reason: Any = "stop", **more: Any) -> Completion:
    return Completion(
        token_ids=token_ids, logprobs=tuple(-0.1 * n for n in range(len(token_ids))), finish_reason=reason, **more
    )


def view(nats: Sequence[float], token_ids: Sequence[int]) -> TeacherView:
    return TeacherView(nats=tuple(nats), token_ids=tuple(token_ids), logprobs=(-3.0,) * len(token_ids))


@pytest.mark.parametrize(
    ("own", "nats", "teachers", "place"),
    [
        ((5, 6, 7), (0.9, 0.1, 0.4), (5, 8, 8), 2),  # the largest KL is where both agree
        ((5, 6, 7), (0.4, 0.1, 0.4), (8, 8, 8), 0),  # of equal ones the first
        ((5, 6, 7), (0.9, 0.8, 0.7), (5, 6, 7), None),
        ((5, 6, 7), (0.0, 1e-8, 0.0), (8, 8, 8), None),  # equal models, another token drawn
        ((), (), (), None),
    ],
)
def test_the_worst_error_is_the_largest_kl_where_the_tokens_differ(own, nats, teachers, place):
    error = worst_error(own, view(nats, teachers))
    assert (None if error is None else error.number) == place


def test_a_corrected_completion_ends_with_the_teachers_token_and_keeps_what_is_before():
    before = sampled(5, 6, 7, 8, corrections=((1, 0.3), (3, 0.2)))
    after = corrected(before, WorstError(number=2, nats=0.7, token_id=9, logprob=-3.0))
    assert (after.token_ids, after.logprobs) == ((5, 6, 9), (-0.0, -0.1, -3.0))
    assert after.corrections == ((1, 0.3), (2, 0.7))
    assert after.provenance == (0, 1, 1)


def test_provenance_by_hand():
    assert sampled(5, 6, 7).provenance == ()
    assert sampled(5, 6, 7, 8, 9, corrections=((1, 0.3), (3, 0.2))).provenance == (0, 1, 2, 1, 2)
    assert sampled(5, corrections=((0, 0.3),)).provenance == (1,)


def test_the_batch_holds_the_origins_and_knows_the_teachers_tokens():
    plain, marked = sampled(5, 6), sampled(5, 6, 7, corrections=((1, 0.3),))
    batch = pack([example(plain, 0), example(marked, 1)], completion_limit=LIMIT)
    assert batch.provenance_BT is not None
    assert batch.provenance_BT.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 2]]
    assert batch.uncorrected_BT.tolist() == [[False, False, True, True, False], [False, False, True, False, True]]
    second = batch.rows(batch.group_B[1:]).provenance_BT
    assert second is not None
    assert second.tolist() == [[0, 0, 0, 1, 2]]
    untouched = pack([example(plain, 0)], completion_limit=LIMIT)
    assert untouched.provenance_BT is None
    assert untouched.uncorrected_BT is untouched.response_BT


def example(completion: Completion, group: int) -> Example:
    prompt = Prompt(id=str(group), text="", token_ids=(3, 4))
    return Example(prompt=prompt, rollout=rollout(completion), group=group)


def rollout(completion: Completion) -> Rollout:
    return Rollout(sample_index=0, completion=completion, reward=0.0, components={}, weights_version=0)


@dataclass
class Scripted:
    """An engine that gives the next of its completions to each request, and a teacher with a list of views."""

    completions: list[list[Completion]]
    views: list[list[TeacherView]]
    requests: list[list[Request]] = field(default_factory=list)
    compared: list[list[Example]] = field(default_factory=list)

    def submit(self, requests: Sequence[Request]) -> None:
        self.requests.append(list(requests))

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        done = self.completions[len(self.requests) - 1]
        assert len(done) == len(self.requests[-1])
        yield list(reversed(list(enumerate(done))))

    def teacher_views(self, examples: Sequence[Example]) -> list[TeacherView]:
        self.compared.append(list(examples))
        return self.views[len(self.compared) - 1]


def corrector(hands: Any, rounds: int = 1, *, samples: int = 1, stop: Sequence[str] = ()) -> Corrector:
    return Corrector(
        correction=SampleCorrection(teacher="teacher", rounds=rounds),
        sampler=hands,
        learner=hands,
        seed=0,
        samples=samples,
        limit=LIMIT,
        stop_token_ids=(STOP,),
        watch=StopWatch(character_tokenizer(), stop) if stop else None,
    )


def run_scripted(hands: Scripted, rounds: int = 1, **more: Any) -> list[Completion]:
    prompts = [Prompt(id=str(n), text="", token_ids=(3, 4 + n)) for n in range(len(hands.completions[0]))]
    draws = [Draw(prompt=prompt, position=10 + n) for n, prompt in enumerate(prompts)]
    return corrector(hands, rounds, **more).sample(build_requests(draws, samples=1, seed=0), draws)


def test_only_wrong_samples_are_continued_from_the_teachers_token():
    hands = Scripted(
        completions=[[sampled(5, 6, 7, STOP), sampled(8, STOP)], [sampled(9, STOP)]],
        views=[[view((0.1, 0.5, 0.2, 0.0), (5, 8, 8, 1)), view((0.3, 0.3), (8, STOP))]],
    )
    first, second = run_scripted(hands)

    assert first.token_ids == (5, 8, 9, STOP)
    assert first.logprobs == (-0.0, -3.0, -0.0, -0.1)
    assert first.provenance == (0, 1, 2, 2)
    assert (first.corrections, first.finish_reason) == (((1, 0.5),), "stop")
    assert second == sampled(8, STOP)
    (again,) = hands.requests[1]
    assert (again.prompt_token_ids, again.begun, again.begun_ids) == ((3, 4, 5, 8), 2, (5, 8))
    assert again.max_new_tokens == LIMIT - 2
    assert again.seed not in {request.seed for request in hands.requests[0]}
    assert [e.rollout.completion.logprobs for e in hands.compared[0]] == [None, None]


def test_a_second_round_looks_again_at_corrected_samples_only():
    hands = Scripted(
        completions=[[sampled(5, 6, 7, STOP), sampled(8, STOP)], [sampled(9, STOP)], [sampled(STOP)]],
        views=[
            [view((0.1, 0.5, 0.2, 0.0), (5, 8, 8, 1)), view((0.3, 0.3), (8, STOP))],
            [view((0.1, 0.5, 0.4, 0.3), (5, 8, 7, STOP))],
        ],
    )
    first, second = run_scripted(hands, rounds=2)
    assert first.token_ids == (5, 8, 7, STOP)
    assert first.corrections == ((1, 0.5), (2, 0.4))
    assert first.provenance == (0, 1, 1, 2)
    assert not second.corrections
    assert [len(one) for one in hands.compared] == [2, 1]
    assert hands.requests[1][0].seed != hands.requests[2][0].seed


def test_rounds_end_when_nothing_is_wrong_any_more():
    hands = Scripted(
        completions=[[sampled(5, 6)], [sampled(STOP)]],
        views=[[view((0.5, 0.1), (7, 7))], [view((0.5, 0.1), (7, STOP))]],
    )
    (one,) = run_scripted(hands, rounds=8)
    assert one.token_ids == (7, STOP)
    assert len(hands.compared) == 2


def test_a_token_that_ends_the_completion_needs_no_second_request():
    hands = Scripted(
        completions=[[sampled(5, 6, 7), sampled(5, 6, 7, 8, 9, 10, reason="length")]],
        views=[[view((0.1, 0.5, 0.2), (5, STOP, 8)), view((0.0,) * 5 + (0.9,), (5, 6, 7, 8, 9, 7))]],
    )
    ended, full = run_scripted(hands)
    assert (ended.token_ids, ended.finish_reason, ended.provenance) == ((5, STOP), "stop", (0, 1))
    assert (full.token_ids, full.finish_reason) == ((5, 6, 7, 8, 9, 7), "length")
    assert len(hands.requests) == 1


def test_a_stop_text_that_the_teachers_token_completes_ends_the_completion():
    one, two = character_tokenizer().encode("1"), character_tokenizer().encode("2")
    ids = (*one, *one, *one)
    hands = Scripted(
        completions=[[sampled(*ids, reason="length")]], views=[[view((0.1, 0.5, 0.2), (*one, *two, *one))]]
    )
    (completion,) = run_scripted(hands, stop=["12"])
    assert (completion.token_ids, completion.finish_reason) == ((*one, *two), "stop")


def test_an_engine_that_ignores_the_limit_is_named():
    hands = Scripted(completions=[[sampled(5, 6)], [sampled(7, 7, 7, 7, 7, 7)]], views=[[view((0.1, 0.5), (5, 8))]])
    with pytest.raises(RolloutError, match=r"continued a completion of 2 tokens to 8.* it ignores"):
        run_scripted(hands)


def test_metrics_by_hand():
    completions = [
        sampled(5, 6, 7, 8, corrections=((1, 0.3),)),
        sampled(5),
        sampled(),
        sampled(7, corrections=((0, 0.5),)),
    ]
    groups = [RolloutGroup(prompt=Prompt(id="p", text="", token_ids=(3,)), rollouts=tuple(map(rollout, completions)))]
    assert correction_metrics(groups) == pytest.approx(
        {
            "rollout/corrected_fraction": 0.5,
            "rollout/teacher_token_fraction": 2 / 6,
            "rollout/regenerated_token_fraction": 2 / 6,
            "rollout/correction_place": (0.25 + 0.0) / 2,
            "rollout/correction_kl": 0.4,
        }
    )
    untouched = [RolloutGroup(prompt=groups[0].prompt, rollouts=(rollout(sampled(5)),))]
    assert correction_metrics(untouched) == dict.fromkeys(
        (f"rollout/{name}" for name in ("corrected_fraction", "teacher_token_fraction", "regenerated_token_fraction")),
        0.0,
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: str(tiny_qwen3(folder / name, tied=False, seed=seed)) for seed, name in enumerate(("policy", "teacher"))
    }


def sample_with(
    paths: dict[str, str], rounds: int, *, stop: tuple[str, ...] = (), parts: int = 1
) -> tuple[list[Completion], HandsInProcess]:
    """Correct twelve completions of real models; ``parts``: in so many calls."""
    learner = learner_with(paths, {"corrections": rounds}, track_reference_kl=False)
    engine = HfEngine(
        EngineSettings(
            model_path=paths["policy"],
            dtype="float32",
            max_prompt_tokens=8,
            max_new_tokens=LIMIT,
            temperature=1.0,
            stop_token_ids=(EOS_ID,),
            memory_fraction=0.5,
            kv_cache_gib=1,
            stop=stop,
        )
    )
    hands = HandsInProcess(learner, engine)
    recipe = learner.preparer.recipe
    rollouts = recipe.rollout.model_copy(update={"max_new_tokens": LIMIT, "samples_per_prompt": 3, "stop": list(stop)})
    recipe = recipe.model_copy(update={"rollout": rollouts})
    made = build_corrector(recipe, build_update(recipe.update), hands, character_tokenizer(), (EOS_ID,))
    assert made is not None
    draws = [Draw(prompt=Prompt(id=str(n), text="", token_ids=(4, 5 + n)), position=n) for n in range(4)]
    found: list[Completion] = []
    for part in range(parts):
        own = draws[part * len(draws) // parts : (part + 1) * len(draws) // parts]
        found += made.sample(build_requests(own, samples=3, seed=0), own)
    return found, hands


def test_a_rule_whose_settings_do_not_declare_its_rounds_is_refused(paths: dict[str, str]):
    learner = learner_with(paths, {"corrections": 1})
    recipe = learner.preparer.recipe
    hidden = build_update(recipe.update)
    silent = recipe.model_copy(update={"update": recipe.update.model_copy(update={"corrections": 0})})
    hands = HandsInProcess(learner, None)  # pyright: ignore[reportArgumentType] - nothing is sampled
    with pytest.raises(RecipeError, match="asks for 1 corrections of a sample, and its settings declare 0"):
        build_corrector(silent, hidden, hands, character_tokenizer(), (EOS_ID,))


def test_real_models_continue_what_they_have_sampled(paths: dict[str, str]):
    found, hands = sample_with(paths, rounds=1)
    plain = hands.engine.generate(hands.submitted[0])
    assert sum(bool(one.corrections) for one in found) > 6
    for before, after, request in zip(plain, found, hands.submitted[0], strict=True):
        assert after.logprobs is not None
        assert before.logprobs is not None
        if not after.corrections:
            assert after == before
            continue
        ((at, nats),) = after.corrections
        assert after.token_ids[:at] == before.token_ids[:at]
        assert after.logprobs[:at] == before.logprobs[:at]
        assert after.token_ids[at] != before.token_ids[at]
        assert nats > 0
        assert len(after.token_ids) <= LIMIT
        assert (after.finish_reason == "stop") == (after.token_ids[-1] == EOS_ID)
        assert after.provenance[:at] == (0,) * at
        assert after.provenance[at:] == (1,) + (2,) * (len(after.token_ids) - at - 1)
        (scores,) = hands.engine.score([_probe(request, after)])
        assert after.logprobs == pytest.approx(scores[len(request.prompt_token_ids) - 1 :], abs=1e-4)


def _probe(request: Request, completion: Completion) -> Any:
    from rlkl.types import Probe

    return Probe(token_ids=request.prompt_token_ids + completion.token_ids)


@pytest.mark.parametrize("rounds", [1, 3])
def test_corrections_do_not_depend_on_what_is_sampled_together(paths: dict[str, str], rounds: int):
    together, _ = sample_with(paths, rounds)
    apart, _ = sample_with(paths, rounds, parts=4)
    assert [one.token_ids for one in together] == [one.token_ids for one in apart]
    assert max(len(one.corrections) for one in together) > (1 if rounds == 3 else 0)


def test_a_teacher_equal_to_the_policy_corrects_nothing(paths: dict[str, str]):
    found, hands = sample_with({**paths, "teacher": paths["policy"]}, rounds=2)
    assert found == hands.engine.generate(hands.submitted[0])
    assert len(hands.submitted) == 1


def test_a_planted_wrong_token_is_found_at_its_index(paths: dict[str, str]):
    """Samples of the teacher's own tokens, one of them replaced."""
    learner = learner_with(paths, {"corrections": 1}, track_reference_kl=False)
    prompt = Prompt(id="0", text="", token_ids=(4, 5))
    ids: list[int] = []
    for _ in range(5):
        ids.append(_views(learner, prompt, [*ids, 2])[-1])
    wrong = next(token for token in range(2, 14) if token != ids[2])
    planted = [*ids[:2], wrong]
    hands = HandsInProcess(learner, None)
    (found,) = hands.teacher_views([replace(example(sampled(*planted), 0), prompt=prompt)])
    error = worst_error(planted, found)
    assert error is not None
    assert (error.number, error.token_id) == (2, ids[2])


def _views(learner: Any, prompt: Prompt, ids: Sequence[int]) -> tuple[int, ...]:
    (found,) = HandsInProcess(learner, None).teacher_views([replace(example(sampled(*ids), 0), prompt=prompt)])
    return found.token_ids


def test_a_stop_text_across_the_seam_ends_a_completion_as_in_one_go(paths: dict[str, str]):
    free, _ = sample_with(paths, rounds=1)
    tokenizer: Any = character_tokenizer()
    texts = decode(tokenizer, [one.token_ids for one in free])
    place, text = next(
        (one.corrections[0][0], text)
        for one, text in zip(free, texts, strict=True)
        if one.corrections and len(text) > one.corrections[0][0] + 1
    )
    stop = text[place : place + 2]  # the teacher's token and the one after it
    stopped, _ = sample_with(paths, rounds=1, stop=(stop,))
    ended = [one for one in stopped if one.corrections and stop in decode(tokenizer, [one.token_ids])[0]]
    assert ended
    for one in ended:
        kept = decode(tokenizer, [one.token_ids])[0]
        assert kept.endswith(stop)
        assert one.finish_reason == "stop"


CORRECTED: dict[str, Any] = {
    "models": {"teacher": {"path": "unused"}},
    "update": {"rule": "distill", "corrections": 2},
    "rollout": {"max_new_tokens": 6, "prompts_per_step": 4, "samples_per_prompt": 2},
}


def test_a_run_scores_and_trains_on_corrected_samples(tmp_path: Path):
    run = build(tmp_path, NO_DELAYS, steps=2, **CORRECTED)
    run.run()
    examples = [one for found in hands_of(run).trained.values() for one in found]
    completions = [one.rollout.completion for one in examples]
    assert any(completion.corrections for completion in completions)
    for example_, completion in zip(examples, completions, strict=True):
        for number, _ in completion.corrections:
            assert completion.token_ids[number] == DIGITS[7]
        odd = sum(DIGITS.index(token) % 2 for token in completion.token_ids)
        assert example_.rollout.reward == odd
        assert completion.text == "".join(str(DIGITS.index(token)) for token in completion.token_ids)
    for record in run.tracker.records:
        assert 0 < record["rollout/corrected_fraction"] <= 1
        assert record["rollout/staleness_max"] == 0


def test_a_run_that_is_killed_and_resumed_corrects_as_one_that_is_not(tmp_path: Path):
    delays = NO_DELAYS
    whole = build(tmp_path / "whole", delays, **CORRECTED)
    whole.run()
    first, second = killed_and_resumed(tmp_path / "killed", after=3, **CORRECTED)
    found = {**hands_of(first).trained, **hands_of(second).trained}
    assert found == hands_of(whole).trained


def test_rounds_that_refill_a_step_are_corrected_too(tmp_path: Path):
    more = {**CORRECTED, "rollout": {**CORRECTED["rollout"], "max_rounds": 3}}
    more["update"] = {**CORRECTED["update"], "filter": {"keep": "threshold", "value": 5.0}}
    run = build(tmp_path, NO_DELAYS, steps=1, **more)
    run.run()
    (record,) = run.tracker.records
    assert record["rollout/rounds"] > 1
    assert len(set(hands_of(run).compared)) == 4 * record["rollout/rounds"]
