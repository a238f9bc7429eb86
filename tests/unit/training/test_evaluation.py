"""Evaluations beside each schedule: they change nothing, are of one version, and survive a resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rlkl.data.prompts import Encoder
from rlkl.errors import RecipeError, RewardInputError, RolloutError
from rlkl.recipe import Recipe
from rlkl.rewards import load_rewards
from rlkl.rollout.engine import Request
from rlkl.tracking.metrics.registry import without_timings
from rlkl.tracking.records.reading import read_metrics
from rlkl.training.evaluation import HeldOut, choose, load_held_out
from rlkl.training.loop import Trainer
from rlkl.types import Completion, Prompt
from tests.scheduled import TOKENIZER, Delays, build, draws_by_step, hands_of

EVAL = {"every": 3, "data": {"source": "task:arithmetic/test"}, "samples": 3, "limit": 5}
STEPS = [0, 3, 6]


def untimed(run_dir: Path, file: str = "metrics.jsonl") -> list[dict[str, float]]:
    return [without_timings(record) for record in read_metrics(run_dir / file)]


def trained(run: Trainer) -> dict[int, list[Any]]:
    return {step: [example.rollout for example in examples] for step, examples in hands_of(run).trained.items()}


def evaluated(run_dir: Path, schedule: str = "alternate", **sections: Any) -> Trainer:
    run = build(run_dir, Delays(), rollout={"schedule": schedule}, eval=EVAL, **sections)
    run.run()
    return run


@pytest.fixture(scope="module")
def alternate(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return evaluated(tmp_path_factory.mktemp("runs") / "alternate", checkpoint={"every": 3})


@pytest.mark.parametrize("schedule", ["alternate", "one_step_off"])
def test_no_training_sample_and_no_metric_changes(schedule: str, tmp_path: Path):
    plain = build(tmp_path / "plain", Delays(), rollout={"schedule": schedule})
    plain.run()
    run = evaluated(tmp_path / "evaluated", schedule)

    assert trained(run) == trained(plain)
    assert untimed(tmp_path / "evaluated") == untimed(tmp_path / "plain")
    assert not [key for line in untimed(tmp_path / "evaluated") for key in line if key.startswith("eval/")]
    assert hands_of(run).sampler.forgotten == len(STEPS)


def test_under_stream_steps_train_on_the_same_draws_and_no_token_is_too_old(tmp_path: Path, alternate: Trainer):
    """Versions within a batch depend on the timing with and without evaluations; an evaluation's never do."""
    run = evaluated(tmp_path, "stream")

    assert draws_by_step(run) == {step: list(range(4 * step, 4 * step + 4)) for step in range(6)}
    assert max(line["rollout/staleness_max"] for line in untimed(tmp_path)) <= run.recipe.rollout.max_staleness
    assert untimed(tmp_path, "eval.jsonl") == untimed(alternate.run_dir, "eval.jsonl")


def test_an_evaluation_is_of_the_version_that_was_published_last(alternate: Trainer):
    records = untimed(alternate.run_dir, "eval.jsonl")

    assert [record["step"] for record in records] == STEPS
    for step in STEPS:
        rows = pq.read_table(alternate.run_dir / "samples" / f"eval_{step:06d}.parquet").to_pylist()
        assert {row["weights_version"] for row in rows} == {step}
        assert {version for row in rows for version in row["versions"]} == {step}
        assert [row["evaluation"] for row in rows] == ["sampled"] * 15 + ["greedy"] * 5
        assert len({row["prompt_id"] for row in rows}) == 5
    lengths = [record["eval/length_mean"] for record in records]
    assert len(set(lengths)) == 1, "the same requests each time"
    assert [record["eval/kl"] for record in records] == pytest.approx([0.1 * s * lengths[0] for s in STEPS])
    assert len({record["eval/mean"] for record in records}) > 1, "other weights give other tokens"


def test_the_folder_of_samples_is_one_table_that_tells_both_kinds_apart(alternate: Trainer):
    rows = pq.read_table(alternate.run_dir / "samples").to_pylist()
    schemas = {str(pq.read_schema(path)) for path in (alternate.run_dir / "samples").glob("*.parquet")}

    assert len(schemas) == 1
    assert {row["step"] for row in rows if row["evaluation"] is None} == {1, 6}
    assert {row["step"] for row in rows if row["evaluation"] is not None} == set(STEPS)


@pytest.mark.parametrize("killed_in", [3, 4])
def test_a_resume_makes_no_evaluation_twice_and_loses_none(killed_in: int, tmp_path: Path, alternate: Trainer):
    first = build(tmp_path / "cut", Delays(), eval=EVAL)
    hands_of(first).stop_after = killed_in
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    known = [record["time/eval_s"] for record in read_metrics(tmp_path / "cut" / "eval.jsonl")]
    second = build(tmp_path / "cut", Delays(), resume=tmp_path / "cut", eval=EVAL)
    second.run()

    assert untimed(tmp_path / "cut", "eval.jsonl") == untimed(alternate.run_dir, "eval.jsonl")
    assert [record["time/eval_s"] for record in read_metrics(tmp_path / "cut" / "eval.jsonl")][:2] == known[:2]


def test_what_is_later_than_the_checkpoint_goes_and_what_was_cut_off_is_made_up(tmp_path: Path, alternate: Trainer):
    """Killed in the evaluation of step 3, whose checkpoint is there; step 6 is left from an older attempt."""
    shutil.copytree(alternate.run_dir, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_000006")
    lines = (tmp_path / "cut" / "eval.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "eval.jsonl").write_text(lines[0] + lines[2] + lines[1][:20])
    resumed = build(tmp_path / "cut", Delays(), resume=tmp_path / "cut", eval=EVAL)
    assert [record["step"] for record in resumed.tracker.evaluations] == [0]
    assert not (tmp_path / "cut" / "samples" / "eval_000006.parquet").exists()
    resumed.run()

    assert untimed(tmp_path / "cut", "eval.jsonl") == untimed(alternate.run_dir, "eval.jsonl")


def test_a_new_run_does_not_take_up_the_evaluation_of_one_that_came_to_no_step(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval.jsonl").write_text('{"step": 0, "eval/mean": 7.0}\n')
    build(tmp_path / "run", Delays(), eval=EVAL, steps=1).run()

    assert [record["step"] for record in read_metrics(tmp_path / "run" / "eval.jsonl")] == [0, 1]
    assert read_metrics(tmp_path / "run" / "eval.jsonl")[0]["eval/mean"] != 7.0


def best_of(run_dir: Path) -> tuple[int, float, str]:
    kept = json.loads((run_dir / "best" / "rlkl_best.json").read_text())
    return kept["step"], kept["value"], (run_dir / "best" / "weights").read_text()


def test_the_best_policy_is_kept_with_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = evaluated(tmp_path, checkpoint={"every": 5, "best": "eval/mean"})

    values = {record["step"]: record["eval/mean"] for record in read_metrics(tmp_path / "eval.jsonl")}
    best = max(STEPS, key=lambda step: (values[step], -step))
    assert best > 0, "otherwise this test shows nothing"
    assert best_of(tmp_path) == (best, values[best], str(best))
    summary = capsys.readouterr().out
    assert (
        f"eval/mean {values[best]:.4g} at step {best}, last {values[6]:.4g}; the best of 3 is an optimistic estimate"
        in summary
    )
    assert f"at step {best})" in next(line for line in summary.splitlines() if line.startswith("  held-out"))
    assert run.best.step == best


def test_a_resumed_run_knows_the_best_so_far(tmp_path: Path):
    sections: dict[str, Any] = {"eval": EVAL, "checkpoint": {"every": 2, "best": "eval/mean"}}
    whole = build(tmp_path / "whole", Delays(), **sections)
    whole.run()
    first = build(tmp_path / "cut", Delays(), **sections)
    hands_of(first).stop_after = 5
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    second = build(tmp_path / "cut", Delays(), resume=tmp_path / "cut", **sections)
    assert (second.best.step, second.best.value) == (first.best.step, first.best.value)
    second.run()

    assert best_of(tmp_path / "cut") == best_of(tmp_path / "whole")
    assert second.best.summary() == str(whole.best.summary()).replace("whole", "cut")


def test_a_best_policy_of_a_step_that_is_made_again_is_forgotten(tmp_path: Path):
    sections: dict[str, Any] = {"eval": EVAL, "checkpoint": {"every": 2, "best": "eval/mean"}}
    build(tmp_path / "run", Delays(), **sections).run()
    kept = tmp_path / "run" / "best" / "rlkl_best.json"
    kept.write_text(json.dumps({"metric": "eval/mean", "step": 6, "value": 1e9}))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000006")
    again = build(tmp_path / "run", Delays(), resume=tmp_path / "run", **sections)

    assert again.best.value < 1e9
    assert not kept.exists()


def test_a_metric_of_training_is_looked_at_where_a_checkpoint_is(tmp_path: Path):
    build(tmp_path, Delays(), checkpoint={"every": 2, "best": "reward/mean"}).run()

    values = {line["step"]: line["reward/mean"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    best = max((2, 4, 6), key=lambda step: (values[step], -step))
    assert best_of(tmp_path) == (best, values[best], str(best))


def test_a_kill_between_the_checkpoint_and_the_copy_of_the_best_loses_nothing(tmp_path: Path):
    sections: dict[str, Any] = {"checkpoint": {"every": 2, "keep": 3, "best": "reward/mean"}}
    build(tmp_path, Delays(), **sections).run()
    kept = best_of(tmp_path)
    for step in (2, 4, 6):
        if step > kept[0]:
            shutil.rmtree(tmp_path / "checkpoints" / f"step_{step:06d}")
    shutil.rmtree(tmp_path / "best")
    again = build(tmp_path, Delays(), resume=tmp_path, **sections)

    assert best_of(tmp_path) == kept
    assert (again.best.step, again.best.value) == kept[:2]


def test_a_step_that_is_not_the_best_so_far_is_not_kept_by_a_resume(tmp_path: Path):
    sections: dict[str, Any] = {"checkpoint": {"every": 2, "keep": 3, "best": "reward/mean"}}
    build(tmp_path, Delays(), **sections).run()
    values = {line["step"]: line["reward/mean"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert max(values[2], values[4]) >= values[6], "otherwise this test shows nothing"
    shutil.rmtree(tmp_path / "best")
    build(tmp_path, Delays(), resume=tmp_path, **sections)

    assert not (tmp_path / "best").exists()


def test_an_unknown_metric_ends_the_run_before_the_first_step(tmp_path: Path):
    run = build(tmp_path, Delays(), eval=EVAL, checkpoint={"best": "eval/meen"})

    with pytest.raises(RecipeError, match=r"checkpoint.best = 'eval/meen' .* did you mean 'eval/mean'"):
        run.run()
    assert hands_of(run).trained == {}


def held_out(**section: Any) -> HeldOut:
    values = {"model": {"path": "unused"}, "data": {"source": "task:arithmetic/train"}, "eval": EVAL | section}
    recipe = Recipe.model_validate(values)
    assert recipe.eval is not None
    return load_held_out(recipe, recipe.eval, load_rewards([], [len_of]), Encoder(tokenizer=TOKENIZER))


def len_of(completion: str) -> float:
    return float(len(completion))


def test_requests_have_their_own_seeds_and_temperatures():
    requests = held_out(temperature=0.7).requests()

    assert [request.temperature for request in requests] == [0.7] * 15 + [0.0] * 5
    assert len({request.seed for request in requests[:15]}) == 15
    assert len(held_out(greedy=False).requests()) == 15


def test_completions_of_two_versions_are_refused():
    def sample(requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]:
        for number, _ in enumerate(requests):
            yield [(number, Completion(token_ids=(5,), logprobs=(0.0,), finish_reason="stop", weights_version=number))]

    with pytest.raises(RolloutError, match="expected one"):
        held_out().run(sample)


def test_a_limit_chooses_the_same_prompts_whatever_their_order():
    prompts = [Prompt(id=str(n), text="", token_ids=(1,)) for n in range(50)]

    some = {prompt.id for prompt in choose(prompts, 7)}
    assert len(some) == 7
    assert {prompt.id for prompt in choose(prompts[::-1], 7)} == some
    assert some < {prompt.id for prompt in choose(prompts, 8)}
    assert some != {str(n) for n in range(7)}
    assert choose(prompts, 50) == prompts


@pytest.mark.parametrize("name", ["greedy", "kl", "length_mean"])
def test_a_reward_cannot_have_the_name_of_another_curve(name: str):
    section = {"function": "task:arithmetic", "name": name, "role": "monitor"}
    values = {"model": {"path": "m"}, "data": {"source": "d"}, "eval": EVAL | {"rewards": [section]}}
    recipe = Recipe.model_validate(values)
    assert recipe.eval is not None

    with pytest.raises(RewardInputError, match=f"a reward cannot be called '{name}'"):
        load_rewards(recipe.eval.rewards, for_evaluation=True)
