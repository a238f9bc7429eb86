"""The course of runs and the lead times of the hacking watch."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.analysis.lead_times import collapse, course_table, peak, signal_table, watch_tables
from rlkl.analysis.runs import RunFolder
from rlkl.errors import InputError
from tests.unit.analysis.planted import record, write_run

GOLD = "monitor/gold"
RISE_AND_FALL = [0.4] * 5 + [0.6] * 10 + [0.15] * 10


def records(gold: list[float], levels: dict[int, float]) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            GOLD: value,
            "kl/policy_to_reference": 2.0,
            "watch/spread/reward": 1.0,
            "watch/length": levels.get(step, 0.5),
        }
        for step, value in enumerate(gold, start=1)
    ]


def run(seed: int, found: list[dict[str, float]]) -> RunFolder:
    return RunFolder(path=Path(f"run-{seed}"), recipe={"seed": seed}, metrics=found, evaluations=[])


def test_peak_and_collapse_are_read_off_five_steps() -> None:
    found = records(RISE_AND_FALL, {})
    assert peak(found, GOLD) == 10
    assert collapse(found, GOLD) == 18
    assert collapse(records([0.4] * 5 + [0.6] * 10, {}), GOLD) is None


def test_tables_show_when_a_signal_trips_and_where_it_is_wrong() -> None:
    hacked = [records(RISE_AND_FALL, levels) for levels in ({12: 1.0, 13: 2.0}, {8: 1.5}, {})]
    healthy = [records([0.5] * 20, levels) for levels in ({}, {7: 1.25}, {})]
    arms = {
        name: [run(seed, one) for seed, one in enumerate(found, start=1)]
        for name, found in (("hacked", hacked), ("GRPO", healthy), ("PPO", healthy))
    }
    lines = signal_table(arms, "hacked", GOLD).splitlines()
    assert len(lines) == 3, "watch/spread is no signal"
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:2] == ["`length`", "12, 8, never"]
    assert cells[2] == "+0.0 ± 2.8 (+2, -2)"
    assert cells[4] == cells[5] == "1, at step 7 (highest level 1.25)"
    first = [cell.strip() for cell in course_table(arms, GOLD).splitlines()[2].strip("|").split("|")]
    assert first == ["hacked", "1", "0.40, 0.60, 0.15", "10", "18", "2.0"]


def test_a_run_without_a_reference_has_a_dash_for_its_kl() -> None:
    found = [{key: value for key, value in one.items() if not key.startswith("kl/")} for one in records([0.5] * 6, {})]
    assert course_table({"bare": [run(1, found)]}, GOLD).splitlines()[2].split()[-2:] == ["-", "|"]


def test_a_metric_that_a_step_lacks_is_refused(tmp_path: Path) -> None:
    found = [record(step, 0.1, 0.0) for step in range(1, 4)]
    del found[1][GOLD]
    write_run(tmp_path / "1", found, {})
    with pytest.raises(InputError, match="does not log monitor/gold in each step"):
        watch_tables([tmp_path / "1"], hacked="quickstart", gold=GOLD)


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    for seed, coef in ((1, 0.1), (2, 0.2)):
        found = [record(step, 0.1, 0.0) for step in range(1, 4)]
        write_run(tmp_path / str(seed), found, {}, f"seed={seed}", f"update.kl_coef={coef}")
    folders = [tmp_path / "1", tmp_path / "2"]
    with pytest.raises(InputError, match=r"--watch 'hacked' is no arm.*update\.kl_coef=0\.1"):
        watch_tables(folders, hacked="hacked", gold=GOLD)
    with pytest.raises(InputError, match="does not log eval/gold"):
        watch_tables(folders, hacked="update.kl_coef=0.1", gold="eval/gold")
    assert "| update.kl_coef=0.2 " in watch_tables(folders, hacked="update.kl_coef=0.1", gold=GOLD)
