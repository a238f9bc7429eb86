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
LAST_SEQUENCES = 8
"""Sequences that are still running when the longest completion ends."""
HOST_RATE = 3e9
"""Bytes per second of publishing weights through host memory, as this version of rlkl does."""


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


def iteration_seconds(
    shape: ModelShape, chip: Chip, *, sequences: float, context: float, tensor_parallel: int = 1
) -> float:
    """Return the seconds in which an engine decodes one token of each sequence.

    It reads the weights and the caches, (2P + sequences · context · cache bytes) / (tp · bandwidth · 0.6) + 1 ms; and
    it computes 2·P·sequences operations at half the peak. The slower of the two counts.
    """
    gpu = chip.gpu
    read = chip.width * (shape.parameters + sequences * context * shape.cache_values)
    reading = read / (tensor_parallel * gpu.bandwidth * BANDWIDTH_SHARE) + ITERATION_S
    computing = 2 * shape.parameters * sequences / (tensor_parallel * chip.peak * DECODE_SHARE)
    return max(reading, computing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The completions of one step, and the engines that sample them."""

    sequences: float
    prompt: float
    """Mean length of a prompt, in tokens."""
    completion: float
    """Mean length of a completion."""
    longest: float
    """Longest completion."""
    engines: int
    in_flight: float
    """Sequences that one engine decodes at one time."""
    tensor_parallel: int = 1


def sampling_seconds(shape: ModelShape, chip: Chip, work: Sampling) -> float:
    """Return the seconds of sampling: all tokens at the full batch, or the longest completion with few others.

    max(total tokens / (engines · b) · iteration(b), longest · iteration(8)), with b sequences in flight.
    """
    context = work.prompt + work.completion / 2
    batch = max(min(work.in_flight, work.sequences / work.engines), 1.0)
    full = iteration_seconds(shape, chip, sequences=batch, context=context, tensor_parallel=work.tensor_parallel)
    few = iteration_seconds(
        shape,
        chip,
        sequences=min(LAST_SEQUENCES, batch),
        context=work.prompt + work.longest / 2,
        tensor_parallel=work.tensor_parallel,
    )
    return max(work.sequences * work.completion / (work.engines * batch) * full, work.longest * few)


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
