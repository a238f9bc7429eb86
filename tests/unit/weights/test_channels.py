from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch

from rlkl.errors import WeightSyncError
from rlkl.types import Probe
from rlkl.weights import (
    HostMemoryChannel,
    Outbox,
    Probes,
    ProbeScores,
    Receipt,
    WeightPackage,
    differing_weights,
    receive,
)


def tensors(offset: float = 0.0) -> list[tuple[str, torch.Tensor]]:
    return [("a", torch.arange(4.0) + offset), ("b", torch.ones(2, 3, dtype=torch.bfloat16))]


class DictEngine:
    """Takes in tensors and answers every probe with its first weight."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        self.weights = {name: tensor.clone() for name, tensor in tensors}
        return frozenset({"a", "b"} - set(self.weights))

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        return [tuple(-float(self.weights["a"][1]) for _ in probe.token_ids[1:]) for probe in probes]

    def readable_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self.weights.items()


def test_tensors_arrive_bit_for_bit_in_both_precisions():
    channel = HostMemoryChannel()

    arrived = list(channel.unpack(channel.pack(tensors(), 1)))

    for (name, tensor), (other, original) in zip(arrived, tensors(), strict=True):
        assert name == other
        assert tensor.dtype == original.dtype
        assert torch.equal(tensor, original)


def test_an_engine_reports_what_it_received():
    channel = HostMemoryChannel()

    answer = receive(DictEngine(), channel, channel.pack(tensors(), 3), Probes(current=[Probe(token_ids=(5, 6, 7))]))

    assert answer == Receipt(version=3, damaged=(), unreached=(), scores=ProbeScores(current=[(-1.0, -1.0)]))


def test_bytes_that_change_on_the_way_are_named():
    channel = HostMemoryChannel()
    package = channel.pack(tensors(), 3)
    flipped = np.array(package.tensors[0].data)
    flipped[2] ^= 1
    broken = WeightPackage(version=3, tensors=(_replace_data(package, flipped), package.tensors[1]))

    probes = Probes(current=[Probe(token_ids=(5, 6))], kept=[Probe(token_ids=(7, 8))])
    answer = receive(DictEngine(), channel, broken, probes)

    assert answer.damaged == ("a",)
    assert answer.scores.kept == [(-1.0,)]


def _replace_data(package: WeightPackage, data: np.ndarray):
    from dataclasses import replace

    return replace(package.tensors[0], data=data)


def test_publishing_the_same_bits_after_a_step_is_an_error():
    outbox = Outbox(HostMemoryChannel())
    outbox.pack(tensors(), version=0, must_change=False)

    with pytest.raises(WeightSyncError, match="version 1 would publish the same 2 tensors"):
        outbox.pack(tensors(), version=1, must_change=True)
    outbox.pack(tensors(), version=1, must_change=False)
    outbox.pack(tensors(offset=1e-3), version=2, must_change=True)


def test_a_step_too_small_for_bfloat16_is_an_error():
    outbox = Outbox(HostMemoryChannel())
    weight = torch.ones(3)
    outbox.pack([("w", weight.bfloat16())], version=0, must_change=False)

    with pytest.raises(WeightSyncError, match="the step is too small for bfloat16"):
        outbox.pack([("w", (weight + 1e-5).bfloat16())], version=1, must_change=True)


def test_steps_too_small_to_publish_are_let_pass_for_a_while():
    """A slow warm-up in bfloat16: the float32 weights move, the published ones do not yet."""
    outbox = Outbox(HostMemoryChannel(), patience=2)
    for version in range(3):
        outbox.pack(tensors(), version=version, must_change=version > 0)
    outbox.pack(tensors(offset=1e-3), version=3, must_change=True)
    for version in range(4, 6):
        outbox.pack(tensors(offset=1e-3), version=version, must_change=True)

    with pytest.raises(WeightSyncError, match="version 6 would publish the same 2 tensors as the 3 versions before"):
        outbox.pack(tensors(offset=1e-3), version=6, must_change=True)


def test_weights_that_can_be_read_back_are_compared():
    engine, channel = DictEngine(), HostMemoryChannel()
    engine.load_weights(tensors(offset=0.25))

    engine.weights["b"] = torch.ones(5, 3)  # a vocabulary padded from 2 rows to 5

    assert differing_weights(engine, channel, channel.pack(tensors(), 1)) == ["a (off by 0.25)"]
