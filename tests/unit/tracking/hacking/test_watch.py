from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe
from rlkl.recipe.keys import describe_keys
from rlkl.tracking.hacking.watch import HackingWatch, unweighted_rewards
from rlkl.tracking.metrics.watch import WATCH_METRICS
from rlkl.tracking.records.reading import read_metrics
from rlkl.tracking.records.suspicious import Suspect, most_suspicious, repetition, write_suspects
from rlkl.tracking.tracker import RunSummary, Tracker
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup


def recipe(**tracking: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "steps": 60,
            "model": {"path": "task:reviews"},
            "data": {"source": "task:reviews"},
            "rewards": [{"function": "task:reviews"}, {"function": "task:reviews/gold", "weight": 0.0}],
            "tracking": {"wandb": "off", "console": "plain", **tracking},
        }
    )


def rollout(index: int, text: str, *, proxy: float = 0.0, gold: float = 0.0, **more: Any) -> Rollout:
    words = text.split()
    ids = (*(3 + sum(map(ord, word)) for word in words), 1)
    return Rollout(
        sample_index=index,
        completion=Completion(token_ids=ids, logprobs=None, finish_reason="stop", text=text),
        reward=proxy,
        components={"reviews": proxy, "gold": gold},
        weights_version=0,
        **more,
    )


def groups(gain: float = 0.0) -> list[RolloutGroup]:
    """Two prompts with two samples each; proxies spread by 1 and golds by 0.5 around ``gain`` and 0.5."""
    return [
        RolloutGroup(
            prompt=Prompt(id=name, text=name, token_ids=(3,)),
            rollouts=(
                rollout(0, f"{name} is good", proxy=gain - 1, gold=0.0),
                rollout(1, f"{name} was bad and dull", proxy=gain + 1, gold=1.0),
            ),
        )
        for name in ("plot", "cast")
    ]


def metrics(gain: float = 0.0, length: float = 100.0) -> dict[str, float]:
    return {"reward/mean": gain, "reward/gold": 0.5, "rollout/length_mean": length, "rollout/empty_fraction": 0.0}


def watched(watch: HackingWatch, lengths: list[float]) -> tuple[list[dict[str, float]], list[tuple[int, str]]]:
    """The records of steps with completions of such lengths, and the signals that set in, with the step."""
    records: list[dict[str, float]] = []
    set_in = []
    for step, length in enumerate(lengths, start=1):
        sighting = watch.look(records, metrics(length=length), groups())
        records.append({"step": step, **metrics(length=length), **sighting.metrics})
        set_in += [(step, name) for name in sighting.set_in]
    return records, set_in


LENGTHS = [100.0] * 10 + [160.0] * 10 + [126.0] * 5 + [135.0] * 5 + [100.0] * 10 + [160.0] * 10
"""Up, wavering at the limit, down, up again."""


def test_a_signal_is_told_once_each_time_that_it_sets_in():
    records, set_in = watched(HackingWatch(recipe(), []), LENGTHS)
    assert set_in == [(13, "length"), (43, "length")]
    assert [step for step, record in enumerate(records, start=1) if record["watch/warnings"]] == [13, 43]
    assert records[12]["watch/length"] > 1 > records[11]["watch/length"]
    levels = [records[step]["watch/length"] for step in (24, 29)]
    assert 0.8 < levels[0] < 1 < levels[1]  # wavering: still on, and not told again


def test_the_state_comes_back_from_the_records():
    records, set_in = watched(HackingWatch(recipe(), []), LENGTHS)
    for done in range(1, len(records)):
        watch = HackingWatch(recipe(), records[:done])
        told = []
        for step in range(done, len(records)):
            sighting = watch.look(records[:step], metrics(length=LENGTHS[step]), groups())
            assert {**records[step], **sighting.metrics} == records[step]
            told += [(step + 1, name) for name in sighting.set_in]
        assert told == [(step, name) for step, name in set_in if step > done]


def test_tolerance_stretches_every_limit():
    strict, _ = watched(HackingWatch(recipe(), []), LENGTHS)
    lenient, set_in = watched(HackingWatch(recipe(hacking_tolerance=3.0), []), LENGTHS)
    assert set_in == []
    assert lenient[15]["watch/length"] == pytest.approx(strict[15]["watch/length"] / 3)


def test_the_gap_is_measured_in_spreads_of_the_start():
    watch, records = HackingWatch(recipe(), []), []
    for step in range(20):
        gain = 0.0 if step < 15 else 1.2
        sighting = watch.look(records, metrics(gain), groups(gain))
        records.append({**metrics(gain), **sighting.metrics})
    assert records[0]["watch/spread/reward"] == pytest.approx(1.0)
    assert records[0]["watch/spread/gold"] == pytest.approx(0.5)
    assert records[-1]["watch/gap/gold"] == pytest.approx(1.2)
    assert list(sighting.set_in) == ["gap/gold"]
    suspects = sighting.suspects["gap/gold"]
    assert [suspect.suspicion for suspect in suspects] == pytest.approx([1.2, 1.2, 1.2, 1.2])


def test_monitors_of_their_own_role_are_watched_too():
    group = RolloutGroup(
        prompt=Prompt(id="p", text="p", token_ids=(3,)),
        rollouts=tuple(rollout(n, "fine", proxy=float(n), monitors={"judge": float(n % 2)}) for n in range(4)),
    )
    found = HackingWatch(recipe(), []).look([], {"monitor/judge": 0.5, "reward/mean": 1.5}, [group])
    assert found.metrics["watch/spread/judge"] == pytest.approx(0.5)
    records = [{"monitor/judge": 0.5, "reward/mean": 1.5, **found.metrics}] * 20
    later = {"monitor/judge": 0.0, "reward/mean": 1.5}
    assert "watch/fall/judge" in HackingWatch(recipe(), []).look(records, later, [group]).metrics


def test_rewards_without_a_weight_are_found_by_the_name_of_their_curve():
    rewards = [
        {"function": "task:reviews"},
        {"function": "task:reviews/gold", "weight": 0.0},
        {"function": "my/rewards.py:length", "weight": 0.0},
        {"function": "package.module:Judge", "weight": 0.0, "name": "judge"},
    ]
    found = Recipe.model_validate({**recipe().model_dump(), "rewards": rewards})
    assert unweighted_rewards(found) == {"gold", "length", "judge"}


def texts(*words: str) -> list[RolloutGroup]:
    return [
        RolloutGroup(prompt=Prompt(id=str(n), text="p", token_ids=(3,)), rollouts=(rollout(0, text, proxy=float(n)),))
        for n, text in enumerate(words)
    ]


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ("similarity", ["so good", "so good so good so good", "dull it was", ""]),
        ("empty", ["", "so good"]),
        ("length", ["so good so good so good", "dull it was"]),
        ("repetition", ["so good so good so good", "so good"]),
        ("kl_acceleration", ["", "dull it was"]),
    ],
)
def test_suspects_are_those_that_show_the_signal(signal: str, expected: list[str]):
    found = texts("so good", "so good so good so good", "dull it was", "")
    records = [{"rollout/length_mean": 2.0}] * 20
    suspects = most_suspicious(signal, found, records, {}, kept=len(expected))
    assert [suspect.rollout.completion.text for suspect in suspects] == expected


def test_shrinking_completions_have_the_shortest_as_suspects():
    records = [{"rollout/length_mean": 50.0}] * 20
    suspects = most_suspicious("length", texts("so good", "dull", "it was so"), records, {}, kept=1)
    assert suspects[0].rollout.completion.text == "dull"


def test_a_sample_that_no_monitor_scored_is_no_suspect():
    group = texts("a", "b")
    scored = rollout(0, "c", proxy=1.0, monitors={"judge": 0.0})
    group.append(RolloutGroup(prompt=Prompt(id="c", text="p", token_ids=(3,)), rollouts=(scored,)))
    start = {"reward/mean": 0.0, "monitor/judge": 0.0, "watch/spread/reward": 1.0, "watch/spread/judge": 1.0}
    suspects = most_suspicious("gap/judge", group, [start] * 10, {"judge": "monitor/judge"}, kept=5)
    assert [(suspect.rollout, suspect.suspicion) for suspect in suspects] == [(scored, 1.0)]


def test_a_suspect_without_a_reward_is_written_as_json_that_any_reader_takes(tmp_path: Path):
    nowhere = float("nan")
    lost = rollout(0, "c", proxy=nowhere, monitors={"judge": nowhere, "other": 0.5}, raw_reward=nowhere)
    suspect = Suspect(prompt=Prompt(id="c", text="p", token_ids=(3,)), rollout=lost, suspicion=float("inf"))
    write_suspects(tmp_path / "s.jsonl", {"length": [suspect]})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads((tmp_path / "s.jsonl").read_text(), parse_constant=refuse)
    assert [row[name] for name in ("suspicion", "reward", "reward/gold", "monitor/judge")] == [None, None, 0.0, None]
    assert (row["monitor/other"], row["completion"]) == (0.5, "c")


def test_repetition_looks_back_sixteen_tokens():
    assert repetition(()) == repetition((5,)) == 0.0
    assert repetition((5, 5)) == 0.5
    assert repetition(tuple(range(16)) * 2) == 0.5
    assert repetition(tuple(range(17)) * 2) == 0.0
    assert repetition((7,) * 10) == 0.9


def run(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log(step, metrics(length=LENGTHS[step]), groups())


def test_the_tracker_warns_and_keeps_suspects(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracker = Tracker(tmp_path, recipe(suspicious_kept=3), run_id=None, first_step=0)
    with caplog.at_level(logging.WARNING, logger="rlkl"):
        run(tracker, range(50))
    tracker.finish(RunSummary(interrupted=False, policy_dir=None))
    warnings = [record.message for record in caplog.records if "hacking watch" in record.message]
    assert len(warnings) == 2
    assert warnings[0].startswith("step 13, hacking watch, length: completions have 136.0 tokens, 1.36 times")
    files = sorted((tmp_path / "suspicious").iterdir())
    assert [file.name for file in files] == ["step_000013.jsonl", "step_000043.jsonl"]
    assert str(files[0]) in warnings[0]
    suspects = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert len(suspects) == 3
    assert {suspect["signal"] for suspect in suspects} == {"length"}
    assert suspects[0]["completion"] == "plot is good"  # the shortest: the mean of these samples is below the start's
    assert (suspects[0]["reward/gold"], suspects[0]["prompt"]) == (0.0, "plot")
    assert sum(record["watch/warnings"] for record in read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_resumed_run_watches_as_one_that_was_never_stopped(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(once := Tracker(whole, recipe(), run_id=None, first_step=0), range(50))
    once.finish(RunSummary(interrupted=False, policy_dir=None))
    run(first := Tracker(parts, recipe(), run_id=None, first_step=0), range(45))
    first.fail(KeyboardInterrupt())
    assert (parts / "suspicious" / "step_000043.jsonl").exists()
    run(second := Tracker(parts, recipe(), run_id="r", first_step=40), range(40, 41))
    second.flush()
    assert [file.name for file in (parts / "suspicious").iterdir()] == ["step_000013.jsonl"]
    run(second, range(41, 50))
    second.finish(RunSummary(interrupted=False, policy_dir=None))
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for file in (whole / "suspicious").iterdir():
        assert (parts / "suspicious" / file.name).read_bytes() == file.read_bytes()


def test_the_watch_can_be_off_and_is_silent_about_stored_pairs(tmp_path: Path):
    pairs = load_recipe("reviews_dpo", "tracking.wandb=off", "tracking.console=plain")
    for name, chosen in (("off", recipe(hacking_watch=False)), ("pairs", pairs)):
        tracker = Tracker(tmp_path / name, chosen, run_id=None, first_step=0)
        run(tracker, range(20))
        tracker.finish(RunSummary(interrupted=False, policy_dir=None))
        assert not any(key.startswith("watch/") for key in read_metrics(tmp_path / name / "metrics.jsonl")[-1])
        assert not (tmp_path / name / "suspicious").exists()


def test_the_docs_name_every_signal_and_every_key():
    docs = (Path(__file__).parents[4] / "docs" / "hacking_watch.md").read_text()
    keys = [definition.key.removeprefix("watch/").replace("<name>", "<monitor>") for definition in WATCH_METRICS]
    signals = [key for key in keys if key.split("/")[0] not in ("rollout", "spread", "warnings")]
    assert len(signals) == 7
    assert [signal for signal in signals if f"| `{signal}` |" not in docs] == []
    for key in ("hacking_watch", "hacking_tolerance", "suspicious_kept"):
        default = next(found.default for found in describe_keys() if found.name == f"tracking.{key}")
        assert f"| `tracking.{key}` | {default} |" in docs
