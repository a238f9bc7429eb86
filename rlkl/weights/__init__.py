"""Publishing weights to the rollout engines, and proving what arrived: `channels`, `group`, `proof`, `movement`."""

from rlkl.weights.channels import (
    GroupReceipt,
    HostMemoryChannel,
    Outbox,
    PackedTensor,
    Probes,
    ProbeScores,
    Receipt,
    Receiver,
    WeightChannel,
    WeightPackage,
    differing_weights,
    receive,
    scores_of,
)
from rlkl.weights.movement import Scores
from rlkl.weights.proof import PROBE_TOKENS, TOLERANCE, Bounds, Expected, Proof, bounds_for, build_probes, check_export

__all__ = [
    "PROBE_TOKENS",
    "TOLERANCE",
    "Bounds",
    "Expected",
    "GroupReceipt",
    "HostMemoryChannel",
    "Outbox",
    "PackedTensor",
    "ProbeScores",
    "Probes",
    "Proof",
    "Receipt",
    "Receiver",
    "Scores",
    "WeightChannel",
    "WeightPackage",
    "bounds_for",
    "build_probes",
    "check_export",
    "differing_weights",
    "receive",
    "scores_of",
]
