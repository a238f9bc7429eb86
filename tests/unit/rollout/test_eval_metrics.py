"""Metrics of an evaluation against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest

from rlkl.rollout.eval_metrics import estimate, evaluation_metrics, pass_at_k, pass_metrics, powers_of_two, worst_tenth
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 2), (5, 2, 3), (6, 0, 4), (6, 6, 1), (8, 3, 8), (3, 2, 2)])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_sample(n: int, c: int, k: int):
    choices = list(combinations([True] * c + [False] * (n - c), k))

    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_is_reported_for_powers_of_two():
    assert [powers_of_two(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8]]
    # two of four right, and none: (1/2 + 0) / 2, (1 - 1/6 + 0) / 2, (1 + 0) / 2
    found = pass_metrics([[1.0, 1.0, 0.0, 0.0], [0.0] * 4], samples=4)
    assert found == pytest.approx({"eval/pass@1": 0.25, "eval/pass@2": 5 / 12, "eval/pass@4": 0.5})
    assert pass_metrics([[1.0, 0.5]], samples=2) == {}


def test_a_prompt_that_lost_scores_does_not_count_where_it_has_too_few():
    assert pass_metrics([[1.0], [0.0, 0.0]], samples=2) == {"eval/pass@1": 0.5, "eval/pass@2": 0.0}


def test_the_worst_tenth_is_of_prompts_and_not_of_samples():
    rewards = [[0.0, 1.0], [1.0], [0.25, 0.25], *([[1.0, 0.0, 1.0]] * 8)]  # means 1/2, 1, 1/4, and eight of 2/3
    assert worst_tenth(rewards) == {"eval/reward_worst_tenth": (0.25 + 0.5) / 2}, "two of eleven prompts"
    assert worst_tenth(rewards[:10]) == {"eval/reward_worst_tenth": 0.25}
    assert worst_tenth([*rewards[:9], []]) == {}, "a prompt without a score does not count"
    assert worst_tenth(list(reversed(rewards))) == worst_tenth(rewards)


def test_the_standard_error_is_clustered_by_prompt():
    """The prompts' means are 1, 2, 6: mean 3, deviation sqrt(7), error sqrt(7 / 3), whatever is within them."""
    found = estimate([[0.0, 2.0], [2.0, 2.0], [5.0, 7.0]])

    assert found is not None
    assert (found.mean, found.error) == (3.0, pytest.approx(math.sqrt(7 / 3)))


def test_clusters_of_unequal_sizes_by_hand():
    """Mean 2 of four values; the residuals sum to -2, 0 and 2; sqrt(3 / 2 * 8) / 4."""
    found = estimate([[1.0, 1.0], [2.0], [], [4.0]])

    assert found is not None
    assert (found.mean, found.error) == (2.0, pytest.approx(math.sqrt(12) / 4))


def test_one_prompt_has_no_standard_error_and_no_value_no_estimate():
    alone = estimate([[1.0, 3.0]])
    assert alone is not None
    assert (alone.mean, alone.error) == (2.0, None)
    assert estimate([[], []]) is None


def group(rewards: Sequence[float], gold: Sequence[float | None], *, lengths: Sequence[int]) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            sample_index=index,
            completion=Completion(
                token_ids=(1,) * length, logprobs=None, finish_reason="length" if length > 2 else "stop"
            ),
            reward=reward,
            components={} if math.isnan(reward) else {"right": reward},
            monitors={} if worth is None else {"gold": worth},
            failed=("right",) if math.isnan(reward) else (),
            weights_version=3,
        )
        for index, (reward, worth, length) in enumerate(zip(rewards, gold, lengths, strict=True))
    )
    return RolloutGroup(prompt=Prompt(id="p", text="", token_ids=(1,)), rollouts=rollouts)


def test_all_metrics_of_a_small_evaluation():
    sampled = [
        group([1.0, 0.0], [0.5, None], lengths=[1, 3]),
        group([1.0, float("nan")], [0.1, 0.3], lengths=[2, 2]),
    ]
    greedy = [group([1.0], [0.0], lengths=[1]), group([0.0], [0.0], lengths=[1])]

    found = evaluation_metrics(sampled, greedy, [1.0, 2.0, 3.0, 4.0])

    assert found == pytest.approx(
        {
            "eval/mean": 2 / 3,
            "eval/mean_se": math.sqrt(2 * (1 / 9 + 1 / 9)) / 3,  # residuals 1/3 - 2/3 and 1/3
            "eval/right": 2 / 3,
            "eval/right_se": math.sqrt(4 / 9) / 3,
            "eval/gold": 0.3,
            "eval/gold_se": math.sqrt(2 * (0.2**2 + 0.2**2)) / 3,
            "eval/greedy": 0.5,
            "eval/greedy_se": 0.5,
            "eval/pass@1": 0.75,
            "eval/pass@2": 1.0,
            "eval/kl": 2.5,
            "eval/kl_se": 1.0,
            "eval/length_mean": 2.0,
            "eval/truncated_fraction": 0.25,
            "eval/failed": 1.0,
        }
    )


def test_without_gaps_there_is_no_kl_and_without_greedy_completions_no_greedy():
    found = evaluation_metrics([group([0.3], [None], lengths=[1])], [])

    assert found == {
        "eval/mean": 0.3,
        "eval/right": 0.3,
        "eval/length_mean": 1.0,
        "eval/truncated_fraction": 0.0,
        "eval/failed": 0.0,
    }
