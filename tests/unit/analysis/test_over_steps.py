"""The figure over the steps of planted runs: what is read, and the tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rlkl.analysis.over_steps import fits_over_steps, step_tables
from rlkl.analysis.study import load_study
from rlkl.cli import main
from rlkl.errors import InputError
from tests.unit.analysis.planted import record, write_run

STEPS = 30
WORDS = {0.1: (0.5, 0.4, 0.5), 0.2: (0.8, 0.6, 1.0)}
"""Limit, factor and exponent of the gain of each arm."""


def gain(coef: float, updates: int) -> float:
    limit, factor, exponent = WORDS[coef]
    return 0.0 if updates == 0 else limit - factor * updates**-exponent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five runs of each arm; to be changed in copies only."""
    root = tmp_path_factory.mktemp("runs")
    for coef in WORDS:
        for seed in range(1, 6):
            records = [record(s, 0.1, gain(coef, s - 1) + 0.01 * seed) for s in range(1, STEPS + 1)]
            write_run(root / f"{coef}-{seed}", records, {}, f"seed={seed}", f"update.kl_coef={coef}")
    return sorted(root.iterdir())


def copies(folders: Sequence[Path], root: Path) -> list[Path]:
    return [Path(shutil.copytree(folder, root / folder.name)) for folder in folders]


def cut(folder: Path, steps: int) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:steps]) + "\n")


def add_evaluations(folder: Path, steps: Sequence[int], values: Mapping[int, float]) -> None:
    lines = [json.dumps({"step": step, "eval/gold": values[step]}) for step in steps]
    (folder / "eval.jsonl").write_text("\n".join(lines) + "\n")


def test_planted_curves_are_recovered_by_the_updates_before_each_step(folders: list[Path]) -> None:
    found = fits_over_steps(load_study(folders, y="monitor/gold", x=None))
    assert found.figure == "monitor/gold"
    for coef, (limit, _, exponent) in WORDS.items():
        fit = found.fits[f"update.kl_coef={coef:g}"]
        assert fit is not None
        assert fit.limit.mean == pytest.approx(0.3 + limit + 0.03, abs=1e-3)
        assert fit.exponent.mean == pytest.approx(exponent, rel=1e-3)
        assert (fit.first, fit.last, fit.runs) == (1, STEPS - 1, 5)


def test_evaluations_during_training_come_first_if_all_runs_have_them(folders: list[Path], tmp_path: Path) -> None:
    runs = copies(folders[:6:5], tmp_path)
    steps = (0, 5, 10, 20, 30)
    values = {step: 0.9 - (0.0 if step == 0 else 1 / step) for step in steps}
    for run in runs:
        add_evaluations(run, steps, values)
    found = fits_over_steps(load_study(runs, y="eval/gold", x=None))
    assert found.figure == "eval/gold during training"
    fit = found.fits["update.kl_coef=0.2"]
    assert fit is not None
    assert (fit.first, fit.last) == (5, 30), "after so many updates"
    assert fit.limit.mean == pytest.approx(0.9, abs=1e-3)
    add_evaluations(runs[0], steps[-2:], values)
    found = fits_over_steps(load_study(runs, y="eval/gold", x=None))
    assert found.figure == "monitor/gold on training prompts"


def test_the_tables_name_the_figure_the_doubts_and_what_is_beyond_the_data(folders: list[Path], tmp_path: Path) -> None:
    runs = copies(folders, tmp_path)
    cut(runs[-1], 3)
    text = step_tables(load_study(runs, y="monitor/gold", x=None), [10.0, 100.0])
    assert text.startswith("## Over steps\n\nmonitor/gold, mean of the runs")
    assert "| update.kl_coef=0.1 | 5    | 1 to 29 | 0.830 |" in text
    assert "- update.kl_coef=0.2: no fit; its runs share fewer than 4 steps after the first update." in text
    assert "beyond the data, 1 to 29" in text
    few = step_tables(load_study(runs[:3], y="monitor/gold", x=None))
    assert "too few runs" in few
    assert "3 of the 5 runs that an interval needs: L_inf and a cannot be judged." in few
    assert "|" not in step_tables(load_study(runs[-1:], y="monitor/gold", x=None), [1.0])


def test_a_figure_without_steps_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(1, 0.1, 0.0)], {"eval/else": 0.5}, "seed=1")
    with pytest.raises(InputError, match="--over steps: no run has eval/else over its steps"):
        fits_over_steps(load_study([tmp_path / "a"], y="eval/else", x=None))


def test_the_command_adds_the_tables(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder) for folder in folders[:3]]
    assert main(["compare", *words, "--y", "monitor/gold"]) == 0
    before = capsys.readouterr().out
    assert main(["compare", *words, "--y", "monitor/gold", "--over", "steps", "--at-steps", "10,99"]) == 0
    after = capsys.readouterr().out
    assert after.startswith(before)
    assert after.removeprefix(before).startswith("\n## Over steps\n")
    assert "beyond the data" in after
