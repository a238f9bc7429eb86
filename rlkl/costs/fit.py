"""Find the seconds of an engine's iteration from the seconds in which a run sampled its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from rlkl.costs.engines import Completion, Engine, Group, LinearLaw
from rlkl.errors import InputError

_ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledBatch:
    """A batch as it was sampled."""

    rounds: Sequence[Sequence[Sequence[int]]]
    """Rounds one after the other, of each the engines, of each the lengths of its completions in order."""
    seconds: float
    """Sum over all rounds."""


def fit_iterations(batches: Sequence[SampledBatch], *, slots: int) -> LinearLaw:
    """Return the law fixed + each · running, both at least 0, that explains the seconds best (least squares).

    An engine takes fixed · iterations + each · tokens, and a batch is as slow as its slowest engine. Which iterations
    there are follows from the lengths alone. ``slots``: sequences that an engine decodes together.

    Raises `InputError` if no token was sampled.
    """
    work = [
        ([[_work(part, slots) for part in parts if part] for parts in batch.rounds if any(parts)], batch.seconds)
        for batch in batches
        if batch.seconds > 0
    ]
    work = [(rounds, seconds) for rounds, seconds in work if rounds]
    if not work:
        raise InputError("no completion was sampled, so the seconds of an iteration cannot be found")
    law = LinearLaw(1.0, 1.0)
    for _ in range(_ROUNDS):  # which engine is the slowest depends on the law
        slowest = [
            [max(parts, key=lambda part: law.fixed * part[0] + law.each * part[1]) for parts in rounds]
            for rounds, _ in work
        ]
        found = fit_linear([(sum(i for i, _ in one), sum(t for _, t in one)) for one in slowest], [s for _, s in work])
        if found == law:
            break
        law = found
    return law


def _work(lengths: Sequence[int], slots: int) -> tuple[int, int]:
    """Return the iterations and the tokens of an engine that decodes these completions."""
    engine = Engine(law=LinearLaw(1.0), slots=slots)
    engine.put(
        Completion(group=Group(draw=number, left=1), length=length, prompt=0.0, unread=0.0)
        for number, length in enumerate(lengths)
    )
    while engine.next_end < inf:
        engine.advance(engine.next_end)
    return engine.iteration, engine.decoded


def fit_linear(work: Sequence[tuple[float, float]], seconds: Sequence[float]) -> LinearLaw:
    """Return the two numbers of at least 0 with which fixed · first + each · second explains the seconds best.

    The relative errors count: long measurements are no more exact than short ones.
    """
    rows = [(iterations / wall, tokens / wall) for (iterations, tokens), wall in zip(work, seconds, strict=True)]
    aa, bb, ab = sum(a * a for a, _ in rows), sum(b * b for _, b in rows), sum(a * b for a, b in rows)
    a_sum, b_sum = sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    if determinant > 1e-9 * aa * bb:
        fixed, each = (a_sum * bb - b_sum * ab) / determinant, (b_sum * aa - a_sum * ab) / determinant
        if fixed >= 0 and each >= 0:
            return LinearLaw(fixed, each)
    laws = (LinearLaw(a_sum / aa), LinearLaw(0.0, b_sum / bb))
    return min(laws, key=lambda law: sum((law.fixed * a + law.each * b - 1) ** 2 for a, b in rows))
