from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch

from rlkl.errors import WeightSyncError
from rlkl.types import Image, Probe, Prompt
from rlkl.weights import (
    ROUNDING_SHARE,
    TOLERANCE,
    Expected,
    HostMemoryChannel,
    Outbox,
    Receipt,
    WeightPackage,
    build_probes,
    differing_weights,
    receive,
    verify,
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


def receipt(*scores: float, damaged: tuple[str, ...] = (), unreached: tuple[str, ...] = ()) -> Receipt:
    return Receipt(version=3, damaged=damaged, unreached=unreached, scores=[scores])


def expected(after: float, before: float | None) -> Expected:
    return Expected(before=None if before is None else [(before,)], after=[(after,)])


def check(answer: Receipt, wanted: Expected, dtype: str = "float32") -> float:
    tolerance = TOLERANCE[dtype]
    rounding = tolerance * ROUNDING_SHARE[dtype]
    return verify(wanted, {"rollout worker 0": answer}, version=3, tolerance=tolerance, rounding=rounding)


def test_tensors_arrive_bit_for_bit_in_both_precisions():
    channel = HostMemoryChannel()

    arrived = list(channel.unpack(channel.pack(tensors(), 1)))

    for (name, tensor), (other, original) in zip(arrived, tensors(), strict=True):
        assert name == other
        assert tensor.dtype == original.dtype
        assert torch.equal(tensor, original)


def test_an_engine_reports_what_it_received():
    channel = HostMemoryChannel()

    answer = receive(DictEngine(), channel, channel.pack(tensors(), 3), [Probe(token_ids=(5, 6, 7))])

    assert answer == Receipt(version=3, damaged=(), unreached=(), scores=[(-1.0, -1.0)])


def test_bytes_that_change_on_the_way_are_named():
    channel = HostMemoryChannel()
    package = channel.pack(tensors(), 3)
    flipped = np.array(package.tensors[0].data)
    flipped[2] ^= 1
    broken = WeightPackage(version=3, tensors=(_replace_data(package, flipped), package.tensors[1]))

    answer = receive(DictEngine(), channel, broken, [Probe(token_ids=(5, 6))])

    assert answer.damaged == ("a",)
    with pytest.raises(WeightSyncError, match=r"rollout worker 0 received other bytes .* a"):
        check(answer, expected(-1.0, None))


def _replace_data(package: WeightPackage, data: np.ndarray):
    from dataclasses import replace

    return replace(package.tensors[0], data=data)


def test_a_tensor_that_never_reached_the_engine_is_named():
    with pytest.raises(WeightSyncError, match=r"1 parameters that no tensor of version 3 reached.*layers\.1\.down"):
        check(receipt(-1.0, unreached=("layers.1.down",)), expected(-1.0, None))


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


def test_agreement_returns_the_largest_gap():
    assert check(receipt(-1.00002), expected(-1.0, -2.0)) == pytest.approx(2e-5)


def test_disagreement_above_the_tolerance_gives_the_figures():
    with pytest.raises(WeightSyncError, match=r"disagrees with the learner by 0\.5 nats .* at most 0\.001"):
        check(receipt(-1.5), expected(-1.0, -1.5))


def test_not_a_number_is_a_disagreement():
    with pytest.raises(WeightSyncError, match="by nan nats"):
        check(receipt(float("nan")), expected(-1.0, -1.5))


def test_stale_weights_are_found_although_the_step_was_smaller_than_the_tolerance():
    stale = receipt(-1.0)
    after_a_small_step = expected(-1.0004, before=-1.0)

    with pytest.raises(WeightSyncError, match="some weights are still the old ones"):
        check(stale, after_a_small_step)


def test_rounding_is_not_taken_for_stale_weights():
    assert check(receipt(-1.000003), expected(-1.000001, before=-1.0)) < 1e-5


@pytest.mark.parametrize("movement", [0.0, 0.002, 0.02, 0.1])
def test_bfloat16_rounding_is_not_taken_for_stale_weights(movement: float):
    generator = np.random.default_rng(0)
    for _ in range(200):
        before, after, engine = _rounded(generator, movement, fresh=True)
        assert check(receipt(*engine), Expected(before=[before], after=[after]), "bfloat16") < 1.0


@pytest.mark.parametrize("movement", [0.06, 0.1])
def test_stale_bfloat16_weights_are_found_within_the_tolerance(movement: float):
    generator = np.random.default_rng(0)
    for _ in range(200):
        before, after, engine = _rounded(generator, movement, fresh=False)
        with pytest.raises(WeightSyncError, match="some weights are still the old ones"):
            check(receipt(*engine), Expected(before=[before], after=[after]), "bfloat16")


def _rounded(generator: np.random.Generator, movement: float, *, fresh: bool) -> list[tuple[float, ...]]:
    """Learner before, learner after and engine on 300 tokens, each with a rounding of 0.02 nats."""
    old = generator.uniform(-3, -1, 300)
    new = old + generator.normal(0, movement, 300).clip(-0.15, 0.15)
    noise = generator.normal(0, 0.02, (3, 300)).clip(-0.06, 0.06)
    return [tuple(row) for row in np.stack([old, new, new if fresh else old]) + noise]


def test_weights_that_can_be_read_back_are_compared():
    engine, channel = DictEngine(), HostMemoryChannel()
    engine.load_weights(tensors(offset=0.25))

    engine.weights["b"] = torch.ones(5, 3)  # a vocabulary padded from 2 rows to 5

    assert differing_weights(engine, channel, channel.pack(tensors(), 1)) == ["a (off by 0.25)"]


def test_probes_hold_prompt_and_completion_and_are_cut():
    picture = Image(data=b"", width=1, height=1, key="k")
    two = Prompt(id="two", text="", token_ids=(1, 2), images=(picture,))
    one = Prompt(id="one", text="", token_ids=(3,))
    long = Prompt(id="long", text="", token_ids=tuple(range(400)))

    assert build_probes([two, one], [(4,), ()], engine_limit=8) == [Probe(token_ids=(1, 2, 4), images=(picture,))]
    assert [len(probe.token_ids) for probe in build_probes([long], [(1,)], engine_limit=500)] == [256]
    cut = build_probes([two], [(3, 4)], engine_limit=4)  # scoring needs room for one more
    assert cut == [Probe(token_ids=(1, 2, 3), images=(picture,))]
