"""What `recipes/hacking_watch.py` makes of records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import InputError
from rlkl.system.importing import Importer

SCRIPT = Path(__file__).parents[2] / "recipes" / "hacking_watch.py"


@pytest.fixture(scope="module")
def script() -> Any:
    importer = Importer(key="script", noun="script", forms="a file", error=InputError)
    return importer.source(SCRIPT, SCRIPT.read_bytes())


def records(gold: list[float], levels: dict[int, float]) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "monitor/gold": value,
            "kl/policy_to_reference": 2.0,
            "watch/length": levels.get(step, 0.5),
        }
        for step, value in enumerate(gold, start=1)
    ]


RISE_AND_FALL = [0.4] * 5 + [0.6] * 10 + [0.15] * 10


def test_peak_and_collapse_are_read_off_five_steps(script: Any) -> None:
    found = records(RISE_AND_FALL, {})
    assert script.peak(found) == 10
    assert script.collapse(found) == 18
    assert script.collapse(records([0.4] * 5 + [0.6] * 10, {})) is None


def test_tables_say_when_a_signal_trips_and_where_it_is_wrong(script: Any) -> None:
    hacked = [records(RISE_AND_FALL, {12: 1.0, 13: 2.0}), records(RISE_AND_FALL, {8: 1.5}), records(RISE_AND_FALL, {})]
    healthy = [records([0.5] * 20, {}), records([0.5] * 20, {7: 1.25}), records([0.5] * 20, {})]
    runs = {"hacked": hacked, **{arm.name: healthy for arm in script.HEALTHY}}
    line = next(line for line in script.signals_table(runs).splitlines() if "`length`" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "12, 8, never"
    assert cells[2] == "+0.0 ± 2.8 (+2, -2)"
    assert cells[4] == cells[5] == "1, at step 7 (highest level 1.25)"
    assert "| hacked | 1 | 0.40, 0.60, 0.15 | 10 |" in script.runs_table(runs)
