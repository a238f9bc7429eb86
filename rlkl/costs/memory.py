"""Bytes that a run needs on a GPU. Pure formulas; the symbols P, L, H, V, A, K, D, I are those of `rlkl.costs.shapes`.

t is the number of tokens of a micro-batch, C the number of tokens whose logits exist at one time, N the number of GPUs
over which the learner is sharded. "layer" and "root" are the parameters of one layer and of the rest.

Sources: the bytes of optimizer and weights follow from AdamW in mixed precision; the activations are the counted saved
tensors of a Llama layer, in the manner of Korthikanti et al. (arXiv 2205.05198), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlkl.costs.eight_bit import BYTES, WHOLE_BYTES
from rlkl.costs.shapes import ModelShape

GIB = 2**30
SLACK = 1.05
"""Fragmentation of the allocator."""
CONTEXT = 2 * GIB
"""The CUDA context, libraries and their workspaces."""
TILE_IDS = 4096
"""Ids of a tile of the vocabulary (`rlkl.functional.linear_scores.TILE_IDS`, which needs torch)."""
GRAPHS = 3 * GIB
"""The CUDA graphs and workspaces of an engine."""
ASLEEP = GRAPHS
"""Left on the GPU by an engine that sleeps."""
ENGINE_SHARE = 0.9
"""The part of a GPU's memory that an engine may take (`rlkl.recipe.placement.USABLE_GPU_MEMORY`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that fills memory, in bytes, and the recipe keys that change it."""

    name: str
    bytes: float
    keys: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The settings of a learner that decide its memory."""

    is_bfloat16: bool = True
    is_checkpointed: bool = True
    micro_batch: int = 8192
    chunk: int = 1024
    frozen: tuple[int, ...] = ()
    """Parameters of each frozen model that is held as a copy."""
    adapters: int | None = None
    """Trained parameters of LoRA adapters; None: all weights are trained."""
    critic: int = 0
    """Parameters of a separate critic, which is trained like the policy, without gradient checkpointing."""
    offloads_optimizer: bool = False
    has_8_bit_moments: bool = False
    has_whole_logits: bool = False
    """The scores need the logits of the whole vocabulary at one time, as those of the likeliest tokens do."""

    @property
    def width(self) -> int:
        """Bytes of one number of the computation."""
        return 2 if self.is_bfloat16 else 4


def moment_bytes(shape: ModelShape, run: Training) -> float:
    """Return the bytes of AdamW's two moments on the GPU during a pass: 8 a trained parameter, or in 8 bits 2.03.

    0 if they are offloaded. Adapters have 32 bits: the rows of half of them are shorter than a block.
    """
    if run.offloads_optimizer:
        return 0.0
    policy = shape.parameters if run.adapters is None else run.adapters
    whole = WHOLE_BYTES * (policy + run.critic)
    if not run.has_8_bit_moments:
        return whole
    small = (shape.in_8_bit if run.adapters is None else 0) + (shape.in_8_bit if run.critic else 0)
    return whole - (WHOLE_BYTES - BYTES) * small


def activation_bytes(shape: ModelShape, run: Training) -> float:
    """Return the bytes of saved activations of one micro-batch.

    For each token and layer a = 8H + 6AD + 8KD + 8I bytes in bfloat16 (4I for an MLP of two matrices). With gradient
    checkpointing the inputs of all layers and the inside of one: (2·H·L + a)·t. Without it L·t·(a + 2·kept), with
    ``kept`` by family, and in bfloat16 another 5H for the float32 inputs of RMS norms. Otherwise twice in float32.
    """
    inner = (8 if shape.mlp_matrices == 3 else 4) * shape.intermediate
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    per_layer = 8 * shape.hidden + 6 * query + 8 * key + inner
    if run.is_checkpointed:
        return (2 * shape.hidden * shape.layers + per_layer) * run.micro_batch * run.width / 2
    has_rms_norm = shape.mlp_matrices == 3  # Llama's descendants have both
    norms = 5 * shape.hidden if has_rms_norm and run.is_bfloat16 else 0
    return shape.layers * ((per_layer + 2 * shape.kept) * run.width / 2 + norms) * run.micro_batch


def logits_bytes(shape: ModelShape, run: Training) -> float:
    """Return the bytes of the output head's work on C tokens at one time.

    By tiles of 4,096 ids (`rlkl.functional.linear_scores`) 18·C·4096 bytes: four buffers in float32 and a product in
    bfloat16; and for each of the t tokens of the micro-batch 6·H bytes, the gradient of its hidden state in float32 and
    bfloat16. A vocabulary of one tile, or whole logits, 14·C·V: logits in bfloat16 and float32, log-softmax, gradient.
    In float32 there are no bfloat16 copies.
    """
    low, chunk = (2 if run.is_bfloat16 else 0), min(run.chunk, run.micro_batch)
    if shape.vocabulary <= TILE_IDS or run.has_whole_logits:
        return (low + 12) * chunk * shape.vocabulary
    return (low + 16) * chunk * TILE_IDS + (low + 4) * run.micro_batch * shape.hidden


def learner_parts(shape: ModelShape, run: Training) -> tuple[Part, ...]:
    """List the memory of a learner in one process.

    All weights in bfloat16: 2P of weights that compute, 4P of float32 weights that the optimizer moves, 4P of
    gradients, 8P of moments. In float32: 4P, 4P and 8P. With adapters: the frozen weights, and the same for the
    adapters. Each frozen model: its weights. In the backward pass the bfloat16 gradient of the root (2·root) exists
    beside all that.
    """
    total, width = shape.parameters, run.width
    trained = (total if run.adapters is None else run.adapters) + run.critic
    master = 4 * trained if run.is_bfloat16 else 0
    held = width * (total + (run.adapters or 0) + run.critic)
    transient = 2 * shape.root if run.is_bfloat16 and run.adapters is None else 0
    parts = (
        Part(name="weights", bytes=held + master, keys="model.path, model.dtype"),
        Part(name="gradients", bytes=4 * trained, keys="model.lora"),
        Part(name="AdamW moments", bytes=moment_bytes(shape, run), keys="learner.optimizer, learner.offload"),
        Part(name="frozen models", bytes=width * sum(run.frozen), keys="update.kl_coef, models"),
        *_working_memory(shape, run),
        Part(name="gradient of the head", bytes=transient, keys="model.path"),
    )
    return _with_slack(parts)


def sharded_learner_parts(shape: ModelShape, run: Training, ranks: int) -> tuple[Part, ...]:
    """List the memory of one of N ranks of a learner sharded by FSDP2 (bfloat16 compute, float32 state).

    State 16P/N: weights 4, gradients 4, moments 8 (0 if the optimizer is offloaded). With adapters
    2P/N + 16·P_lora/N. A frozen model 2P/N + 2·root, because its root stays whole. On top the larger of two moments:

    - during a pass: 2·root (gathered) + 2·root (its bfloat16 gradient) + 4·layer (two gathered layers) + 6·layer
      (bfloat16 gradient, float32 reduce buffer) + activations + logits;
    - at the end of the backward pass: 2·root + 6·root.
    """
    trained = (shape.parameters if run.adapters is None else run.adapters) + run.critic
    base = 0 if run.adapters is None else 2 * shape.parameters / ranks
    during = (
        Part(name="gathered root", bytes=4 * shape.root, keys="model.path"),
        Part(name="gathered layers", bytes=10 * shape.layer, keys="model.path"),
        *_working_memory(shape, run),
    )
    at_end = (Part(name="gathered root at end", bytes=8 * shape.root, keys="model.path"),)
    parts = (
        Part(name="weights", bytes=4 * trained / ranks + base, keys="model.path, model.lora"),
        Part(name="gradients", bytes=4 * trained / ranks, keys="model.lora"),
        Part(
            name="AdamW moments",
            bytes=moment_bytes(shape, run) / ranks,
            keys="learner.optimizer, learner.offload",
        ),
        Part(
            name="frozen models",
            bytes=sum(2 * frozen / ranks + 2 * shape.root for frozen in run.frozen),
            keys="update.kl_coef, models",
        ),
        *max(during, at_end, key=_sum),
    )
    return _with_slack(parts)


def _working_memory(shape: ModelShape, run: Training) -> tuple[Part, ...]:
    keys = "learner.micro_batch_tokens" if run.is_checkpointed else "model.gradient_checkpointing"
    whole = activation_bytes(shape, replace(run, is_checkpointed=False)) if run.critic else 0.0
    return (
        Part(name="activations", bytes=activation_bytes(shape, run), keys=keys),
        Part(name="critic's activations", bytes=whole, keys="update.critic"),
        Part(name="logits", bytes=logits_bytes(shape, run), keys="learner.logits_chunk_tokens"),
    )


def _with_slack(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    slack = (SLACK - 1) * _sum(parts) + CONTEXT
    return (*(part for part in parts if part.bytes), Part(name="CUDA, fragmentation", bytes=slack, keys="fixed"))


def _sum(parts: tuple[Part, ...]) -> float:
    return sum(part.bytes for part in parts)


def peak_bytes(parts: tuple[Part, ...]) -> float:
    """Return the sum of all parts."""
    return _sum(parts)


_AT_REST = ("weights", "AdamW moments", "frozen models", "CUDA, fragmentation")


def resting_bytes(parts: tuple[Part, ...]) -> float:
    """Return the memory of a learner between two steps, when gradients and activations are freed."""
    return sum(part.bytes for part in parts if part.name in _AT_REST)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Memory of one rollout engine on each of its ``tensor_parallel`` GPUs, in bytes, and its key-value cache."""

    weights: float
    graphs: float
    cache: float
    """Left for the key-value cache on each GPU; negative if not even the weights fit."""
    token: float
    """Bytes of one token in the cache, over all GPUs of the engine: 2·L·K·D numbers."""
    tensor_parallel: int

    @property
    def allowed(self) -> float:
        """Bytes that the engine may take on each GPU."""
        return self.weights + self.graphs + self.cache

    @property
    def tokens(self) -> float:
        """Tokens that the cache holds; 0 if the weights do not fit."""
        return max(self.cache, 0.0) * self.tensor_parallel / self.token

    def sequences(self, length: float) -> float:
        """Return how many sequences of a length, in tokens, are in flight at one time."""
        return self.tokens / length


def engine_memory(shape: ModelShape, *, memory: float, width: int = 2, tensor_parallel: int = 1) -> EngineMemory:
    """Divide the memory that an engine may take on each GPU: weights 2P/tp, graphs, and the rest for the cache.

    ``memory``: bytes that it may take on each GPU. ``width``: bytes of one number, 2 in bfloat16.
    """
    weights = width * shape.parameters / tensor_parallel
    return EngineMemory(
        weights=weights,
        graphs=GRAPHS,
        cache=memory - weights - GRAPHS,
        token=width * shape.cache_values,
        tensor_parallel=tensor_parallel,
    )
