"""Comparisons of planted sweeps and runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import rlkl
from rlkl.analysis.compare import Comparison, compare
from rlkl.analysis.compare_text import markdown
from rlkl.analysis.sweep_plan import PlannedRun
from rlkl.errors import InputError
from tests.unit.analysis.planted import START, gao_course, planted_sweep, record, write_run

WEIGHTS = [0.05, 0.1, 0.2, 0.4, 0.8]
AB = {"GRPO": (0.30, 0.16), "strong": (0.36, 0.12)}
"""A and B of each arm; GRPO's peak is at KL 5.8, within its grid."""


def course(run: PlannedRun) -> list[tuple[float, float]]:
    """A run whose last KL falls with its weight, and whose gain follows Gao's curve of its arm."""
    last = 14 / (run.point.values["update.kl_coef"] / 0.05) ** 0.8 * (1 + run.seed / 100)
    return gao_course(*AB[run.arm.name], noise=0.02)(run.seed * 10 + len(run.arm.name), last)


def arm(weights: list[float] = WEIGHTS) -> dict:
    return {"recipe": "quickstart", "vary": {"update.kl_coef": weights}}


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that chose a point of each arm; one run of the second arm failed."""
    root = tmp_path_factory.mktemp("selected") / "rules"
    values = {
        "name": "rules",
        "baseline": "GRPO",
        "arms": {"GRPO": arm(), "strong": arm()},
        "select": {"seeds": [0], "by": "eval/gold"},
        "final": {"seeds": 5},
    }
    planted_sweep(root, values, course, failed=[("strong", 3)])
    return root


@pytest.fixture(scope="module")
def comparison(selected: Path) -> Comparison:
    return compare([selected], at_kl=[2.0, 100.0])


@pytest.fixture(scope="module")
def of_grid(grid: Path) -> Comparison:
    return compare([grid], y="eval/gold", at_kl=[4.0])


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of which every point has all seeds."""
    root = tmp_path_factory.mktemp("grid") / "weights"
    planted_sweep(root, {"name": "weights", "arms": {"GRPO": arm()}, "seeds": 4}, course)
    return root


def test_the_table_is_the_same_each_time_and_wherever_the_folder_is(
    comparison: Comparison, selected: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(selected, moved)
    assert markdown(compare([moved], at_kl=[2.0, 100.0])) == markdown(comparison)


def test_the_tables_are_as_recorded(comparison: Comparison) -> None:
    recorded = Path(__file__).with_name("planted_comparison.md")
    assert markdown(comparison) == recorded.read_text(encoding="utf-8")


def test_reported_are_the_final_seeds_of_the_chosen_points(comparison: Comparison) -> None:
    study = comparison.study
    assert (study.y, study.x, comparison.baseline) == ("eval/gold", "eval/kl", "GRPO")
    first, second = comparison.summaries
    assert [run.seed for run in first.entry.runs] == [1, 2, 3, 4, 5]
    assert [run.seed for run in second.entry.runs] == [1, 2, 4, 5]
    assert (list(second.entry.failed), list(second.entry.missing)) == ([3], [])
    assert first.entry.untrained == START
    text = markdown(comparison)
    assert f"**{first.entry.point}: " in text
    assert "| strong | 4     | 1      |" in text
    assert "- strong: better." in text


def test_every_seed_is_shown(comparison: Comparison) -> None:
    text = markdown(comparison)
    for summary in comparison.summaries:
        assert " ".join(f"{value:.3f}" for value in summary.entry.values) in text


def test_the_best_point_at_the_edge_of_its_grid_is_flagged(comparison: Comparison) -> None:
    rows = {row.arm: row for row in comparison.study.selection}
    assert list(rows["GRPO"].at_edge) == []
    assert list(rows["strong"].at_edge) == ["update.kl_coef"]
    text = markdown(comparison)
    assert text.count("Sweep further") == 1
    assert "- strong: kl_coef=0.05 is at the edge" in text


def test_selected_arms_are_compared_at_one_kl_along_their_training(comparison: Comparison) -> None:
    by_arm = {one.name: one for one in comparison.at_kl if one.kl == 2.0}
    assert by_arm["GRPO"].source == "trajectory"
    assert by_arm["GRPO"].estimate is not None
    a, b = AB["GRPO"]
    assert by_arm["GRPO"].estimate.mean == pytest.approx(START + np.sqrt(2) * (a - b * np.log(np.sqrt(2))), abs=0.03)
    assert all(one.estimate is None for one in comparison.at_kl if one.kl == 100.0)
    assert list(comparison.against_at_kl[100.0]) == []
    assert "not reached" in markdown(comparison)


def test_a_grid_is_compared_between_its_end_points(of_grid: Comparison) -> None:
    (one,) = of_grid.at_kl
    a, b = AB["GRPO"]
    assert one.source == "points"
    assert one.estimate is not None
    assert one.estimate.mean == pytest.approx(START + 2 * (a - b * np.log(2)), abs=0.03)
    assert [entry.name for entry in of_grid.study.entries] == [f"GRPO kl_coef={weight:g}" for weight in WEIGHTS]


def test_planted_coefficients_are_recovered_from_the_folders(of_grid: Comparison) -> None:
    fitted = of_grid.fits["GRPO"]
    assert fitted is not None
    assert (fitted.source, fitted.fit.form) == ("points", "log")
    assert (fitted.fit.a.mean, fitted.fit.b.mean) == pytest.approx(AB["GRPO"], abs=0.02)
    assert fitted.fit.peak_kl == pytest.approx(np.exp(0.30 / 0.16 - 1) ** 2, rel=0.25)


def test_the_weight_moves_the_point_and_not_the_frontier(of_grid: Comparison) -> None:
    test = of_grid.tests["GRPO"]
    assert test is not None
    assert test.p > 0.05
    assert "the frontier is not shown to move with kl_coef" in markdown(of_grid)


def test_a_gap_that_few_seeds_do_not_show(tmp_path: Path) -> None:
    for coef, values in ((0.1, (0.50, 0.56, 0.47)), (0.2, (0.52, 0.58, 0.51))):
        for seed, value in enumerate(values, start=1):
            records = [record(step, 0.1, value) for step in range(1, 3)]
            write_run(tmp_path / f"{coef}-{seed}", records, {}, f"seed={seed}", f"update.kl_coef={coef}")
    found = compare(sorted(tmp_path.iterdir()))
    assert found.study.y == "reward/mean"
    (row,) = found.against
    assert "not distinguishable with 3 seeds; 80% power for this gap needs about" in row.verdict
    assert row.improvement is None
    assert row.smallest_p == pytest.approx(0.1)


def test_three_seeds_that_differ_clearly_pass_the_t_test_only(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for coef, mean in ((0.1, 0.5), (0.2, 0.9)):
            records = [record(step, 0.1, mean + seed / 100) for step in range(1, 3)]
            write_run(tmp_path / f"{coef}-{seed}", records, {}, f"seed={seed}", f"update.kl_coef={coef}")
    (row,) = compare(sorted(tmp_path.iterdir())).against
    assert row.verdict == "better by the t test; the exact test gives p = 0.1, and it cannot go below 0.1 with 3 seeds"
    (pair,) = compare(sorted(tmp_path.iterdir()), is_paired=True).against
    assert pair.exact_p == pytest.approx(0.25)


def test_collapsed_runs_are_counted_and_warned_about(tmp_path: Path) -> None:
    for seed, end in ((1, 0.2), (2, 0.25), (3, -0.2)):
        records = [record(step, 0.1, 0.0 if step == 1 else end) for step in range(1, 21)]
        write_run(tmp_path / str(seed), records, {}, f"seed={seed}")
    (summary,) = compare(sorted(tmp_path.iterdir())).summaries
    assert list(summary.collapsed) == [3]
    text = markdown(compare(sorted(tmp_path.iterdir())))
    assert "Warning: 1 of 3 runs of quickstart end below the untrained policy" in text


def test_one_seed_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(1, 0.1, 0.0), record(2, 0.2, 0.1)], {}, "seed=1")
    write_run(tmp_path / "b", [record(1, 0.1, 0.0), record(2, 0.2, 0.3)], {}, "seed=1", "update.kl_coef=0.3")
    found = compare([tmp_path / "a", tmp_path / "b"])
    text = markdown(found)
    assert "one seed: none" in text
    assert "no test, because one seed has no spread" in text
    assert list(found.against) == []


def test_wrong_words_are_refused(selected: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'GRPO'"):
        compare([selected], baseline="GRPOO")
    with pytest.raises(InputError, match="did you mean 'eval/gold'"):
        compare([selected], y="eval/gol")
    with pytest.raises(InputError, match="needs the folder of a sweep"):
        compare([])
    write_run(tmp_path / "a", [record(1, 0.1, 0.0)], {}, "seed=1")
    write_run(tmp_path / "b", [record(1, 0.1, 0.0)], {}, "seed=1")
    with pytest.raises(InputError, match="two runs have the seed 1"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_python_has_the_same_function() -> None:
    assert rlkl.compare is compare
