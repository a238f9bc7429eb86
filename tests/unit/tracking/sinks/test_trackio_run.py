"""trackio's database, written by real runs of the tracker and read back with trackio's own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

RECORD = """
import json, sys
from pathlib import Path
from tests.unit.tracking.sinks.recorded import recipe, record
folder, used = Path(sys.argv[1]), recipe(also=["trackio"], group="rules", arm="GRPO")
run_id = record(folder / "run", used, first=0, last=5)
record(folder / "run", used, first=3, last=6, run_id=run_id)
failed = record(folder / "failed", used, first=0, last=1, fails=True)
print(json.dumps({"resumed": f"sums-{run_id}", "failed": f"sums-{failed}"}))
"""
READ = """
import json
import trackio
from trackio.sqlite_storage import SQLiteStorage
runs = {run.name: run for run in trackio.Api().runs("rlkl")}
logs = {name: SQLiteStorage.get_logs("rlkl", name) for name in runs}
print(json.dumps({"logs": logs, "alerts": SQLiteStorage.get_alerts("rlkl"),
                  "groups": {name: run.config["_Group"] for name, run in runs.items()}}, default=str))
"""


def answer_of(script: str, *arguments: str, env: dict[str, str]) -> dict[str, Any]:
    """Run a script in a process of its own; return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=env, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The database after a run of 5 steps that was resumed at step 3, and a failed run.

    The runs have a process of their own: trackio reads its settings when it is imported, and another test may have
    imported it here.
    """
    folder = tmp_path_factory.mktemp("trackio")
    settings = {name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")}
    settings["TRACKIO_DIR"] = str(folder / "database")
    names = answer_of(RECORD, str(folder), env=settings)
    return {**names, **answer_of(READ, env=settings), "database": folder / "database"}


def test_a_resumed_run_is_one_curve_with_its_samples(recorded: dict[str, Any]):
    logs = recorded["logs"][recorded["resumed"]]
    rewards = sorted((log["step"], log["reward/mean"]) for log in logs if "reward/mean" in log)
    assert rewards == [(1, 0.125), (2, 0.25), (3, 0.375), (4, 1.5), (5, 1.625), (6, 1.75)]
    tables = {log["step"]: log["samples"] for log in logs if "samples" in log}
    assert sorted(tables) == [1, 2, 4, 6]
    assert [row["completion"][:2] for row in tables[4]["_value"]] == ["3 "]


def test_runs_have_their_group_and_a_failure_is_an_alert(recorded: dict[str, Any]):
    assert set(recorded["groups"].values()) == {"rules"}
    assert set(recorded["logs"]) == {recorded["resumed"], recorded["failed"]}
    (alert,) = recorded["alerts"]
    assert (alert["title"], alert["level"]) == ("run sums failed", "error")
    assert alert["text"] == "RewardError: reward 'gold' raised"


def test_the_database_is_where_the_user_wants_it(recorded: dict[str, Any]):
    assert list(recorded["database"].glob("rlkl*.db"))
