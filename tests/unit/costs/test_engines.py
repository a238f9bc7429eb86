"""The engine over time against iterations that are counted one by one."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from random import Random

import pytest

from rlkl.costs.engines import Completion, Engine, Group, IterationLaw, LinearLaw, TableLaw


@dataclass
class ContextLaw:
    """Costs that depend on the tokens in the cache."""

    def __call__(self, running: float, context: float) -> float:
        return 1 + 0.1 * running + 0.01 * context


def completions(lengths: list[int], prompt: float = 0.0) -> list[Completion]:
    return [
        Completion(group=Group(draw=number, left=1), length=length, prompt=prompt, unread=prompt)
        for number, length in enumerate(lengths)
    ]


def decode_all(engine: Engine) -> list[tuple[float, int]]:
    ends: list[tuple[float, int]] = []
    while engine.next_end < inf:
        ends += [(one.end_s, one.group.draw) for one in engine.advance(engine.next_end)]
    return ends


def counted(lengths: list[int], slots: int, law: IterationLaw) -> list[tuple[float, int]]:
    """Decode token by token."""
    waiting, running, now, ends = list(enumerate(lengths)), dict[int, int](), 0.0, list[tuple[float, int]]()
    while waiting or running:
        while waiting and len(running) < slots:
            number, length = waiting.pop(0)
            running[number] = length
        now += law(len(running), 0)
        running = {number: left - 1 for number, left in running.items()}
        ends += [(now, number) for number, left in running.items() if left == 0]
        running = {number: left for number, left in running.items() if left}
    return ends


@pytest.mark.parametrize("seed", range(10))
def test_ends_are_those_of_iterations_counted_one_by_one(seed: int):
    chance = Random(seed)
    lengths = [chance.randint(1, 40) for _ in range(30)]
    slots, law = chance.randint(1, 12), LinearLaw(chance.random(), chance.random())
    engine = Engine(law=law, slots=slots)
    engine.put(completions(lengths))
    ends = decode_all(engine)
    expected = counted(lengths, slots, law)
    assert [number for _, number in ends] == [number for _, number in expected]
    assert [time for time, _ in ends] == pytest.approx([time for time, _ in expected])
    assert engine.decoded == sum(lengths)


def test_the_cache_makes_iterations_slower_as_it_grows():
    engine = Engine(law=ContextLaw(), slots=4)
    engine.put(completions([100], prompt=50.0))
    ((end, _),) = decode_all(engine)
    by_hand = sum(1 + 0.1 + 0.01 * (50 + position + 0.5) for position in range(100))
    assert end == pytest.approx(by_hand)


def test_prompts_are_read_before_decoding():
    engine = Engine(law=LinearLaw(1.0), slots=1, prefill_s=0.5)
    engine.put(completions([3, 3], prompt=10.0))
    assert decode_all(engine) == [(8.0, 0), (16.0, 1)]


def test_one_completion_stands_for_several():
    alone, many = Engine(law=LinearLaw(0.0, 1.0), slots=1), Engine(law=LinearLaw(0.0, 1.0), slots=1, each=4)
    for engine in (alone, many):
        engine.put(completions([10]))
    assert decode_all(many)[0][0] == 4 * decode_all(alone)[0][0]


def test_weights_are_loaded_between_two_iterations_and_everything_is_read_again():
    engine = Engine(law=LinearLaw(1.0), slots=2, prefill_s=0.1)
    engine.put(completions([10, 10]))
    assert engine.advance(3.4) == []
    assert engine.now == pytest.approx(4.0), "the iteration that runs at 3.4 ends at 4"
    engine.load(6.0, 1)
    assert engine.now == pytest.approx(6.0 + 0.1 * 2 * 4), "two sequences of 4 tokens"
    ended = engine.advance(engine.next_end)
    assert engine.now == pytest.approx(6.8 + 6.0)
    assert [one.group.versions for one in ended] == [6, 6], "4 tokens of version 0, 6 of version 1"
    assert [one.group.oldest for one in ended] == [0, 0]


def test_a_sequence_that_waited_for_its_place_has_no_tokens_of_the_version_before():
    engine = Engine(law=LinearLaw(1.0), slots=1)
    engine.put(completions([4, 3]))
    engine.advance(4.0)
    engine.load(4.0, 5)
    (second,) = engine.advance(engine.next_end)
    assert (second.group.versions, second.group.oldest) == (15, 5)


def test_seconds_without_anything_to_decode():
    engine = Engine(law=LinearLaw(1.0), slots=1)
    engine.advance(3.0)
    engine.put(completions([2]))
    engine.advance(5.0)
    assert (engine.now, engine.idle_s, engine.idle_until(9.0)) == (5.0, 3.0, 7.0)


def test_a_table_of_measured_seconds_is_interpolated_and_extended():
    table = TableLaw(points=((1, 1.0), (3, 2.0), (5, 6.0)))
    assert [table(running, 0) for running in (1, 2, 3, 4, 5, 6)] == [1.0, 1.5, 2.0, 4.0, 6.0, 8.0]
    assert table(0, 0) == 0.5
