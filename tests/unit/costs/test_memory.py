"""The formulas of memory against a table of published-size models, and against numbers by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlkl.costs import memory
from rlkl.costs.gpus import gpu_named
from rlkl.costs.known_shapes import known_shape
from rlkl.costs.memory import (
    CONTEXT,
    GIB,
    SLACK,
    Training,
    activation_bytes,
    engine_memory,
    learner_parts,
    logits_bytes,
    moment_bytes,
    peak_bytes,
    sharded_learner_parts,
)
from rlkl.costs.shapes import ModelShape
from rlkl.functional.linear_scores import TILE_IDS
from rlkl.recipe.placement import USABLE_GPU_MEMORY

RANKS = (8, 16, 32, 64)
TABLE = {
    ("Qwen/Qwen2.5-7B", "reference"): (33, 24, 20, 18),
    ("Qwen/Qwen2.5-7B", "alone"): (29, 21, 18, 16),
    ("Qwen/Qwen2.5-7B", "offloaded"): (21, 18, 16, 15),
    ("Qwen/Qwen2.5-32B", "reference"): (98, 62, 44, 35),
    ("Qwen/Qwen2.5-32B", "alone"): (87, 55, 39, 31),
    ("Qwen/Qwen2.5-32B", "offloaded"): (55, 39, 31, 27),
    ("Qwen/Qwen2.5-72B", "reference"): (201, 121, 81, 61),
    ("Qwen/Qwen2.5-72B", "alone"): (178, 107, 71, 54),
    ("Qwen/Qwen2.5-72B", "offloaded"): (107, 71, 54, 45),
}
"""GiB of a rank for 8, 16, 32 and 64 ranks: micro-batch of 8,192 tokens, checkpointed, bfloat16, whole logits of 1,024
tokens."""
CACHE_TOKENS = [
    ("Qwen/Qwen2.5-7B", 1, 1.0, 56),
    ("Qwen/Qwen2.5-32B", 1, 0.03, 256),
    ("Qwen/Qwen2.5-32B", 2, 0.3, 256),
    ("Qwen/Qwen2.5-32B", 4, 0.9, 256),
    ("Qwen/Qwen2.5-72B", 4, 0.46, 320),
    ("Qwen/Qwen2.5-72B", 8, 1.4, 320),
]
"""Model, GPUs of an engine, millions of tokens in its cache on H100s, KiB of a token."""

TINY = ModelShape(vocabulary=100, hidden=8, layers=2, heads=4, kv_heads=2, head_size=2, intermediate=16, is_tied=False)


def shape_of(name: str) -> ModelShape:
    shape = known_shape(name)
    assert shape is not None
    return shape


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_a_sharded_learner_needs_what_the_table_says(name: str, kind: str):
    shape = shape_of(name)
    run = Training(
        frozen=(shape.parameters,) if kind == "reference" else (),
        offloads_optimizer=kind == "offloaded",
        has_whole_logits=True,
    )
    gib = tuple(round(peak_bytes(sharded_learner_parts(shape, run, ranks)) / GIB) for ranks in RANKS)
    assert gib == TABLE[name, kind]


@pytest.mark.parametrize(("name", "gpus", "millions", "kib"), CACHE_TOKENS)
def test_an_engine_holds_as_many_tokens_as_the_table_says(name: str, gpus: int, millions: float, kib: int):
    engine = engine_memory(shape_of(name), memory=USABLE_GPU_MEMORY * gpu_named("H100").bytes, tensor_parallel=gpus)
    digits = len(str(millions).partition(".")[2])
    assert round(engine.tokens / 1e6, digits) == millions
    assert engine.token == kib * 1024


def test_an_engine_that_does_not_fit_holds_nothing():
    engine = engine_memory(shape_of("Qwen/Qwen2.5-72B"), memory=72 * GIB)
    assert engine.cache < 0
    assert engine.tokens == engine.sequences(100) == 0


def test_activations_by_hand():
    per_layer = 8 * 8 + 6 * 4 * 2 + 8 * 2 * 2 + 8 * 16
    run = Training(micro_batch=10)
    assert activation_bytes(TINY, run) == (2 * 8 * 2 + per_layer) * 10
    whole = replace(run, is_checkpointed=False)
    assert activation_bytes(TINY, whole) == 2 * (per_layer + 5 * 8) * 10
    assert activation_bytes(TINY, replace(whole, is_bfloat16=False)) == 2 * 2 * per_layer * 10
    assert activation_bytes(replace(TINY, kept=3), whole) == 2 * (per_layer + 5 * 8 + 2 * 3) * 10
    assert activation_bytes(TINY, replace(run, is_bfloat16=False)) == 2 * activation_bytes(TINY, run)
    two = replace(TINY, mlp_matrices=2)
    assert activation_bytes(TINY, run) - activation_bytes(two, run) == 4 * 16 * 10


def test_logits_by_hand():
    assert logits_bytes(TINY, Training(chunk=3)) == 14 * 3 * 100
    assert logits_bytes(TINY, Training(chunk=3, is_bfloat16=False)) == 12 * 3 * 100
    assert logits_bytes(TINY, Training(chunk=1000, micro_batch=10)) == 14 * 10 * 100, "no more tokens than there are"


def test_tiles_of_a_large_vocabulary_by_hand():
    assert memory.TILE_IDS == TILE_IDS
    wide = replace(TINY, vocabulary=150_000)
    run = Training(chunk=100, micro_batch=1000)
    assert logits_bytes(wide, run) == (4 * 4 + 2) * 100 * 4096 + (4 + 2) * 1000 * 8
    assert logits_bytes(wide, replace(run, is_bfloat16=False)) == 16 * 100 * 4096 + 4 * 1000 * 8
    assert logits_bytes(wide, replace(run, has_whole_logits=True)) == 14 * 100 * 150_000


@pytest.mark.parametrize(("is_bfloat16", "per_parameter"), [(True, 18), (False, 16)])
def test_one_process_by_hand(is_bfloat16: bool, per_parameter: int):
    run = Training(is_bfloat16=is_bfloat16, micro_batch=10, chunk=3, frozen=(TINY.parameters, 50))
    state = per_parameter * TINY.parameters + run.width * (TINY.parameters + 50)
    gradient = 2 * TINY.root if is_bfloat16 else 0
    whole = state + activation_bytes(TINY, run) + logits_bytes(TINY, run) + gradient
    assert peak_bytes(learner_parts(TINY, run)) == pytest.approx(SLACK * whole + CONTEXT)


def test_adapters_leave_only_the_frozen_weights():
    run = Training(adapters=7, micro_batch=10, chunk=3)
    whole = 2 * TINY.parameters + 18 * 7 + activation_bytes(TINY, run) + logits_bytes(TINY, run)
    assert peak_bytes(learner_parts(TINY, run)) == pytest.approx(SLACK * whole + CONTEXT)


def test_adapters_on_ranks_by_hand():
    run = Training(adapters=8, micro_batch=10, chunk=3)
    working = activation_bytes(TINY, run) + logits_bytes(TINY, run) + 4 * TINY.root + 10 * TINY.layer
    whole = 2 * TINY.parameters / 4 + 16 * 8 / 4 + max(working, 8 * TINY.root)
    assert peak_bytes(sharded_learner_parts(TINY, run, 4)) == pytest.approx(SLACK * whole + CONTEXT)


def test_a_critic_is_trained_like_the_policy():
    alone, both = (peak_bytes(learner_parts(TINY, Training(critic=critic))) for critic in (0, TINY.parameters))
    activations = activation_bytes(TINY, Training(is_checkpointed=False))
    assert both - alone == pytest.approx(SLACK * (18 * TINY.parameters + activations))


def test_each_part_names_a_key_and_empty_parts_are_left_out():
    parts = learner_parts(TINY, Training())
    assert all(part.keys and part.bytes > 0 for part in parts)
    assert "frozen models" not in [part.name for part in parts]


def test_the_end_of_the_backward_pass_can_be_the_peak():
    small = Training(micro_batch=1, chunk=1)
    wide = replace(TINY, vocabulary=10_000)
    assert "gathered root at end" in [part.name for part in sharded_learner_parts(wide, small, 2)]
    large = Training(micro_batch=100_000, chunk=1)
    assert "gathered layers" in [part.name for part in sharded_learner_parts(wide, large, 2)]


def test_moments_of_8_bits_take_a_quarter_where_rows_are_of_whole_blocks():
    plain = moment_bytes(TINY, Training())
    assert plain == 8 * TINY.parameters
    assert moment_bytes(TINY, Training(has_8_bit_moments=True)) == plain, "its rows are shorter than a block"
    wide = known_shape("Qwen/Qwen2.5-7B")
    assert wide is not None
    embeddings, vectors = wide.vocabulary * wide.hidden, wide.layers * wide.layer_vectors + wide.root_vectors
    assert wide.in_8_bit == wide.parameters - embeddings - vectors
    found = moment_bytes(wide, Training(has_8_bit_moments=True))
    assert found == pytest.approx(8 * (embeddings + vectors) + (2 + 8 / 256) * wide.in_8_bit)
    narrow = known_shape("Qwen/Qwen2.5-0.5B")
    assert narrow is not None
    assert narrow.in_8_bit == narrow.layers * narrow.hidden * narrow.intermediate, "896 is no multiple of 256"


def test_moments_of_adapters_have_32_bits_and_those_of_a_critic_beside_them_8():
    wide = known_shape("Qwen/Qwen2.5-7B")
    assert wide is not None
    assert moment_bytes(wide, Training(has_8_bit_moments=True, adapters=100)) == 800
    both = Training(has_8_bit_moments=True, adapters=100, critic=wide.parameters)
    assert moment_bytes(wide, both) == 800 + moment_bytes(wide, Training(has_8_bit_moments=True))


def test_offloaded_moments_are_not_on_the_gpu_during_a_pass():
    assert moment_bytes(TINY, Training(offloads_optimizer=True)) == 0
    alone = [peak_bytes(learner_parts(TINY, Training(offloads_optimizer=x))) for x in (False, True)]
    assert alone[0] - alone[1] == pytest.approx(SLACK * moment_bytes(TINY, Training()))
