"""Arms against a baseline: tests, power and verdicts of numbers that are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rlkl.analysis.against import Against, Design, against_all

SCORES = Design(is_paired=False, is_score=True)
PAIRS = Design(is_paired=True, is_score=True)


def against(design: Design, base: Sequence[float], **arms: Sequence[float]) -> dict[str, Against]:
    """Compare arms with a baseline; the figures are of the seeds 0, 1, 2, ..."""
    tables = {name: dict(enumerate(values)) for name, values in {"base": base, **arms}.items()}
    found, uncompared = against_all(tables, dict.fromkeys(arms, "base"), design)
    assert uncompared == {}
    return {one.name: one for one in found}


def test_correlated_pairs_need_few_seeds() -> None:
    row = against(PAIRS, [0.0, 1.0, 2.0, 3.0], arm=[0.01, 1.03, 2.005, 3.02])["arm"]
    assert 0.05 < row.difference.p < 0.1
    assert row.needed is not None
    assert 4 < row.needed < 10
    assert row.verdict == f"not distinguishable with 4 seeds; 80% power for this gap needs about {row.needed}"


def test_holm_is_no_reason_for_a_single_comparison() -> None:
    row = against(PAIRS, [0.0, 0.9, 1.0], arm=[3.0, 2.2, 2.0])["arm"]
    assert 0.05 < row.difference.p == row.adjusted_p
    assert row.verdict == f"not distinguishable with 3 seeds; 80% power for this gap needs about {row.needed}"


def test_holm_is_named_if_the_gap_is_shown_without_it() -> None:
    base, arm = [0.0, 0.1, 0.2], [0.33, 0.4, 0.5]
    alone = against(SCORES, base, arm=arm)["arm"]
    assert 0.01 < alone.difference.p < 0.05
    assert "better" in alone.verdict
    others = {f"other{n}": [0.0, 0.1, 0.3] for n in range(5)}
    row = against(SCORES, base, arm=arm, **others)["arm"]
    assert row.adjusted_p > 0.05
    assert "after Holm's correction" in row.verdict


def test_a_figure_that_is_no_score_is_higher_or_lower() -> None:
    for arm, word in (([5.0, 5.1, 5.2, 5.3, 5.4], "higher"), ([-5.0, -5.1, -5.2, -5.3, -5.4], "lower")):
        base = [0.0, 0.1, 0.2, 0.3, 0.4]
        assert against(Design(is_paired=False, is_score=False), base, arm=arm)["arm"].verdict == word


def test_unequal_numbers_of_seeds_are_both_named() -> None:
    row = against(SCORES, [0.0, 0.1, 0.2, 0.1, 0.1], arm=[0.0, 0.3])["arm"]
    assert row.verdict.startswith("not distinguishable with 2 and 5 seeds")


def test_arms_without_a_test_have_a_reason() -> None:
    tables = {"base": {1: 0.1, 2: 0.2}, "one": {1: 0.1}, "none": {}, "other seeds": {3: 0.1, 4: 0.2}}
    references: dict[str, str] = {name: "base" for name in tables if name != "base"}
    assert against_all(tables, references, PAIRS) == (
        [],
        {
            "one": "one seed has no spread",
            "none": "none has no finished run with this figure",
            "other seeds": "the arms share fewer than two seeds",
        },
    )
    assert list(against_all(tables, references, SCORES)[1]) == ["one", "none"]


def test_the_smallest_exact_p_of_pairs() -> None:
    assert against(PAIRS, [0.0, 0.0, 0.0], arm=[1.0, 1.1, 1.2])["arm"].smallest_p == pytest.approx(0.25)
