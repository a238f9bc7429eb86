"""Signs that PAPO's perception KL is raised by odd tokens instead of by looking (arXiv 2507.06448, on loss hacking).

The figures are drawn from the paper's collapsing run (7B, gamma 0.02, no entropy term), which lost its accuracy some 25
steps after the first sign. Pure Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

HISTORY = 100
"""Steps that the running medians look back on."""
WINDOW = 10
"""Steps before there is a median; and the length of the two stretches between which entropies are compared."""
JUMP = 3.0
"""A value above this many running medians has jumped. The paper's collapse: clipping tenfold, variance eightfold."""
RISE, LEAST_RISE = 1.2, 0.05
"""An entropy rises when the mean of the last stretch exceeds that of the one before by this factor and so many nats:
near zero a fifth is noise."""
MAX_KL, KL_JUMP, FIRST_STEPS = 0.3, 4.0, 3
"""Nats per token, mean of the last stretch. The paper's healthy runs stay below 0.06; its collapse passes 0.4 on its
way to 0.9. Where answers are a few words that are seen in the picture, the base model's own is higher, and learning to
look doubles it: then the limit is `KL_JUMP` times the mean of the run's first steps."""

_REMEDY = "Look at the samples; lower update.perception_coef, or raise update.entropy_coef or update.kl_coef."
_JUMPS = ("update/clip_fraction_high", "perception/kl_variance")
_ENTROPIES = ("perception/entropy_clean", "perception/entropy_corrupted")


def loss_hacking_alarms(records: Sequence[Mapping[str, float]], *, first_kl: float) -> dict[str, str]:
    """Return a warning by metric key for each monitor that trips on the last of the step records (oldest first).

    At most the last `HISTORY` records before it count. ``first_kl`` is the mean ``perception/kl`` of the run's first
    `FIRST_STEPS`: about the base model's own. Raises `KeyError` when a record lacks a monitored metric.
    """
    *past, now = list(records)[-HISTORY - 1 :]
    alarms = {}
    limit, recent = max(MAX_KL, KL_JUMP * first_kl), [record["perception/kl"] for record in [*past, now][-WINDOW:]]
    if len(recent) == WINDOW and (kl := fmean(recent)) > limit:
        alarms["perception/kl"] = (
            f"perception/kl = {kl:.3g} nats per token over {WINDOW} steps exceeds {limit:.3g} (at the start it was "
            f"{first_kl:.3g}): the policy may be hacking the perception loss. {_REMEDY}"
        )
    for key in _JUMPS:
        if len(past) >= WINDOW and now[key] > JUMP * (usual := median(record[key] for record in past)) > 0:
            alarms[key] = (
                f"{key} = {now[key]:.3g} is more than {JUMP:g} times its median so far ({usual:.3g}): an early sign of "
                f"perception loss hacking. {_REMEDY}"
            )
    if len(past) + 1 >= 2 * WINDOW and all(_rises(key, [*past, now]) for key in _ENTROPIES):
        alarms["perception/entropy"] = (
            f"perception/entropy_clean and perception/entropy_corrupted both rose by more than {RISE - 1:.0%} within "
            f"{2 * WINDOW} steps: answers drift into unlikely tokens. {_REMEDY}"
        )
    return alarms


def _rises(key: str, records: Sequence[Mapping[str, float]]) -> bool:
    values = [record[key] for record in records[-2 * WINDOW :]]
    before, now = fmean(values[:WINDOW]), fmean(values[WINDOW:])
    return now > RISE * before and now > before + LEAST_RISE
