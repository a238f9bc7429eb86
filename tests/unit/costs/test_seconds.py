"""The formulas of time against numbers by hand and two published sizes."""

from __future__ import annotations

import pytest

from rlkl.costs.gpus import NETWORK, gpu_named
from rlkl.costs.known_shapes import known_shape
from rlkl.costs.seconds import (
    Chip,
    Sampling,
    Tokens,
    balanced_ranks,
    iteration_seconds,
    learner_seconds,
    least_micro_batch,
    operations,
    publish_seconds,
    sampling_seconds,
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
    assert iteration_seconds(shape, H100, sequences=10, context=1000) == pytest.approx(read / (3.35e12 * 0.6) + 1e-3)
    halved = iteration_seconds(shape, H100, sequences=10, context=1000, tensor_parallel=2)
    assert halved == pytest.approx(read / (2 * 3.35e12 * 0.6) + 1e-3)


def test_decoding_many_sequences_is_bound_by_computing():
    shape = shape_of("Qwen/Qwen2.5-7B")
    seconds = iteration_seconds(shape, H100, sequences=1000, context=1)
    assert seconds == pytest.approx(2 * shape.parameters * 1000 / (989e12 * 0.5))


def task(**changes: float) -> Sampling:
    values = {"sequences": 64, "prompt": 10, "completion": 20, "longest": 40, "engines": 2, "in_flight": 16} | changes
    return Sampling(**values)  # pyright: ignore[reportArgumentType]


def test_sampling_is_all_tokens_at_the_full_batch():
    shape = shape_of("Qwen/Qwen3-0.6B")
    iteration = iteration_seconds(shape, H100, sequences=16, context=20)
    assert sampling_seconds(shape, H100, task()) == pytest.approx(64 * 20 / (2 * 16) * iteration)
    assert sampling_seconds(shape, H100, task(engines=4)) < sampling_seconds(shape, H100, task())


def test_sampling_takes_at_least_as_long_as_its_longest_completion():
    shape = shape_of("Qwen/Qwen3-0.6B")
    last = iteration_seconds(shape, H100, sequences=8, context=10 + 500)
    assert sampling_seconds(shape, H100, task(longest=1000)) == pytest.approx(1000 * last)


def test_engines_never_decode_more_sequences_than_there_are():
    shape = shape_of("Qwen/Qwen3-0.6B")
    assert sampling_seconds(shape, H100, task(in_flight=32)) == sampling_seconds(shape, H100, task(in_flight=1e6))


def test_publishing_and_the_balanced_split_by_hand():
    assert publish_seconds(7.5e9) == 5
    assert publish_seconds(7.5e9, width=4) == 10
    assert balanced_ranks(16, 300, 100) == 12


def test_micro_batches_that_hide_their_communication():
    assert least_micro_batch(H100, NETWORK) == pytest.approx(7912, rel=1e-3)
    assert least_micro_batch(H100, H100.gpu.link) == pytest.approx(879, rel=1e-3)
