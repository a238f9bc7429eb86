"""The prints of a sweep."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from rlkl.analysis.sweep_plan import PLAN_FILE, chosen_points
from rlkl.cli import main
from rlkl.sweeps.making import load_sweep, make_plan
from rlkl.sweeps.recipes import point_file, write_recipes
from rlkl.sweeps.selection import select
from rlkl.sweeps.state import write_json
from rlkl.sweeps.view import View
from tests.unit.analysis.planted import record, write_run

WORDS = ["quickstart", "update.kl_coef=[0.1,0.2]", "name=s"]


def dry_run(words: list[str], root: Path) -> str:
    out = io.StringIO()
    View(Console(file=out, soft_wrap=True)).dry_run(make_plan(load_sweep(words)), root, jobs=1)
    return out.getvalue()


def test_a_dry_run_counts_the_final_runs_that_are_done(tmp_path: Path) -> None:
    words = [*WORDS, "select={seeds: [0], by: reward/mean, last: 1}", "final={seeds: [1, 2, 3]}"]
    plan = make_plan(load_sweep(words))
    assert "the time is known once the first run is done" in dry_run(words, tmp_path)
    for run in plan.selection_runs():
        write_run(run.folder(tmp_path), [record(1, 0.0, 0.1)], {}, *run.point.overrides, f"seed={run.seed}")
    select(plan, tmp_path)
    final = list(plan.reported_runs(chosen_points(tmp_path)))
    for run in final[:2]:
        write_run(run.folder(tmp_path), [record(1, 0.0, 0.1)], {}, *run.point.overrides, f"seed={run.seed}")
    for run in [*plan.selection_runs(), *final[:2]]:
        _take_a_minute(run.folder(tmp_path))
    text = dry_run(words, tmp_path)
    assert text.splitlines()[1].endswith(" 2 + 2"), "two of the selection and two final runs are done"
    assert "5 runs in" in text
    assert "60 s a run so far, so about 1 min left" in text


def test_a_dry_run_without_a_selection_counts_each_run_once(tmp_path: Path) -> None:
    words = [*WORDS, "seeds=2"]
    runs = list(make_plan(load_sweep(words)).reported_runs({}))
    for run in runs[:3]:
        write_run(run.folder(tmp_path), [record(1, 0.0, 0.1)], {}, *run.point.overrides, f"seed={run.seed}")
        _take_a_minute(run.folder(tmp_path))
    text = dry_run(words, tmp_path)
    assert text.splitlines()[1].split()[-1] == "3"
    assert "60 s a run so far, so about 1 min left" in text


def _take_a_minute(folder: Path) -> None:
    end = (folder / "policy").stat().st_mtime
    os.utime(folder / "recipe.yaml", (end - 60, end - 60))


def test_a_dry_run_refuses_what_the_sweep_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "seeds=1", "steps=8", f"dir={tmp_path}"]
    plan = make_plan(load_sweep(words))
    write_json(tmp_path / PLAN_FILE, plan.as_json())
    write_recipes(plan, tmp_path)
    assert main(["sweep", *words, "--dry-run"]) == 0
    assert "2 runs in" in capsys.readouterr().out
    refused = {}
    for name, changed in (("plan", [*words, "steps=9"]), ("recipe", words)):
        if name == "recipe":
            file = point_file(tmp_path, plan.arms[0], plan.arms[0].points[0])
            file.write_text(file.read_text().replace("steps: 8", "steps: 7"))
        before = sorted(tmp_path.rglob("*"))
        assert main(["sweep", *changed, "--dry-run"]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert sorted(tmp_path.rglob("*")) == before
        assert main(["sweep", *changed]) == 2
        refused[name] = told.err
        assert capsys.readouterr().err == told.err
    assert "arms[0].steps=9 (was 8)" in refused["plan"]
    assert "is not the recipe that plan.json was made for" in refused["recipe"]
