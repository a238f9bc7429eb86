"""Which entries of a sweep are compared with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkl.analysis.compare import Comparison, compare
from rlkl.analysis.compare_text import markdown
from rlkl.errors import InputError
from tests.unit.analysis.planted import gao_course, planted_sweep


def sweep(root: Path, arms: Mapping[str, Sequence[float]], *, baseline: str | None = "GRPO", **more: Any) -> Path:
    """Write a sweep of arms with these KL weights, two seeds each."""
    course = gao_course(0.3, 0.1, noise=0.02)
    values = {
        "name": "weights",
        "arms": {name: {"recipe": "quickstart", "vary": {"update.kl_coef": coefs}} for name, coefs in arms.items()},
        **({} if baseline is None else {"baseline": baseline}),
    }
    failed = more.pop("failed", ())
    planted_sweep(
        root,
        {**values, **(more or {"seeds": 2})},
        lambda run: course(run.seed, 0.9 / run.point.values["update.kl_coef"]),
        failed=failed,
    )
    return root


def pairs(found: Comparison) -> list[tuple[str, str]]:
    return [(row.name, row.baseline) for row in found.against]


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep(tmp_path_factory.mktemp("baseline") / "grids", {"PPO": [0.1, 0.2], "GRPO": [0.1, 0.2]})


def test_points_are_compared_with_the_equal_points_of_the_baseline(grids: Path) -> None:
    found = compare([grids], y="eval/gold", at_kl=[6.0])
    assert found.baseline == "GRPO"
    assert pairs(found) == [("PPO kl_coef=0.1", "GRPO kl_coef=0.1"), ("PPO kl_coef=0.2", "GRPO kl_coef=0.2")]
    assert dict(found.uncompared) == {}
    assert [(row.name, row.baseline) for row in found.against_at_kl[6.0]] == [("PPO", "GRPO")]
    text = markdown(found)
    assert "## Against GRPO\n\nEach point is compared with the equal point of GRPO." in text


def test_an_arm_and_a_point_can_be_asked_for(grids: Path) -> None:
    assert pairs(compare([grids], y="eval/gold", baseline="PPO")) == [
        ("GRPO kl_coef=0.1", "PPO kl_coef=0.1"),
        ("GRPO kl_coef=0.2", "PPO kl_coef=0.2"),
    ]
    found = compare([grids], y="eval/gold", baseline="PPO kl_coef=0.2")
    assert [base for _, base in pairs(found)] == ["PPO kl_coef=0.2"] * 3
    assert "Each point is compared" not in markdown(found)
    with pytest.raises(InputError, match="did you mean 'PPO'"):
        compare([grids], baseline="PPOO")


def test_points_that_the_baseline_lacks_are_named(tmp_path: Path) -> None:
    found = compare([sweep(tmp_path / "some", {"PPO": [0.1, 0.4], "GRPO": [0.1, 0.2]})], y="eval/gold")
    assert pairs(found) == [("PPO kl_coef=0.1", "GRPO kl_coef=0.1")]
    assert "- PPO kl_coef=0.4: no test, because GRPO has no point kl_coef=0.4." in markdown(found)


def test_a_baseline_without_any_equal_point_is_refused(tmp_path: Path) -> None:
    root = sweep(tmp_path / "none", {"PPO": [0.3, 0.4], "GRPO": [0.1, 0.2]})
    with pytest.raises(InputError, match=r"--baseline 'GRPO kl_coef=0\.1', --baseline 'GRPO kl_coef=0\.2'"):
        compare([root], y="eval/gold")
    assert len(compare([root], y="eval/gold", baseline="GRPO kl_coef=0.1").against) == 3


def test_without_a_baseline_the_first_entry_is_taken(tmp_path: Path) -> None:
    root = sweep(tmp_path / "first", {"PPO": [0.3, 0.4]}, baseline=None)
    assert pairs(compare([root], y="eval/gold")) == [("PPO kl_coef=0.4", "PPO kl_coef=0.3")]


def test_a_baseline_whose_selection_failed_is_not_replaced(tmp_path: Path) -> None:
    more = {"select": {"seeds": [0], "by": "eval/gold"}, "final": {"seeds": 2}, "failed": [("GRPO", 0)]}
    root = sweep(tmp_path / "failed", {"PPO": [0.1, 0.2], "SuperHF": [0.1, 0.2], "GRPO": [0.1, 0.2]}, **more)
    found = compare([root])
    assert (found.baseline, pairs(found)) == ("GRPO", [])
    assert dict(found.uncompared) == dict.fromkeys(("PPO", "SuperHF"), "the baseline GRPO has no reported run")
