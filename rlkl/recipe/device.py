"""Check ``learner.device`` against the GPUs that the learner can have."""

from __future__ import annotations

from rlkl.errors import EnvironmentProblem


def check_cuda(choice: str, *, has_cuda: bool, gpus: float | None = None) -> None:
    """Raise `EnvironmentProblem` if ``learner.device`` is cuda and the learner would see no CUDA device.

    ``has_cuda``: whether there is one, by torch in this process or by the GPUs of the nodes. ``gpus``: learner.gpus.
    """
    if choice != "cuda" or (has_cuda and gpus != 0):
        return
    reason = (
        "learner.gpus = 0, and an actor sees only the GPUs that it reserves"
        if gpus == 0
        else "the learner sees no CUDA device: its machine has no GPU, torch was built without CUDA, or Ray reserved "
        "no GPU for it (learner.gpus)"
    )
    raise EnvironmentProblem(
        f"learner.device = 'cuda', but {reason}. Set learner.device=auto to train on the CPU, or run it where a GPU is "
        "free and reserve one with learner.gpus"
    )
