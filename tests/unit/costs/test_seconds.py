"""The formulas of time against numbers by hand and two published sizes."""

from __future__ import annotations

import pytest

from rlkl.costs.gpus import NETWORK, gpu_named
from rlkl.costs.known_shapes import known_shape
from rlkl.costs.seconds import (
    GROUP_RATE,
    Chip,
    Tokens,
    balanced_ranks,
    decode_law,
    learner_seconds,
    least_micro_batch,
    operations,
    prefill_seconds,
    publish_seconds,
)
from rlkl.costs.shapes import ModelShape

H100 = Chip(gpu=gpu_named("H100"))
TINY = ModelShape(vocabulary=100, hidden=8, layers=2, heads=4, kv_heads=2, head_size=2, intermediate=16, is_tied=False)


def shape_of(name: str) -> ModelShape:
    shape = known_shape(name)
    assert shape is not None
    return shape


@pytest.mark.parametrize(("name", "gpus", "seconds"), [("Qwen/Qwen2.5-7B", 8, 41), ("Qwen/Qwen2.5-32B", 16, 89)])
def test_a_learner_step_of_a_thousand_sequences(name: str, gpus: int, seconds: int):
    work = operations(shape_of(name), Tokens.alike(1024, 2048), units=8)
    assert round(learner_seconds(work, H100, gpus=gpus, share=0.4)) == seconds


def test_operations_by_hand():
    tokens = Tokens(total=30, squares=500)
    assert Tokens.alike(2, 5) == Tokens(total=10, squares=50)
    assert operations(TINY, tokens, units=6) == 6 * (TINY.parameters * 30 + 2 * 4 * 2 * 500)


def test_decoding_reads_weights_and_caches():
    shape = shape_of("Qwen/Qwen2.5-7B")
    read = 2 * shape.parameters + 10 * 1000 * 56 * 1024
    assert decode_law(shape, H100)(10, 10 * 1000) == pytest.approx(read / (3.35e12 * 0.6) + 1e-3)
    halved = decode_law(shape, H100, tensor_parallel=2)(10, 10 * 1000)
    assert halved == pytest.approx(read / (2 * 3.35e12 * 0.6) + 1e-3)


def test_decoding_many_sequences_is_bound_by_computing():
    shape = shape_of("Qwen/Qwen2.5-7B")
    seconds = decode_law(shape, H100)(1000, 1000)
    assert seconds == pytest.approx(2 * shape.parameters * 1000 / (989e12 * 0.5))
    assert prefill_seconds(shape, H100) == pytest.approx(seconds / 1000), "a prompt's token is computed like any other"
    assert prefill_seconds(shape, H100, tensor_parallel=4) == pytest.approx(seconds / 4000)


def test_publishing_and_the_balanced_split_by_hand():
    assert publish_seconds(7.5e9) == 5
    assert publish_seconds(8e9, rate=GROUP_RATE) == 2
    assert publish_seconds(7.5e9, width=4) == 10
    assert balanced_ranks(16, 300, 100) == 12


def test_micro_batches_that_hide_their_communication():
    assert least_micro_batch(H100, NETWORK) == pytest.approx(7912, rel=1e-3)
    assert least_micro_batch(H100, H100.gpu.link) == pytest.approx(879, rel=1e-3)
