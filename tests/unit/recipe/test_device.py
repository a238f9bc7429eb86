"""One check decides whether learner.device = cuda can work."""

from __future__ import annotations

import pytest
import torch

from rlkl.errors import EnvironmentProblem
from rlkl.learner.device import learner_device
from rlkl.recipe.device import check_cuda


@pytest.mark.parametrize(
    ("choice", "has_cuda", "gpus"), [("auto", False, 0), ("cpu", False, None), ("cuda", True, 0.5)]
)
def test_a_device_that_can_be_had_passes(choice: str, has_cuda: bool, gpus: float | None):
    check_cuda(choice, has_cuda=has_cuda, gpus=gpus)


@pytest.mark.parametrize(
    ("has_cuda", "gpus", "reason"),
    [(False, None, "the learner sees no CUDA device"), (True, 0, "learner.gpus = 0, and an actor sees only")],
)
def test_cuda_that_the_learner_cannot_have_is_refused(has_cuda: bool, gpus: float | None, reason: str):
    with pytest.raises(EnvironmentProblem, match=rf"^learner\.device = 'cuda', but {reason}.*Set learner\.device=auto"):
        check_cuda("cuda", has_cuda=has_cuda, gpus=gpus)


def test_torch_and_the_placement_report_a_missing_gpu_alike(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem) as by_torch:
        learner_device("cuda")
    with pytest.raises(EnvironmentProblem) as by_nodes:
        check_cuda("cuda", has_cuda=False)
    assert str(by_torch.value) == str(by_nodes.value)
    assert learner_device("auto") == torch.device("cpu")
