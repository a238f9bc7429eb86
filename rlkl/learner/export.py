"""Scoring an exported policy beside the learner that it was exported from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlkl.learner.learner import Learner
from rlkl.models.adapter import adapter_parameters
from rlkl.models.language_model import LanguageModel
from rlkl.models.policy import ADAPTER_FOLDER, Policy
from rlkl.types import Probe

Scores = Sequence[tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportScores:
    """Log-probs of the same probes from the learner and from the policy that was read back."""

    dtype: str
    """The precision that both computed in."""
    before: Scores | None
    """The policy before training; None where the learner no longer has it."""
    learner: Scores
    exported: Scores
    problem: str | None = None
    """A difference that was found without log-probs."""


def compare_export(learner: Learner, folder: Path, probes: Sequence[Probe]) -> ExportScores:
    """Load the policy in ``folder`` and score the probes with it and with the learner.

    With adapters, both compute in float32, where rounding hides nothing, and the policy before training is the learner
    with its adapters off. The learner gives up its memory step by step and cannot be used afterwards.
    """
    policy, before = learner.policy, None
    problem = None if policy.adapter is None else _adapter_problem(policy, folder / ADAPTER_FOLDER)
    learner.release()
    if policy.adapter is not None:
        policy.model.float()
        policy.dtype = torch.float32
        with policy.adapter.disable_adapter():
            before = learner.probe(probes)
    wanted = learner.probe(probes)
    policy.to("meta")  # frees the weights
    exported = LanguageModel(
        str(folder), dtype=policy.dtype, weights_dtype=torch.float32, device=policy.device
    ).requires_grad_(False)
    return ExportScores(
        dtype=str(policy.dtype).removeprefix("torch."),
        before=before,
        learner=wanted,
        exported=learner.probe(probes, exported),
        problem=problem,
    )


def _adapter_problem(policy: Policy, folder: Path) -> str | None:
    """Say which of the learner's adapters are not in ``folder`` bit for bit, or return None."""
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    held = {name: p.detach().float().cpu() for name, p in adapter_parameters(policy.model)}
    wrong = [name for name in sorted(held.keys() | saved.keys()) if not _equal(held.get(name), saved.get(name))]
    if not wrong:
        return None
    return f"{len(wrong)} tensors in its {ADAPTER_FOLDER}/ are not the learner's: {', '.join(wrong[:3])}"


def _equal(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    return left is not None and right is not None and torch.equal(left, right)
