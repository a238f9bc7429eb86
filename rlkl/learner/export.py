"""Compare an exported policy with the learner that wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from rlkl.learner.learner import Learner
from rlkl.models.adapter import adapter_parameters
from rlkl.models.language_model import LanguageModel
from rlkl.models.policy import ADAPTER_FOLDER, Policy
from rlkl.models.sharding import reshard, whole
from rlkl.types import Probe

Scores = Sequence[tuple[float, ...]]

_SPARE_BYTES = 2 * 2**30
"""Room on a GPU for the activations of the probes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportScores:
    """Log-probs of the same probes from the learner and from the policy that was read back."""

    dtype: str
    """The precision that both computed in."""
    before: Scores | None
    """The policy before training; None where the learner no longer has it."""
    learner: Scores
    exported: Scores
    rounding: float
    """Change of the learner's log-probs by that precision (nats, root mean square); 0 in float32."""
    problem: str | None = None
    """A difference between the tensors themselves; None if there is none."""


def compare_export(learner: Learner, folder: Path, probes: Sequence[Probe]) -> ExportScores:
    """Read the policy in ``folder`` back: compare its tensors with the learner's, and score the probes with both.

    With adapters, both compute in float32, so rounding hides no difference. The policy before training is the learner
    with its adapters off. This frees the learner's memory; it cannot be used afterwards. If a GPU has no room for the
    policy in float32, the comparison runs on the CPU.
    """
    if learner.ranks.size > 1:
        return _compare_shards(learner, folder, probes)
    policy, before, rounding = learner.policy, None, 0.0
    problem = _problem(policy, folder)
    learner.release()
    if policy.device.type == "cuda":
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info(policy.device)
        if free_bytes < growth_to_float32(policy) + _SPARE_BYTES:
            learner.move(torch.device("cpu"))
    if policy.adapter is not None:
        policy.to_float32()
        with policy.without_adapter():
            before = learner.probe(probes)
    wanted, dtype = learner.probe(probes), policy.dtype
    if dtype != torch.float32:
        policy.to_float32()
        rounding = _rms(wanted, learner.probe(probes)) if probes else 0.0
    policy.to("meta")  # frees the weights
    exported = LanguageModel(str(folder), dtype=dtype, device=policy.device).requires_grad_(False)
    return ExportScores(
        dtype=str(dtype).removeprefix("torch."),
        before=before,
        learner=wanted,
        exported=learner.probe(probes, exported),
        rounding=rounding,
        problem=problem,
    )


def _compare_shards(learner: Learner, folder: Path, probes: Sequence[Probe]) -> ExportScores:
    """Compare on rank 0. Every rank must call this; the answers of others than rank 0 mean nothing.

    All ranks compute the learner's log-probs in its own precision. With adapters in bfloat16, rank 0 computes them in
    float32 instead, from the weights that all ranks gather for it.
    """
    policy, reads = learner.policy, learner.ranks.rank == 0
    problem = _problem(policy, folder, reads=reads)
    wanted = learner.probe(probes)
    before: Scores | None = None
    if policy.adapter is not None:
        with policy.without_adapter():
            before = learner.probe(probes)
    learner.release()
    device = _room_for_whole(policy)
    if policy.adapter is not None and policy.dtype != torch.float32:
        before, wanted = _merged_scores(learner, probes, device)
    dtype = policy.dtype if policy.adapter is None else torch.float32
    exported, rounding = wanted, 0.0
    if reads:
        model = LanguageModel(str(folder), dtype=dtype, device=device).requires_grad_(False)
        exported = learner.probe(probes, model)
        if dtype != torch.float32 and probes:
            model = LanguageModel(str(folder), dtype=torch.float32, device=device).requires_grad_(False)
            rounding = _rms(exported, learner.probe(probes, model))
    return ExportScores(
        dtype=str(dtype).removeprefix("torch."),
        before=before,
        learner=wanted,
        exported=exported,
        rounding=rounding,
        problem=problem,
    )


def _room_for_whole(policy: Policy) -> torch.device:
    """Return the policy's device, or the CPU if the whole policy in float32 has no room there."""
    if policy.device.type == "cuda":
        torch.cuda.empty_cache()
        needed = sum(4 * p.numel() for p in policy.parameters())
        if torch.cuda.mem_get_info(policy.device)[0] < needed + _SPARE_BYTES:
            return torch.device("cpu")
    return policy.device


def _merged_scores(learner: Learner, probes: Sequence[Probe], device: torch.device) -> tuple[Scores, Scores]:
    """Return log-probs of the policy before training and now, in float32; those of other ranks than 0 are empty."""
    policy = learner.policy
    if learner.ranks.rank > 0:
        for _ in policy.exported():
            pass
        return (), ()
    model = LanguageModel(policy.path, dtype=torch.float32, device=device).requires_grad_(False)
    before = learner.probe(probes, model)
    own = model.model.state_dict()
    for name, tensor in policy.exported():
        own[name].copy_(tensor)
    return before, learner.probe(probes, model)


def growth_to_float32(policy: Policy) -> int:
    """Return the bytes that the policy's weights need in float32, beyond what they take now."""
    return sum(4 * p.numel() - p.nbytes for p in policy.parameters())


def _problem(policy: Policy, folder: Path, *, reads: bool = True) -> str | None:
    """Name the tensors in ``folder`` that are not the learner's bit for bit, or return None.

    A rank that does not read them only takes part in gathering the learner's.
    """
    reshard(policy)
    held = {name: whole(p.detach()).float() for name, p in adapter_parameters(policy.model)}
    of_adapter = _differing(held.items(), folder / ADAPTER_FOLDER, reads=reads) if policy.adapter is not None else None
    of_policy = _differing(policy.exported(), folder, reads=reads)
    return f"{ADAPTER_FOLDER}/ in it {of_adapter}" if of_adapter else of_policy


def _differing(held: Iterable[tuple[str, torch.Tensor]], folder: Path, *, reads: bool) -> str | None:
    """Compare tensors with those of that name in the safetensors files of ``folder``, one at a time.

    Some architectures have other names in files than in memory; only the log-probs check those.
    """
    from safetensors import safe_open

    with ExitStack() as opened:
        paths = sorted(folder.glob("*.safetensors")) if reads else []
        files = [opened.enter_context(safe_open(path, framework="pt")) for path in paths]
        file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        wrong = [
            name
            for name, tensor in held
            if name in file_of and not torch.equal(file_of[name].get_tensor(name), tensor.cpu())
        ]
    return f"holds {len(wrong)} tensors that are not the learner's: {', '.join(wrong[:3])}" if wrong else None


def _rms(left: Scores, right: Scores) -> float:
    gaps = torch.cat([torch.tensor(one) - torch.tensor(other) for one, other in zip(left, right, strict=True)])
    return float(gaps.square().mean().sqrt())
