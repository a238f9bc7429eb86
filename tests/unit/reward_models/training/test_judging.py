from __future__ import annotations

import math

import pytest

from reward_models.training.judging import ScoredPair, agreement, calibration, confidence, judge, log_loss, ranks


def pair(difference: float, probability: float = 1.0) -> ScoredPair:
    return ScoredPair(chosen=difference, rejected=0.0, probability=probability)


SURE_OF_0_75 = math.log(3)
"""Bradley and Terry's probability of this difference is 3/4."""


def test_loss_of_a_sure_and_of_a_soft_label():
    assert log_loss(pair(SURE_OF_0_75)) == pytest.approx(-math.log(0.75))
    assert log_loss(pair(-SURE_OF_0_75)) == pytest.approx(-math.log(0.25))
    assert log_loss(pair(SURE_OF_0_75, 0.6)) == pytest.approx(-0.6 * math.log(0.75) - 0.4 * math.log(0.25))
    assert log_loss(pair(0.0, 0.3)) == pytest.approx(math.log(2))


def test_large_differences_do_not_overflow():
    assert log_loss(pair(-2000.0)) == 2000.0
    assert log_loss(pair(2000.0)) == 0.0
    assert confidence(pair(-2000.0)) == 1.0


def test_accuracy_counts_a_tie_as_half_and_a_soft_label_by_its_probability():
    assert judge([pair(1.0), pair(-1.0), pair(0.0), pair(2.0)]).accuracy == 0.625
    assert judge([pair(1.0, 0.7), pair(-1.0, 0.7)]).accuracy == pytest.approx(0.5)
    assert judge([pair(1.0, 0.7)]).accuracy == pytest.approx(0.7)


def test_calibration_puts_pairs_where_the_model_is_so_sure():
    bins = calibration([pair(SURE_OF_0_75), pair(SURE_OF_0_75), pair(-SURE_OF_0_75), pair(0.0), pair(9.0)], bins=5)
    assert [(b.low, b.high) for b in bins] == [(0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0)]
    assert [b.pairs for b in bins] == [1, 0, 3, 0, 1]
    assert bins[2].confidence == pytest.approx(0.75)
    assert bins[2].accuracy == pytest.approx(2 / 3)
    assert (bins[1].confidence, bins[1].accuracy) == (None, None)


def test_calibration_error_is_the_mean_gap():
    three_of_four = [pair(SURE_OF_0_75)] * 3 + [pair(-SURE_OF_0_75)]
    assert judge(three_of_four).calibration_error == pytest.approx(0.0, abs=1e-9)
    assert judge([pair(SURE_OF_0_75)] * 4).calibration_error == pytest.approx(0.25)
    mixed = [*three_of_four, pair(math.log(9)), pair(-math.log(9)), pair(-math.log(9)), pair(-math.log(9))]
    assert judge(mixed).calibration_error == pytest.approx(0.5 * 0.0 + 0.5 * (0.9 - 0.25))


def test_scores_are_summed_up_over_both_answers():
    found = judge([ScoredPair(chosen=3.0, rejected=1.0), ScoredPair(chosen=2.0, rejected=2.0)])
    assert (found.pairs, found.score_mean) == (2, 2.0)
    assert found.score_std == pytest.approx(math.sqrt(0.5))


def test_agreement_of_a_model_with_itself_and_with_its_opposite():
    pairs = [pair(1.0), pair(-2.0), pair(0.5), ScoredPair(chosen=4.0, rejected=7.0)]
    opposite = [ScoredPair(chosen=-one.chosen, rejected=-one.rejected) for one in pairs]
    itself = agreement(pairs, pairs)
    assert itself.ranked_alike == 1.0
    assert itself.pearson == pytest.approx(1.0)
    assert itself.spearman == pytest.approx(1.0)
    against = agreement(pairs, opposite)
    assert against.ranked_alike == 0.0
    assert against.pearson == pytest.approx(-1.0)
    assert against.spearman == pytest.approx(-1.0)


def test_spearman_sees_order_only():
    first = [ScoredPair(chosen=1.0, rejected=2.0), ScoredPair(chosen=3.0, rejected=4.0)]
    second = [ScoredPair(chosen=1.0, rejected=10.0), ScoredPair(chosen=100.0, rejected=1000.0)]
    found = agreement(first, second)
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson == pytest.approx(1543.5 / math.sqrt(5 * 701520.75))


def test_ties_agree_with_ties_only():
    assert agreement([pair(0.0), pair(0.0)], [pair(0.0), pair(1.0)]).ranked_alike == 0.5


def test_a_model_that_gives_one_score_to_all_has_no_correlation():
    found = agreement([pair(0.0), pair(0.0)], [pair(1.0), pair(2.0)])
    assert (found.pearson, found.spearman) == (None, None)


def test_equal_values_share_their_ranks():
    assert ranks([5.0, 1.0, 5.0, 5.0, 0.0]) == [4.0, 2.0, 4.0, 4.0, 1.0]
