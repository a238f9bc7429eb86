"""Estimates from rewards: by hand, in simulations of fixed and of shifting buckets, and through JSON."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence

import pytest

from rlkl.data.curriculum.knowledge import BucketLosses, Knowledge, Outcome, PassRates
from rlkl.data.curriculum.probabilities import interest, inverse_gap_kl, inverse_gap_square

BUCKETS = [[0, 1, 2], [3, 4], [5]]
BATCH = 8


def bandit(*, loss: str = "kl", discount: float = 0.99, floor: float = 0.1, buckets: Sequence[list[int]] = BUCKETS):
    return BucketLosses(buckets, loss=loss, discount=discount, floor=floor)


def test_pass_rates_by_hand():
    known = PassRates(4, floor=0.2)
    assert known.probabilities() == pytest.approx([0.25] * 4)
    known.learn([(0, 0.0), (1, 0.25), (2, 1.0), (1, 0.75)])  # the last rate counts; prompt 3 is unseen
    weights = [0.0, 0.75, 0.0, 1.0]
    assert known.probabilities() == pytest.approx([0.05 + 0.8 * w / 1.75 for w in weights])


def test_prompts_that_all_pass_or_all_fail_are_drawn_uniformly():
    known = PassRates(4, floor=0.2)
    known.learn([(n, float(n % 2)) for n in range(4)])
    assert known.probabilities() == pytest.approx([0.25] * 4)


def test_bucket_losses_by_hand():
    known = bandit(discount=0.5)
    assert known.estimates == [0.5, 0.5, 0.5]
    assert known.probabilities() == pytest.approx([1 / 3] * 3)
    known.learn([(0, 0.5), (2, 0.5), (3, 1.0)])  # losses 0, 0 and 1
    known.learn([(1, 0.25), (5, 0.0)])  # losses 0.25 and 1; what came before counts half
    wanted = [(0.25 + 0.5) / (2 + 1), (0.5 + 0.5) / (0.5 + 1), (1 + 0.5) / (1 + 1)]
    assert known.estimates == pytest.approx(wanted)
    assert known.preferences() == pytest.approx(inverse_gap_kl(wanted, 10 * math.sqrt(3.5)))
    square = bandit(discount=0.5, loss="square")
    square.restore(known.state())
    assert square.preferences() == pytest.approx(inverse_gap_square(wanted, 10 * math.sqrt(3.5)))


def test_a_batch_without_outcomes_changes_nothing():
    known = bandit()
    known.learn([(0, 0.5)])
    before = known.state()
    known.learn([])
    assert known.state() == before


def test_a_bucket_that_is_not_drawn_returns_to_the_start():
    known = bandit(discount=0.5)
    known.learn([(0, 1.0)])
    for _ in range(40):
        known.learn([(3, 0.5)])
    assert known.estimates[0] == pytest.approx(0.5)


@pytest.mark.parametrize("known", [PassRates(6, floor=0.3), bandit(floor=0.3)], ids=["pass_rate", "bandit"])
def test_draws_have_the_probabilities(known: Knowledge):
    known.learn([(0, 0.5), (1, 0.25), (3, 1.0), (5, 0.0)])
    draws = [known.choose(seed) for seed in range(20_000)]
    wanted = known.probabilities()
    if isinstance(known, BucketLosses):
        wanted = [p / len(bucket) for p, bucket in zip(wanted, BUCKETS, strict=True) for _ in bucket]
    found = [draws.count(prompt) / len(draws) for prompt in range(6)]
    assert found == pytest.approx(wanted, abs=0.012)
    assert [known.choose(seed) for seed in range(100)] == draws[:100]


RATES = [0.02, 0.98, 0.9, 0.5]
"""Chance to pass in each of four buckets of ten prompts: losses 0.92, 0.92, 0.64 and 0."""
TENS = [list(range(10 * n, 10 * n + 10)) for n in range(4)]


def regret(choose: Callable[[int], int], learn: Callable[[list[Outcome]], object], *, seed: int, shift: bool) -> float:
    """Run 300 batches; return the mean of 1 - 4 p (1 - p) at the true pass rate p. The best bucket has 0."""
    chance, losses = random.Random(seed), []
    for step in range(300):
        rates = RATES[::-1] if shift and step >= 150 else RATES
        outcomes: list[Outcome] = []
        for draw in range(BATCH):
            prompt = choose(1_000_000 * seed + BATCH * step + draw)
            rate = rates[prompt // 10]
            losses.append(1 - interest(rate))
            outcomes.append((prompt, sum(chance.random() < rate for _ in range(16)) / 16))
        learn(outcomes)
    return sum(losses) / len(losses)


def uniform(seed: int, *, shift: bool) -> float:
    return regret(lambda number: random.Random(number).randrange(40), lambda _: None, seed=seed, shift=shift)


def greedy(seed: int, *, shift: bool) -> float:
    """Draw the bucket of least mean loss so far, after each has been tried once."""
    losses, counts = [0.0] * 4, [0] * 4

    def choose(number: int) -> int:
        untried = [arm for arm in range(4) if not counts[arm]]
        arm = untried[number % len(untried)] if untried else min(range(4), key=lambda n: losses[n] / counts[n])
        return 10 * arm + number % 10

    def learn(outcomes: list[Outcome]) -> None:
        for prompt, rate in outcomes:
            losses[prompt // 10] += 1 - interest(rate)
            counts[prompt // 10] += 1

    return regret(choose, learn, seed=seed, shift=shift)


@pytest.mark.parametrize("loss", ["kl", "square"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_fixed_buckets_the_bandit_has_far_less_regret_than_uniform_draws(loss: str, seed: int):
    known = bandit(loss=loss, buckets=TENS)
    found = regret(known.choose, known.learn, seed=seed, shift=False)
    assert found < 0.35 * uniform(seed, shift=False)


@pytest.mark.parametrize("loss", ["kl", "square"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_a_shift_it_still_has_less_regret_than_uniform_and_greedy_draws(loss: str, seed: int):
    known = bandit(loss=loss, buckets=TENS, discount=0.95)
    found = regret(known.choose, known.learn, seed=seed, shift=True)
    assert found < 0.5 * uniform(seed, shift=True)
    assert found < greedy(seed, shift=True)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pass_rates_find_the_prompts_in_the_middle(seed: int):
    known = PassRates(40, floor=0.1)
    assert regret(known.choose, known.learn, seed=seed, shift=False) < 0.5 * uniform(seed, shift=False)


@pytest.mark.parametrize("make", [lambda: PassRates(6, floor=0.1), bandit], ids=["pass_rate", "bandit"])
def test_restored_estimates_are_the_same_to_the_last_bit(make: Callable[[], Knowledge]):
    chance = random.Random(0)
    batches = [[(chance.randrange(6), chance.random()) for _ in range(5)] for _ in range(20)]
    whole, resumed = make(), make()
    for batch in batches[:10]:
        whole.learn(batch)
    resumed.choose(0)  # what was computed before must not stay
    resumed.restore(json.loads(json.dumps(whole.state())))
    for batch in batches[10:]:
        assert [resumed.choose(n) for n in range(50)] == [whole.choose(n) for n in range(50)]
        whole.learn(batch)
        resumed.learn(batch)
    assert resumed.state() == whole.state()
    assert resumed.probabilities() == whole.probabilities()
