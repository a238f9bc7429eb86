"""Seconds of the parts of a training step. Pure formulas; the symbols are those of `rlkl.costs.shapes`.

A unit is one operation for each parameter and token: a forward pass is 2 units, a backward pass 4. The attention itself
adds L·A·D·(sum of squared lengths) operations for each unit.

Sources: 2 and 4 operations per parameter and token, Kaplan et al. (arXiv 2001.08361), section 2.1; the shares of the
peaks and the rate of publishing are assumed (docs/planning.md lists them).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkl.costs.gpus import Gpu
from rlkl.costs.shapes import ModelShape

LEARNER_SHARE = 0.35
"""Part of the peak that the learner reaches (MFU)."""
BANDWIDTH_SHARE = 0.6
"""Part of the memory bandwidth that decoding reaches."""
DECODE_SHARE = 0.5
"""Part of the peak that decoding reaches if computing is its limit."""
ITERATION_S = 1e-3
"""Fixed seconds of one decoding iteration."""
HOST_RATE, GROUP_RATE = 3e9, 8e9
"""Bytes per second of publishing weights: through host memory, and by broadcast from GPU to GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Lengths of a set of sequences."""

    total: float
    """Sum of the lengths."""
    squares: float
    """Sum of the squared lengths."""

    @classmethod
    def alike(cls, sequences: float, length: float) -> Tokens:
        """Return the sums for sequences of one length."""
        return cls(total=sequences * length, squares=sequences * length**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """GPU and precision of the computation."""

    gpu: Gpu
    dtype: str = "bfloat16"

    @property
    def peak(self) -> float:
        return self.gpu.peak(self.dtype)

    @property
    def width(self) -> int:
        """Bytes of one number."""
        return 2 if self.dtype == "bfloat16" else 4


def operations(shape: ModelShape, tokens: Tokens, units: float) -> float:
    """Return units x (P·tokens + L·A·D·squares)."""
    attention = shape.layers * shape.heads * shape.head_size * tokens.squares
    return units * (shape.parameters * tokens.total + attention)


def learner_seconds(work: float, chip: Chip, *, gpus: float, share: float = LEARNER_SHARE) -> float:
    """Return the seconds for ``work`` operations on so many GPUs, at a share of their peak."""
    return work / (gpus * chip.peak * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLaw:
    """Seconds of one iteration of an engine (`rlkl.costs.engines.IterationLaw`), by its memory or by its computing."""

    weights_s: float
    """Reading the weights."""
    context_s: float
    """Reading the cache of one token."""
    sequence_s: float
    """Computing one token."""

    def __call__(self, running: float, context: float) -> float:
        """Return the seconds; ``context``: tokens of all running sequences together."""
        return max(self.weights_s + context * self.context_s + ITERATION_S, running * self.sequence_s)


def decode_law(shape: ModelShape, chip: Chip, *, tensor_parallel: int = 1) -> DecodeLaw:
    """Return the law of an engine.

    In an iteration it reads the weights and the caches, (2P + tokens · cache bytes) / (tp · bandwidth · 0.6) + 1 ms;
    and it computes 2·P·sequences operations at half the peak. The slower of the two counts.
    """
    bandwidth = tensor_parallel * chip.gpu.bandwidth * BANDWIDTH_SHARE
    return DecodeLaw(
        weights_s=chip.width * shape.parameters / bandwidth,
        context_s=chip.width * shape.cache_values / bandwidth,
        sequence_s=prefill_seconds(shape, chip, tensor_parallel=tensor_parallel),
    )


def prefill_seconds(shape: ModelShape, chip: Chip, *, tensor_parallel: int = 1) -> float:
    """Return the seconds in which an engine computes 2·P operations, those of one token, at half the peak."""
    return 2 * shape.parameters / (tensor_parallel * chip.peak * DECODE_SHARE)


def publish_seconds(parameters: float, *, width: int = 2, rate: float = HOST_RATE) -> float:
    """Return the seconds in which the published weights reach the engines."""
    return width * parameters / rate


def balanced_ranks(gpus: int, learner: float, rollout: float) -> float:
    """Return the GPUs for the learner that make both sides take equally long: G · W_learner / (W_learner + W_rollout).

    ``learner``, ``rollout``: seconds of each side on one GPU.
    """
    return gpus * learner / (learner + rollout)


def least_micro_batch(chip: Chip, rate: float) -> float:
    """Return the tokens of a micro-batch from which on a sharded learner computes longer than it communicates.

    With gradients reduced at every micro-batch: peak · 0.4 / (bytes per second and GPU), whatever the model's size.
    """
    return chip.peak * 0.4 / rate
