"""Publishing weights to the rollout engines, and proving that they arrived.

A publish is proven four times: the tensors changed if the learner stepped, every engine received the same bytes, every
parameter of every engine was reached, and on a probe the engine's log-probabilities are the learner's new ones, not its
old ones. `WeightChannel` is where other transports (NCCL, CUDA IPC) go: it turns tensors into something that travels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlkl.errors import WeightSyncError
from rlkl.types import Probe, Prompt

PROBE_TOKENS = 256
"""Probe sequences are cut to this length."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}
"""Largest allowed log-prob difference (nats) where the recipe names none: what rounding does to an unlikely token, with
a margin."""

ROUNDING_SHARE = {"float32": 0.05, "bfloat16": 1.0}
"""Share of the tolerance that rounding may use up; a difference above it must be small beside the step's movement."""

Scores = Sequence[tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensor:
    """A tensor on its way between processes. ``data`` holds the raw bits: numpy has no bfloat16."""

    name: str
    dtype: str
    data: np.ndarray
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPackage:
    """All published tensors of one version, under their checkpoint names."""

    version: int
    tensors: tuple[PackedTensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one engine says after it took in a package."""

    version: int
    damaged: tuple[str, ...]
    """Tensors whose bytes changed on the way."""
    unreached: tuple[str, ...]
    """Parameters of the engine that no tensor reached."""
    scores: Scores
    """The engine's log-probs on the probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The learner's log-probs on the probe, with the weights before (absent at the start) and after the step."""

    before: Scores | None
    after: Scores


class Receiver(Protocol):
    """What a publish asks of a rollout engine; see `rlkl.rollout.engine.Engine`."""

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> frozenset[str]: ...

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]: ...

    def readable_weights(self) -> Iterable[tuple[str, Tensor]]: ...


class WeightChannel(Protocol):
    """How tensors travel from the learner to the engines."""

    def pack(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightPackage: ...

    def unpack(self, package: WeightPackage) -> Iterator[tuple[str, Tensor]]: ...


class HostMemoryChannel:
    """Tensors as arrays in host memory; Ray's object store shares them between processes of a node without a copy."""

    def pack(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightPackage:
        packed = []
        for name, tensor in tensors:
            bits = _bits(tensor.detach().contiguous())
            dtype = str(tensor.dtype).removeprefix("torch.")
            packed.append(PackedTensor(name=name, dtype=dtype, data=bits.cpu().numpy(), checksum=_checksum(bits)))
        return WeightPackage(version=version, tensors=tuple(packed))

    def unpack(self, package: WeightPackage) -> Iterator[tuple[str, Tensor]]:
        for packed in package.tensors:
            with warnings.catch_warnings():
                # Shared memory is read-only, which torch warns of; engines copy out of these tensors, never into them.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                bits = torch.from_numpy(packed.data)
            yield packed.name, bits.view(getattr(torch, packed.dtype))


class Outbox:
    """The learner's side: packs each version, and refuses one that did not change although it should have."""

    def __init__(self, channel: WeightChannel) -> None:
        self._channel = channel
        self._checksums: dict[str, int] = {}

    def pack(self, tensors: Iterable[tuple[str, Tensor]], *, version: int, must_change: bool) -> WeightPackage:
        """Raises `WeightSyncError` when ``must_change`` and every tensor has the bits of the version before."""
        package = self._channel.pack(tensors, version)
        checksums = {packed.name: packed.checksum for packed in package.tensors}
        if must_change and checksums == self._checksums:
            dtypes = sorted({packed.dtype for packed in package.tensors})
            raise WeightSyncError(
                f"version {version} would publish the same {len(checksums)} tensors as the version before, although "
                "the learner stepped with a learning rate and a gradient above zero. Either the trained parameters are "
                f"not the published ones, or the step is too small for {'/'.join(dtypes)}: raise learner.lr, or set "
                "model.dtype=float32."
            )
        self._checksums = checksums
        return package


def receive(engine: Receiver, channel: WeightChannel, package: WeightPackage, probes: Sequence[Probe]) -> Receipt:
    """The engine's side: check the bytes, load them, answer the probes."""
    tensors = list(channel.unpack(package))
    damaged = [
        packed.name
        for packed, (_, tensor) in zip(package.tensors, tensors, strict=True)
        if _checksum(_bits(tensor)) != packed.checksum
    ]
    unreached = engine.load_weights(tensors)
    return Receipt(
        version=package.version,
        damaged=tuple(damaged),
        unreached=tuple(sorted(unreached)),
        scores=engine.score(probes),
    )


def differing_weights(engine: Receiver, channel: WeightChannel, package: WeightPackage) -> list[str]:
    """Which parameters of the engine are not the published ones, with how far off they are, where they can be read."""
    published = dict(channel.unpack(package))
    report = []
    for name, tensor in engine.readable_weights():
        if name not in published or published[name].shape[1:] != tensor.shape[1:]:
            continue
        wanted = published[name]  # an engine may pad the vocabulary, so it is compared row by row as far as it goes
        worst = float((wanted.float() - tensor[: len(wanted)].float()).abs().max())
        if worst > 0:
            report.append(f"{name} (off by {worst:.3g})")
    return report


def verify(
    expected: Expected, receipts: Mapping[str, Receipt], *, version: int, tolerance: float, rounding: float
) -> float:
    """Compare every engine's answer with the learner's; returns the largest log-prob difference (nats).

    ``receipts`` are by engine name; differences up to ``rounding`` (nats) may be rounding. Raises `WeightSyncError`
    that names tensors and figures.
    """
    worst = 0.0
    for name, receipt in receipts.items():
        _check_receipt(name, receipt, version)
        worst = max(worst, _check_scores(name, receipt.scores, expected, tolerance))
        _check_movement(name, receipt.scores, expected, rounding)
    return worst


def build_probes(
    prompts: Sequence[Prompt], completions: Sequence[tuple[int, ...]], *, engine_limit: int
) -> list[Probe]:
    """Sequences of at least two tokens to compare log-probs on: prompts, pictures included, with what was sampled.

    ``engine_limit`` is the longest sequence an engine takes; scoring one needs room for a further token. A prompt with
    pictures stays whole.
    """

    def probe(prompt: Prompt, completion: tuple[int, ...]) -> Probe:
        wanted = max(PROBE_TOKENS, len(prompt.token_ids) + 1) if prompt.images else PROBE_TOKENS
        most = min(wanted, engine_limit - 1)
        return Probe(token_ids=(prompt.token_ids + completion)[:most], images=prompt.images)

    probes = [probe(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return [probe for probe in probes if len(probe.token_ids) >= 2]


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


def _check_scores(name: str, scores: Scores, expected: Expected, tolerance: float) -> float:
    """Largest difference to the learner's new log-probs, which must be within the tolerance."""
    if [len(row) for row in scores] != [len(row) for row in expected.after]:
        raise WeightSyncError(f"{name} answered the probe with {len(scores)} rows of other lengths than were asked")
    gap = _largest_gap(scores, expected.after)
    if not gap <= tolerance:
        raise WeightSyncError(
            f"{name} disagrees with the learner by {gap:.3g} nats on the probe after a publish; at most "
            f"{tolerance:g} is allowed (weights.tolerance). {_lag(scores, expected)}"
        )
    return gap


def _check_movement(name: str, scores: Scores, expected: Expected, rounding: float) -> None:
    """Stale weights are within any tolerance where a step is small, so the engine must have moved with the learner.

    Two signs that it has not: a difference that rounding cannot explain and that is not small beside the step's own
    movement; and, in any precision, answers that lie on the old weights' side (see `_share_of_the_way`).
    """
    if expected.before is None:
        return
    gap, movement = _largest_gap(scores, expected.after), _largest_gap(expected.before, expected.after)
    share, error = _share_of_the_way(scores, expected.before, expected.after)
    if gap > max(rounding, movement * _SHARE_OF_MOVEMENT) or share < 0.5 - 4 * error:
        raise WeightSyncError(
            f"{name} disagrees with the learner by {gap:.3g} nats on the probe, while the step moved it by "
            f"{movement:.3g}; it has gone {share:.0%} of the way: some weights are still the old ones. "
            f"{_lag(scores, expected)}"
        )


def _share_of_the_way(scores: Scores, before: Scores, after: Scores) -> tuple[float, float]:
    """How far the engine has followed the learner, and the standard error of that.

    With d the learner's movement and e the engine's over the probe's tokens, <e, d> / <d, d> is about 1 for fresh
    weights and 0 for stale ones; where rounding (of the learner too) drowns the step, both come to 1/2.
    """
    moved = _flat(after) - _flat(before)
    size = float(moved @ moved)
    if size == 0:
        return 1.0, 0.0
    share = float((_flat(scores) - _flat(before)) @ moved) / size
    return share, float(np.mean((_flat(scores) - _flat(after)) ** 2) / size) ** 0.5


_SHARE_OF_MOVEMENT = 0.25


def _lag(scores: Scores, expected: Expected) -> str:
    if expected.before is None:
        return "These are the first weights of the run."
    return (
        f"It is {_largest_gap(scores, expected.before):.3g} nats from the weights before the step, which moved the "
        f"log-probs by {_largest_gap(expected.before, expected.after):.3g}."
    )


def _largest_gap(left: Scores, right: Scores) -> float:
    return float(np.abs(_flat(left) - _flat(right)).max(initial=0.0))


def _flat(scores: Scores) -> np.ndarray:
    return np.array([score for row in scores for score in row])


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, without a copy."""
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _checksum(bits: Tensor) -> int:
    """Sum of the bits as integers: runs at memory speed on the device that holds them."""
    return int(bits.sum(dtype=torch.int64))


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
