"""Deal the micro-batches of a batch to the ranks: as many to each, of nearly equal cost, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rlkl.batch import Batch

_EQUAL_LENGTH = 8192
"""About the length at which attention costs as much as the rest of a layer, for models of 1 to 7 billion parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One micro-batch of a rank."""

    rows_B: Tensor
    """Row numbers in the batch."""
    counts: bool = True
    """False: another rank computes these rows too, and this rank's numbers are dropped. The pass itself must take
    place, because the ranks gather the weights together."""


def shares_of(batch: Batch, cuts: Sequence[Tensor], *, rank: int, size: int) -> list[Share]:
    """Return the micro-batches of one of ``size`` ranks, as many as any other rank has. ``cuts`` are those of all."""
    dealt = deal(batch, [cut.tolist() for cut in cuts], size)[rank]
    return [Share(rows_B=torch.tensor(rows), counts=counts) for rows, counts in dealt]


def deal(batch: Batch, cuts: Sequence[list[int]], ranks: int) -> list[list[tuple[list[int], bool]]]:
    """Deal micro-batches to ranks; return rows, and whether they count, for each rank.

    The costliest micro-batches are halved until each rank gets equally many; the sequences of a list stay together.
    With fewer than one for each rank, the cheapest one is repeated, and does not count there. Micro-batches that the
    ranks compute at one time cost nearly the same; the total costs of two ranks differ by less than the costliest one.
    """
    if ranks == 1:
        return [[(cut, True) for cut in cuts]]
    lengths, lists = batch.attention_BT.sum(dim=1).tolist(), batch.list_B.tolist()

    def cost(rows: Sequence[int]) -> float:
        return sum(lengths[row] * (1.0 + lengths[row] / _EQUAL_LENGTH) for row in rows)

    whole = sorted(_split(list(cuts), lists, ranks, cost), key=cost, reverse=True)
    dealt = [(cut, True) for cut in whole] + [(whole[-1], False)] * (-len(whole) % ranks)
    hands: list[list[tuple[list[int], bool]]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for start in range(0, len(dealt), ranks):
        lightest = sorted(range(ranks), key=lambda rank: loads[rank])
        for rank, (rows, counts) in zip(lightest, dealt[start : start + ranks], strict=True):
            hands[rank].append((rows, counts))
            loads[rank] += cost(rows)
    return hands


def _split(
    cuts: list[list[int]], lists: Sequence[int], ranks: int, cost: Callable[[Sequence[int]], float]
) -> list[list[int]]:
    """Halve the costliest micro-batches of several units until their number is a multiple of ``ranks``."""
    while len(cuts) % ranks:
        divisible = [number for number, cut in enumerate(cuts) if len(_units(cut, lists)) > 1]
        if not divisible:
            break
        number = max(divisible, key=lambda number: cost(cuts[number]))
        units = _units(cuts[number], lists)
        middle = _middle([cost(unit) for unit in units])
        halves = [[row for unit in part for row in unit] for part in (units[:middle], units[middle:])]
        cuts[number : number + 1] = halves
    return cuts


def _middle(costs: Sequence[float]) -> int:
    """Return where to cut a row of costs so that both parts cost nearly the same; neither is empty."""
    before = list(accumulate(costs))
    return min(range(1, len(costs)), key=lambda cut: abs(2 * before[cut - 1] - before[-1]))


def _units(cut: Sequence[int], lists: Sequence[int]) -> list[list[int]]:
    """Return the rows of a cut in groups that stay together: those of a list, and every other row by itself."""
    units: list[list[int]] = []
    for row in cut:
        if units and lists[row] >= 0 and lists[units[-1][0]] == lists[row]:
            units[-1].append(row)
        else:
            units.append([row])
    return units
