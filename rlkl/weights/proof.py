"""Proving that what was published or exported is what the learner holds.

The first evidence is bytes: the tensors changed if the learner stepped, every engine received the same bits, and every
parameter of every engine was reached (`rlkl.weights.channels`). The second evidence is log-probs: on probe sequences
the engine gives the learner's log-probs, and over a set of probes that is kept for the run it has moved as the learner
has, since the publish before and since the run's first step. A movement below the rounding is no evidence of anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkl.errors import ExportError, WeightSyncError
from rlkl.types import Probe, Prompt
from rlkl.weights.channels import ProbeScores, Receipt
from rlkl.weights.movement import Movement, Rounding, Scores, largest_gap, measure, rms

PROBE_TOKENS = 256
"""Probe sequences are cut to this length."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}
"""Largest allowed log-prob difference (nats) where the recipe names none, for models up to 24 layers of width 1024."""

_MODEL_SIZE = 24 * 1024
"""Layers times width up to which `TOLERANCE` holds; it grows in proportion beyond."""

_ROUNDING = {"float32": 1e-7, "bfloat16": 2e-4}
"""Rounding of a log-prob to expect at least (nats, root mean square), times the root of layers times width."""

_RMS_SHARE = 0.25
"""The root mean square of all differences may be this share of the largest allowed difference."""

_FIRST_GAPS = 10.0
"""A later publish may differ by so many times the first one's difference, if that is more than `TOLERANCE`."""

_ROUNDINGS = 2.0
"""A publish may differ by so many times what one rounding a layer does, if that is more than `TOLERANCE`."""

_GROWTH = 4.0
"""Rounding may grow by this factor over a run before it must be small beside the movement."""

_SMALL = {"float32": 0.1, "bfloat16": 0.25}
"""A difference above the rounding must be below this share of the movement."""

_OFF = {"float32": 0.02, "bfloat16": 0.1}
"""Largest allowed distance of the sampler's share of the learner's movement from 1, besides errors."""

_ERRORS = 4.0
"""Standard errors that a share must be off by to count."""

_NOISE = 3.0
"""Variance of the learner's rounding in a movement, at most: twice that of one measured difference, and a margin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The learner's log-probs on the probes."""

    before: Scores | None
    """On the probes to be kept, with the weights before the step; only at the publish after which they are kept."""
    after: ProbeScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of a comparison, from the precision and the size of the model."""

    dtype: str
    tolerance: float
    """Largest difference of a log-prob (nats)."""
    rounding: float
    """Root mean square (nats) below which a difference is rounding, whatever was measured."""
    small: float
    """A difference above the rounding must be below this share of the movement."""
    off: float
    """Largest allowed distance of the sampler's share of the learner's movement from 1, besides errors."""
    fixed: bool
    """Whether the recipe names the tolerance; it then does not follow the first publish."""


def bounds_for(dtype: str, *, layers: int, width: int, tolerance: float | None = None) -> Bounds:
    """Return the limits for a model of ``layers`` blocks of hidden size ``width`` that computes in ``dtype``."""
    size = layers * width
    return Bounds(
        dtype=dtype,
        tolerance=tolerance or TOLERANCE[dtype] * max(1.0, size / _MODEL_SIZE),
        rounding=_ROUNDING[dtype] * size**0.5,
        small=_SMALL[dtype],
        off=_OFF[dtype],
        fixed=tolerance is not None,
    )


@dataclass(frozen=True, slots=True)
class _Baseline:
    """Log-probs on the kept probes at an earlier publish, and the rounding to expect since (nats)."""

    learner: Scores
    engines: Mapping[str, Scores]
    rounding: float


@dataclass(frozen=True, slots=True)
class _Limits:
    """Largest differences of log-probs (nats): of one, and of the root mean square of all."""

    largest: float
    mean: float

    def widened(self, largest: float, mean: float) -> _Limits:
        return _Limits(max(self.largest, largest), max(self.mean, mean))


class Proof:
    """Judges each publish of a run by what the publishes before it showed."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._limits = _Limits(largest=bounds.tolerance, mean=bounds.tolerance * _RMS_SHARE)
        self._rounding = bounds.rounding
        self._started = False
        self._first: _Baseline | None = None
        self._last: _Baseline | None = None
        self.kept: tuple[Probe, ...] = ()
        """The sequences on which movement is measured."""
        self.start: Scores | None = None
        """The learner's log-probs on them before the first step; None until there was one."""

    @property
    def wants_probes(self) -> bool:
        """Whether the next step's probes will be kept: the first weights are proven, and nothing is kept yet."""
        return self._started and self.start is None

    @property
    def wants_rounding(self) -> bool:
        """Whether `allow` would count: nothing is proven yet, and the recipe names no tolerance."""
        return not self._started and not self._bounds.fixed

    def allow(self, rounding: Rounding) -> None:
        """Raise the limits of this run for a model whose log-probs move by ``rounding``, if `wants_rounding`.

        In bfloat16 a deep and narrow model with random weights can differ from itself by more than `TOLERANCE`.
        """
        if self.wants_rounding and math.isfinite(rounding.largest + rounding.mean):
            self._limits = self._limits.widened(_ROUNDINGS * rounding.largest, _ROUNDINGS * rounding.mean)

    def keep(self, probes: Sequence[Probe], learner: Scores, engines: Mapping[str, Scores]) -> None:
        """Keep these probes; learner and engines have scored them with the same weights, those before the step."""
        for name, scores in engines.items():
            _check_gap(name, scores, learner, self._limits)
        found = [rms(scores, learner) for scores in engines.values()]
        self._rounding = max([self._rounding, *found])
        self.kept, self.start = tuple(probes), learner
        self._first = self._last = _Baseline(learner, dict(engines), self._rounding)

    def check(self, learner: ProbeScores, receipts: Mapping[str, Receipt], *, version: int) -> float:
        """Compare every engine with the learner; return the largest log-prob difference (nats) on the current probes.

        ``receipts`` are by engine name. Raises `WeightSyncError` with tensors and figures.
        """
        found = [self.check_one(name, receipt, learner, version=version) for name, receipt in receipts.items()]
        worst = max([0.0, *found])
        self._remember(learner, receipts, worst)
        return worst

    def check_one(self, name: str, receipt: Receipt, learner: ProbeScores, *, version: int) -> float:
        """Compare one engine with the learner, and remember nothing; see `check`."""
        _check_receipt(name, receipt, version)
        pairs = ((receipt.scores.current, learner.current), (receipt.scores.kept, learner.kept))
        gaps = [_check_gap(name, scores, expected, self._limits) for scores, expected in pairs]
        self._check_movement(name, receipt.scores.kept, learner.kept)
        return gaps[0] if learner.current else gaps[1]

    def _check_movement(self, name: str, scores: Scores, learner: Scores) -> None:
        baselines = (("the publish before", self._last), ("the first step of this run", self._first))
        for since, baseline in baselines:
            if baseline is None or name not in baseline.engines:
                continue
            moved = measure(sampler=(baseline.engines[name], scores), learner=(baseline.learner, learner))
            if problem := _problem(moved, baseline.rounding, self._bounds):
                raise WeightSyncError(
                    f"{name} {problem}. Movement is counted from {since}: some weights are still the old ones, or are "
                    "not what the learner holds."
                )

    def _remember(self, learner: ProbeScores, receipts: Mapping[str, Receipt], gap: float) -> None:
        if not self._started:
            self._started = True
            if not self._bounds.fixed:
                self._limits = self._limits.widened(gap * _FIRST_GAPS, gap * _FIRST_GAPS * _RMS_SHARE)
            found = [rms(receipt.scores.current, learner.current) for receipt in receipts.values()]
            self._rounding = max([self._rounding, *found])
        if self.start is not None:
            engines = {name: receipt.scores.kept for name, receipt in receipts.items()}
            found = [rms(scores, learner.kept) for scores in engines.values()]
            self._last = _Baseline(learner.kept, engines, max([self._rounding, *found]))


def check_export(before: Scores | None, learner: Scores, exported: Scores, bounds: Bounds) -> None:
    """Compare the exported policy with the learner on the same probes; raise `ExportError` if they differ.

    ``before`` are the log-probs of the policy before training, if they are known.
    """
    gap = largest_gap(exported, learner)
    if not (gap <= bounds.tolerance and rms(exported, learner) <= bounds.tolerance * _RMS_SHARE):
        raise ExportError(
            f"it differs from the learner by {gap:.3g} nats on the probes; at most {bounds.tolerance:g} is allowed"
        )
    if before is None:
        return
    moved = measure(sampler=(before, exported), learner=(before, learner))
    if problem := _problem(moved, bounds.rounding, bounds):
        raise ExportError(f"it {problem}")


def build_probes(
    prompts: Sequence[Prompt], completions: Sequence[tuple[int, ...]], *, engine_limit: int
) -> list[Probe]:
    """Build sequences of at least two tokens to compare log-probs on: prompts, pictures included, and completions.

    ``engine_limit`` is the longest sequence an engine takes; scoring one needs room for a further token. A prompt with
    pictures stays whole.
    """

    def probe(prompt: Prompt, completion: tuple[int, ...]) -> Probe:
        wanted = max(PROBE_TOKENS, len(prompt.token_ids) + 1) if prompt.images else PROBE_TOKENS
        most = min(wanted, engine_limit - 1)
        return Probe(token_ids=(prompt.token_ids + completion)[:most], images=prompt.images)

    probes = [probe(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return [probe for probe in probes if len(probe.token_ids) >= 2]


def _problem(moved: Movement, rounding: float, bounds: Bounds) -> str | None:
    """Return a sentence on how a sampler has not followed its learner, or None.

    Two signs: a difference that is neither rounding nor small beside the movement; and a share of the movement that is
    not 1, even if all that rounding may have done is taken off. Where rounding may explain most of the movement, the
    second sign is not looked at.
    """
    figures = (
        f"differs from the learner by {moved.gap:.3g} nats (root mean square) on the kept probes, while the learner "
        f"has moved by {moved.size:.3g}; it has gone {moved.share:.1%} of the way (standard error {moved.error:.1%})"
    )
    if moved.gap > max(_GROWTH * rounding, bounds.small * moved.size):
        return f"{figures}, and rounding explains {rounding:.3g}"
    noise = _NOISE * rounding**2 / moved.size**2 if moved.size else 1.0
    # Rounding hits unlikely tokens hardest, and these move most: all of it may be in the token that moved most.
    rounded = min(moved.gap, _GROWTH * rounding) + rounding
    error = _ERRORS * moved.error + (moved.peak * rounded / moved.size if moved.size else 0.0)
    too_short = moved.share + error < (1 - noise) * (1 - bounds.off)
    too_far = moved.share - error > 1 + bounds.off
    return figures if noise < 1 and (too_short or too_far) else None


def _check_receipt(name: str, receipt: Receipt, version: int) -> None:
    if receipt.version != version:
        raise WeightSyncError(
            f"{name} took in version {receipt.version} of the weights; version {version} was published"
        )
    if receipt.damaged:
        raise WeightSyncError(
            f"{name} received other bytes than were published in {len(receipt.damaged)} tensors of version {version}: "
            f"{_some(receipt.damaged)}"
        )
    if receipt.unreached:
        raise WeightSyncError(
            f"{name} has {len(receipt.unreached)} parameters that no tensor of version {version} reached, so they keep "
            f"their old values: {_some(receipt.unreached)}"
        )


def _check_gap(name: str, scores: Scores, expected: Scores, limits: _Limits) -> float:
    """Return the largest difference to the learner's log-probs, which must be within the limits."""
    if [len(row) for row in scores] != [len(row) for row in expected]:
        raise WeightSyncError(f"{name} answered the probe with {len(scores)} rows of other lengths than were asked")
    gap, mean = largest_gap(scores, expected), rms(scores, expected)
    if not (gap <= limits.largest and mean <= limits.mean):
        raise WeightSyncError(
            f"{name} disagrees with the learner by {gap:.3g} nats on the probe after a publish (root mean square "
            f"{mean:.3g}); at most {limits.largest:.3g} ({limits.mean:.3g}) is allowed (weights.tolerance)."
        )
    return gap


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
