"""Log-probs on the GPU against those on the CPU, and that a sequence's do not depend on its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlkl.learner.learner import Learner
from rlkl.types import Probe
from tests.gpu.learners import build, examples, write_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


def probes() -> list[Probe]:
    return [Probe(token_ids=e.prompt.token_ids + e.rollout.completion.token_ids) for e in examples()]


def logprobs(learner: Learner, found: list[Probe]) -> torch.Tensor:
    return torch.tensor([value for row in learner.probe(found) for value in row])


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean())


def test_float32_equals_the_cpu(path: str):
    on_gpu, on_cpu = (logprobs(build(path, device, "float32"), probes()) for device in ("cuda", "cpu"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-3)
    assert error(on_gpu, on_cpu) < 1e-4


def test_bfloat16_rounds_no_more_than_on_the_cpu(path: str):
    exact = logprobs(build(path, "cpu", "float32"), probes())
    on_cpu = error(logprobs(build(path, "cpu", "bfloat16"), probes()), exact)
    on_gpu = error(logprobs(build(path, "cuda", "bfloat16"), probes()), exact)
    assert 0 < on_gpu < 1.5 * on_cpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sequence_alone_has_the_log_probs_that_it_has_among_others(path: str, dtype: str):
    """Fails if attention sees another sequence or padding."""
    learner = build(path, "cuda", dtype)
    together = logprobs(learner, probes())
    alone = torch.cat([logprobs(learner, [probe]) for probe in probes()])
    scale = together.std()
    assert error(together, alone) < (1e-5 if dtype == "float32" else 2e-2) * scale


def test_a_copy_of_the_weights_read_back_is_the_same(path: str, tmp_path: Path):
    learner = build(path, "cuda", "bfloat16")
    learner.save(tmp_path / "saved")
    again = build(str(tmp_path / "saved" / "policy"), "cuda", "bfloat16")
    assert torch.equal(logprobs(again, probes()), logprobs(learner, probes()))
