"""Sending weights to the rollout engines: packing, checksums, and each engine's report of what reached it.

`HostMemoryChannel` turns tensors into something that Ray carries. `rlkl.weights.group` broadcasts them instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlkl.errors import WeightSyncError
from rlkl.types import Probe
from rlkl.weights.bits import bits_of, checksum
from rlkl.weights.group import Arrival, damaged
from rlkl.weights.movement import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """The sequences that engine and learner both score at a publish."""

    current: Sequence[Probe] = ()
    """Sequences of this step."""
    kept: Sequence[Probe] = ()
    """Sequences that stay the same from publish to publish, to measure movement on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeScores:
    """One model's log-probs on `Probes`. Each set is a batch of its own: a batch's make-up changes the rounding."""

    current: Scores
    kept: Scores = ()


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
    """An engine's report after it took in a package."""

    version: int
    damaged: tuple[str, ...]
    """Tensors whose bytes changed on the way."""
    unreached: tuple[str, ...]
    """Parameters of the engine that no tensor reached, and adapters that it has no place for."""
    scores: ProbeScores


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReceipt:
    """An engine's report after it took in a version by group. The checksums are yet to be compared."""

    version: int
    arrivals: tuple[Arrival, ...]
    """One for each process of the engine."""
    scores: ProbeScores

    def compared(self, sent: Mapping[str, int]) -> Receipt:
        """Compare with the checksums of what the learner sent, in every process of the engine."""
        several = len(self.arrivals) > 1
        return Receipt(
            version=self.version,
            damaged=damaged(sent, self.arrivals),
            unreached=tuple(
                f"{name} at {arrival.process}" if several else name
                for arrival in self.arrivals
                for name in arrival.unreached
            ),
            scores=self.scores,
        )


class Receiver(Protocol):
    """The part of `rlkl.rollout.engine.Engine` that a publish needs."""

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> frozenset[str]: ...

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]: ...

    def readable_weights(self) -> Iterable[tuple[str, Tensor]]: ...


class WeightChannel(Protocol):
    """A way for tensors to travel from the learner to the engines."""

    def pack(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightPackage: ...

    def unpack(self, package: WeightPackage) -> Iterator[tuple[str, Tensor]]: ...


class HostMemoryChannel:
    """Tensors as arrays in host memory; Ray's object store shares them between processes of a node without a copy."""

    def pack(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightPackage:
        packed = []
        for name, tensor in tensors:
            bits = bits_of(tensor.detach().contiguous())
            dtype = str(tensor.dtype).removeprefix("torch.")
            packed.append(PackedTensor(name=name, dtype=dtype, data=bits.cpu().numpy(), checksum=int(checksum(bits))))
        return WeightPackage(version=version, tensors=tuple(packed))

    def unpack(self, package: WeightPackage) -> Iterator[tuple[str, Tensor]]:
        for packed in package.tensors:
            with warnings.catch_warnings():
                # Shared memory is read-only, which torch warns of; engines copy out of these tensors, never into them.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                bits = torch.from_numpy(packed.data)
            yield packed.name, bits.view(getattr(torch, packed.dtype))


class Outbox:
    """Packs each version at the learner, and refuses versions that did not change although they should have.

    ``patience``: versions in a row without a change that are let pass. A slow warm-up starts with steps that are too
    small for the publishing precision.
    """

    def __init__(self, channel: WeightChannel, *, patience: int = 0) -> None:
        self._channel = channel
        self._patience = patience
        self._unchanged = 0
        self._checksums: dict[str, int] = {}

    def pack(self, tensors: Iterable[tuple[str, Tensor]], *, version: int, must_change: bool) -> WeightPackage:
        """Pack the tensors of a version.

        Raises `WeightSyncError` when ``must_change``, every tensor has the bits of the version before, and the patience
        is used up.
        """
        package = self._channel.pack(tensors, version)
        self.check(
            {packed.name: packed.checksum for packed in package.tensors},
            dtypes={packed.dtype for packed in package.tensors},
            version=version,
            must_change=must_change,
        )
        return package

    def check(self, checksums: Mapping[str, int], *, dtypes: Set[str], version: int, must_change: bool) -> None:
        """Compare the checksums of a version that is published with those of the version before; see `pack`."""
        if checksums != self._checksums:
            self._unchanged = 0
        elif must_change:
            self._unchanged += 1
            if self._unchanged > self._patience:
                raise WeightSyncError(self._no_change(version, dtypes))
        self._checksums = dict(checksums)

    def _no_change(self, version: int, dtypes: Set[str]) -> str:
        before = "the version" if self._unchanged == 1 else f"the {self._unchanged} versions"
        return (
            f"version {version} would publish the same {len(self._checksums)} tensors as {before} before, "
            "although the learner stepped with a learning rate and a gradient above zero. Either the trained "
            f"parameters are not the published ones, or the step is too small for {'/'.join(sorted(dtypes))}: raise "
            "learner.lr, or set model.dtype=float32."
        )


def receive(engine: Receiver, channel: WeightChannel, package: WeightPackage, probes: Probes) -> Receipt:
    """Check the bytes, load them into the engine, and score the probes with it."""
    tensors = list(channel.unpack(package))
    damaged = [
        packed.name
        for packed, (_, tensor) in zip(package.tensors, tensors, strict=True)
        if int(checksum(bits_of(tensor))) != packed.checksum
    ]
    unreached = engine.load_weights(tensors)
    return Receipt(
        version=package.version,
        damaged=tuple(damaged),
        unreached=tuple(sorted(unreached)),
        scores=scores_of(engine, probes),
    )


def scores_of(engine: Receiver, probes: Probes) -> ProbeScores:
    """Score the probes with an engine; each set is a batch of its own."""
    return ProbeScores(current=engine.score(probes.current), kept=engine.score(probes.kept) if probes.kept else ())


def differing_weights(engine: Receiver, channel: WeightChannel, package: WeightPackage) -> list[str]:
    """Name the engine's readable parameters that differ from the published ones, each with the largest difference."""
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
