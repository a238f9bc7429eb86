"""Figures of a comparison are measured one way: held-out and training figures, and their starts, are kept apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlkl.analysis.compare import Comparison, compare
from rlkl.analysis.compare_text import markdown
from rlkl.analysis.frontier_chart import frontier_chart
from rlkl.errors import InputError
from tests.unit.analysis.planted import START, gao_course, planted_sweep, record, write_run

EASIER = 0.15
"""So much higher is the figure on held-out prompts than on those of training, before training and after."""


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change each JSON object of a file."""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    if records is None:
        values = json.loads(path.read_text())
        change(values["metrics"])
        path.write_text(json.dumps(values))
    else:
        for one in records:
            change(one)
        path.write_text("".join(json.dumps(one) + "\n" for one in records))


@pytest.fixture(scope="module")
def easier(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A sweep whose held-out prompts are easier than those of training."""
    root = tmp_path_factory.mktemp("alike") / "easier"
    arms = {name: {"recipe": "quickstart", "set": {"update.kl_coef": coef}} for name, coef in (("A", 0.1), ("B", 0.2))}
    run = gao_course(0.3, 0.1, noise=0.01)
    planted_sweep(root, {"name": "easier", "arms": arms, "seeds": 3}, lambda one: run(one.seed, 4.0))
    for path in root.glob("**/evaluation.json"):
        rewrite(path, lambda metrics: metrics.update({"eval/gold": metrics["eval/gold"] + EASIER}))
    return compare([root], y="eval/gold", at_kl=[1.0])


def test_a_fit_of_training_starts_where_training_starts(easier: Comparison) -> None:
    fitted = easier.fits["A"]
    assert fitted is not None
    assert (fitted.source, fitted.figure) == ("trajectory", "monitor/gold on training prompts")
    assert easier.study.untrained["A"] == pytest.approx(START + EASIER)
    assert fitted.start == pytest.approx(START, abs=0.005)
    assert (fitted.fit.a.mean, fitted.fit.b.mean) == pytest.approx((0.3, 0.1), abs=0.02)


def test_residuals_are_of_the_fitted_points(easier: Comparison) -> None:
    frontier, residuals = frontier_chart(easier).to_dict()["vconcat"]
    rows = residuals["layer"][1]["data"]["values"]
    fits = [found for found in easier.fits.values() if found is not None]
    assert len(rows) == sum(len(points) for found in fits for points in found.points.values())
    assert abs(np.mean([row["residual"] for row in rows])) < 0.005
    assert residuals["title"] == "Residuals of the fits: monitor/gold on training prompts"
    titles = {layer["encoding"]["y"]["title"] for layer in frontier["layer"]}
    assert titles == {"eval/gold (marks), monitor/gold on training prompts (lines)"}
    x = frontier["layer"][0]["encoding"]["x"]["title"]
    assert x == "KL to the reference, nats: eval/kl (marks), kl/policy_to_reference (lines)"


def dotted(comparison: Comparison) -> dict[str, float]:
    """Return the value of each dotted line of a frontier by its name."""
    (frontier, *_) = frontier_chart(comparison).to_dict().get("vconcat", [frontier_chart(comparison).to_dict()])
    rules = [layer for layer in frontier["layer"] if layer["mark"]["type"] == "rule"]
    texts = [layer for layer in frontier["layer"] if layer["mark"]["type"] == "text"]
    assert [rule["data"] for rule in rules] == [text["data"] for text in texts]
    return {one["label"]: one["value"] for rule in rules for one in rule["data"]["values"]}


def test_marks_and_lines_of_different_figures_have_an_untrained_line_each(easier: Comparison, tmp_path: Path) -> None:
    found = dotted(easier)
    assert list(found) == [
        "untrained, eval/gold (marks)",
        "untrained, monitor/gold on training prompts (lines)",
    ]
    assert list(found.values()) == pytest.approx([START + EASIER, START], abs=0.005)
    plan = {"name": "same", "arms": {"A": {"recipe": "quickstart"}}, "seeds": 2}
    run = gao_course(0.3, 0.1)
    planted_sweep(tmp_path / "same", plan, lambda one: run(one.seed, 4.0))
    same = dotted(compare([tmp_path / "same"], y="monitor/gold"))
    assert list(same) == ["untrained, monitor/gold"]


def test_tables_name_the_figure_of_training(easier: Comparison) -> None:
    text = markdown(easier)
    assert "## monitor/gold on training prompts at KL 1\n" in text
    assert text.count("Rows from training are monitor/gold on training prompts over kl/policy_to_reference.") == 2


def test_arms_are_compared_at_one_kl_only_by_one_figure(tmp_path: Path) -> None:
    """The arm with a grid is known by the ends of its runs, the others by their training."""
    weights = {"vary": {"update.kl_coef": [0.1, 0.2]}}
    arms = {"A": {"set": {"update.kl_coef": 0.1}}, "B": {"set": {"update.kl_coef": 0.2}}, "grid": weights}
    plan = {"name": "mixed", "arms": {name: {"recipe": "quickstart", **arm} for name, arm in arms.items()}, "seeds": 2}
    run = gao_course(0.3, 0.1, noise=0.01)
    planted_sweep(
        tmp_path / "mixed", plan, lambda one: run(one.seed, 0.9 / one.point.values.get("update.kl_coef", 0.1))
    )
    found = compare([tmp_path / "mixed"], y="eval/gold", at_kl=[6.0])
    assert {one.name: one.figure for one in found.at_kl} == {
        "A": "monitor/gold on training prompts",
        "B": "monitor/gold on training prompts",
        "grid": "eval/gold",
    }
    assert [row.name for row in found.against_at_kl[6.0]] == ["B"]
    text = markdown(found)
    assert "## monitor/gold on training prompts and eval/gold at KL 6\n" in text
    assert "Two arms are compared only if both have the same figure." in text


def runs(root: Path, change: Callable[[int, list[dict]], object] = lambda seed, records: None) -> list[Path]:
    """Write three runs of two arms; ``change`` may change the records of a seed."""
    for coef, gain in ((0.1, 0.2), (0.2, 0.4)):
        for seed in (1, 2, 3):
            records = [record(step, 0.1, gain + seed / 100) for step in range(1, 21)]
            change(seed, records)
            write_run(root / f"{coef}-{seed}", records, {}, f"seed={seed}", f"update.kl_coef={coef}")
    return sorted(root.iterdir())


def test_a_monitor_that_abstained_at_the_last_step_loses_no_run(tmp_path: Path) -> None:
    def abstain(seed: int, records: list[dict]) -> None:
        if seed == 3:
            del records[-1]["monitor/gold"]

    found = compare(runs(tmp_path, abstain), y="monitor/gold")
    assert [len(summary.entry.runs) for summary in found.summaries] == [3, 3]


def test_finished_runs_without_the_figure_are_named(tmp_path: Path) -> None:
    def silent(seed: int, records: list[dict]) -> None:
        for one in records if seed == 3 else ():
            del one["monitor/gold"]

    found = compare(runs(tmp_path, silent), y="monitor/gold")
    assert [list(summary.entry.without_figure) for summary in found.summaries] == [[3], [3]]
    assert [list(summary.entry.missing) for summary in found.summaries] == [[], []]
    assert markdown(found).count("has finished runs without monitor/gold, seeds 3; they are not compared.") == 2


def test_finished_runs_of_a_sweep_without_the_figure_are_named(tmp_path: Path) -> None:
    plan = {"name": "silent", "arms": {"A": {"recipe": "quickstart"}}, "seeds": 3}
    run = gao_course(0.3, 0.1)
    root = tmp_path / "silent"
    planted_sweep(root, plan, lambda one: run(one.seed, 4.0))
    (path,) = root.glob("**/seed-2/metrics.jsonl")
    rewrite(path, lambda one: one.pop("monitor/gold"))
    (entry,) = compare([root], y="monitor/gold").study.entries
    assert (list(entry.without_figure), list(entry.missing)) == ([2], [])
    assert [one.seed for one in entry.runs] == [1, 3]


def test_a_run_that_waits_for_its_evaluation_changes_no_axis(tmp_path: Path) -> None:
    plan = {"name": "waiting", "arms": {"A": {"recipe": "quickstart"}}, "seeds": 3}
    run = gao_course(0.3, 0.1)
    root = tmp_path / "waiting"
    planted_sweep(root, plan, lambda one: run(one.seed, 4.0))
    (path,) = root.glob("**/seed-2/evaluation.json")
    path.unlink()
    study = compare([root]).study
    assert (study.y, study.x) == ("eval/mean", "eval/kl")
    (entry,) = study.entries
    assert (list(entry.missing), list(entry.without_figure)) == ([2], [])
    assert len(compare([root], y="reward/mean").study.entries[0].runs) == 3


def test_a_time_is_higher_or_lower_and_never_collapses(tmp_path: Path) -> None:
    """The first step is a slow one, and the second arm is slower."""

    def slow(seed: int, records: list[dict]) -> None:
        for one in records:
            one["time/step_s"] = 9.0 if one["step"] == 1 else 10 * one["monitor/gold"]

    found = compare(runs(tmp_path, slow), y="time/step_s")
    (row,) = found.against
    assert row.verdict.startswith("higher by the t test")
    assert [list(summary.collapsed) for summary in found.summaries] == [[], []]
    text = markdown(found)
    for word in ("better", "collapsed", "untrained", "worst"):
        assert word not in text
    assert "lowest" in text


def test_a_kl_that_no_run_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--x kl/policy_to_referenc: no run has this figure"):
        compare(runs(tmp_path), x="kl/policy_to_referenc")


def test_without_a_finished_run_there_is_nothing_to_compare(tmp_path: Path) -> None:
    (folder, *_) = runs(tmp_path)
    (folder / "policy").rmdir()
    with pytest.raises(InputError, match="no run is finished yet"):
        compare([folder])


def test_the_start_of_another_evaluation_is_not_taken(tmp_path: Path) -> None:
    """The folders of a sweep's runs have its evaluation, and their own, of other prompts, during training."""
    write_run(tmp_path / "a", [record(step, 0.1, 0.2) for step in range(1, 21)], {"eval/gold": 0.4}, "seed=1")
    lines = [{"step": step, "eval/gold": 0.5, "eval/kl": step / 20} for step in (0, 5, 10, 20)]
    (tmp_path / "a" / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare([tmp_path / "a"], y="eval/gold")
    (summary,) = found.summaries
    assert (summary.entry.values, summary.entry.untrained, list(summary.collapsed)) == ([0.4], None, [])
    assert found.study.course_figure == "eval/gold during training"
