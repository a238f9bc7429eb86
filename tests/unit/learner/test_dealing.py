import random
from dataclasses import replace

import pytest
import torch

from rlkl.batch import Batch
from rlkl.data.packing import micro_batches
from rlkl.learner.dealing import deal, shares_of
from tests.builders import make_batch


def random_batch(draw: random.Random, rows: int, *, lists: bool) -> Batch:
    lengths = [draw.randint(1, 40) for _ in range(rows)]
    batch = make_batch(lengths=lengths, rewards=[0.0] * rows, groups=[row // 2 for row in range(rows)])
    return replace(batch, list_B=torch.arange(rows) // 2) if lists else batch


def cost(batch: Batch, rows: list[int]) -> float:
    lengths = batch.attention_BT.sum(dim=1)[rows].tolist()
    return sum(length * (1 + length / 8192) for length in lengths)


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_row_counts_once_on_one_rank_and_all_ranks_have_as_many_passes(ranks: int, lists: bool):
    draw = random.Random(ranks)
    for _ in range(60):
        batch = random_batch(draw, 2 * draw.randint(1, 12), lists=lists)
        cuts = [cut.tolist() for cut in micro_batches(batch, draw.choice([1, 60, 120, 10_000]))]
        hands = deal(batch, cuts, ranks)

        counted = sorted(row for hand in hands for rows, counts in hand if counts for row in rows)
        assert counted == list(range(batch.size))
        assert len({len(hand) for hand in hands}) == 1
        for rows in (rows for hand in hands for rows, _ in hand if lists):
            assert all(row ^ 1 in rows for row in rows), "the two of a list stay together"
        loads = [sum(cost(batch, rows) for rows, _ in hand) for hand in hands]
        largest = max(cost(batch, rows) for hand in hands for rows, _ in hand)
        assert max(loads) - min(loads) <= largest + 1e-6


def test_a_micro_batch_that_does_not_count_is_there_only_with_fewer_units_than_ranks():
    batch = make_batch(lengths=[3, 5], rewards=[0.0, 0.0], groups=[0, 0])

    assert deal(batch, [[1, 0]], 2) == [[([1], True)], [([0], True)]]
    assert deal(batch, [[1, 0]], 3) == [[([1], True)], [([0], True)], [([0], False)]]


def test_one_rank_gets_the_micro_batches_as_they_are_cut():
    batch = make_batch(lengths=[3, 5, 9, 2], rewards=[0.0] * 4, groups=[0] * 4)

    shares = shares_of(batch, micro_batches(batch, 22), rank=0, size=1)
    assert [share.rows_B.tolist() for share in shares] == [cut.tolist() for cut in micro_batches(batch, 22)]
    assert all(share.counts for share in shares)
