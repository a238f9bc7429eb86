"""The seconds of an iteration are found again from batches whose seconds are known."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from rlkl.costs.engines import Completion, Engine, Group, LinearLaw
from rlkl.costs.fit import SampledBatch, fit_iterations, fit_linear
from rlkl.errors import InputError

SLOTS = 4


def seconds_of(part: list[int], law: LinearLaw) -> float:
    engine = Engine(law=law, slots=SLOTS)
    engine.put(Completion(group=Group(draw=0, left=99), length=length, prompt=0, unread=0) for length in part)
    while engine.next_end < inf:
        engine.advance(engine.next_end)
    return engine.now


def batches(law: LinearLaw, *, rounds: int = 1, noise: float = 0.0) -> list[SampledBatch]:
    chance, found = Random(3), list[SampledBatch]()
    for _ in range(12):
        work = [
            [[min(int(chance.expovariate(0.02)) + 1, 300) for _ in range(chance.randint(3, 12))] for _ in range(2)]
            for _ in range(rounds)
        ]
        seconds = sum(max(seconds_of(part, law) for part in parts) for parts in work)
        found.append(SampledBatch(rounds=work, seconds=seconds * chance.uniform(1 - noise, 1 + noise)))
    return found


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("law", [LinearLaw(0.02, 0.001), LinearLaw(0.001, 0.02), LinearLaw(0.03), LinearLaw(0.0, 0.01)])
def test_a_law_is_found_again(law: LinearLaw, rounds: int):
    found = fit_iterations(batches(law, rounds=rounds), slots=SLOTS)
    assert (found.fixed, found.each) == pytest.approx((law.fixed, law.each), abs=1e-9)


def test_noise_moves_the_two_parts_and_not_the_seconds():
    law = LinearLaw(0.02, 0.002)
    found = fit_iterations(batches(law, noise=0.05), slots=SLOTS)
    assert found(3, 0) == pytest.approx(law(3, 0), rel=0.05)
    assert min(found.fixed, found.each) >= 0


def test_one_kind_of_batch_leaves_one_number():
    found = fit_linear([(100, 400)] * 5, [2.0] * 5)
    assert 100 * found.fixed + 400 * found.each == pytest.approx(2.0)


def test_nothing_sampled_is_an_error():
    with pytest.raises(InputError, match="no completion was sampled"):
        fit_iterations([SampledBatch(rounds=[[[], []]], seconds=1.0)], slots=4)
