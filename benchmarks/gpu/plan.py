"""Predict the peak memory of a learner's step on one GPU from the sizes of the model.

P weights, L layers, H hidden, A heads and K key-value heads of width D, I intermediate, V vocabulary, t tokens of a
micro-batch, C tokens whose logits exist at one time. Bytes, in bfloat16:

- state: 18 P = bfloat16 weights 2, float32 weights 4, float32 gradients 4, moments 8 (as ``rlkl plan`` has it)
- reference: 2 P (as ``rlkl plan`` has it)
- one bfloat16 gradient at a time: 2 V H, the largest
- activations: 8 H + 6 A D + 8 K D + 8 I a token and layer
- logits: 14 C V = bfloat16 logits, float32 logits, their log-softmax, its gradient
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.against.rlkl_side import recipe_of
from benchmarks.against.workload import Workload
from rlkl.recipe.memory import estimate_memory

GIB = 2**30
SLACK = 1.05
CONTEXT_BYTES = 2 * GIB
"""CUDA's own memory, its kernels and workspaces; torch's counter sees only a part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMemory:
    """Parts of the peak, in bytes."""

    state: float
    reference: float
    gradient: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of the parts, without slack."""
        return self.state + self.reference + self.gradient + self.activations + self.logits

    @property
    def limit(self) -> float:
        """The most that a device must have."""
        return self.total * SLACK + CONTEXT_BYTES


def planned_memory(workload: Workload) -> PlannedMemory:
    """Return the parts of the peak of a bfloat16 learner's step without gradient checkpointing."""
    case, shape = workload.case, workload.case.shape
    assert case.dtype == "bfloat16", "the formula is for bfloat16"
    per_token = (
        8 * shape.hidden
        + 6 * shape.heads * shape.head_dim
        + 8 * shape.kv_heads * shape.head_dim
        + 8 * shape.intermediate
    )
    recipe = recipe_of(workload, steps=1, device="cuda")
    estimate = estimate_memory(recipe, workload.policy, [])
    assert estimate is not None, f"no weights in {workload.policy}"
    return PlannedMemory(
        state=estimate.learner_gib * GIB,
        reference=estimate.reference_gib * GIB,
        gradient=2 * shape.vocabulary * shape.hidden,
        activations=shape.layers * per_token * min(case.micro_batch_tokens, workload.tokens),
        logits=14 * recipe.learner.logits_chunk_tokens * shape.vocabulary,
    )
