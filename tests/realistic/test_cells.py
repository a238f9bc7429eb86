"""Cells of the matrix that cost seconds: the learner and the hf engine, without Ray. All cells: `make realistic`."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from rlkl.rollout.hf_engine import HfEngine
from tests.realistic.cells import Cell, run

CELLS = [
    Cell(architecture="qwen3", dtype="float32", lora=False, rule="grpo"),
    Cell(architecture="qwen3", dtype="bfloat16", lora=True, rule="ppo"),
    Cell(architecture="qwen3_moe", dtype="float32", lora=True, rule="superhf"),
    Cell(architecture="mistral", dtype="float32", lora=True, rule="sparsepo"),
    Cell(architecture="gemma", dtype="bfloat16", lora=False, rule="grpo"),
    Cell(architecture="phi3", dtype="bfloat16", lora=True, rule="grpo", model={"tied": False}),
    Cell(architecture="opt", dtype="float32", lora=False, rule="superhf"),
    Cell(architecture="qwen2_5_vl", dtype="float32", lora=False, rule="papo"),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_engine_export_and_resume_agree_with_the_learner(cell: Cell, models: Path):
    verdict = run(cell, models)

    assert verdict.status == "works", verdict
    if cell.dtype == "float32":
        assert verdict.published is not None
        assert verdict.mismatch_max is not None
        assert verdict.published < 1e-4
        # Where two experts tie, rounding decides which one a router takes: a mixture may differ at a single token.
        assert verdict.mismatch_max < 5e-4 or cell.architecture == "qwen3_moe"


class Stale(HfEngine):
    """Keeps the first weights that it gets."""

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        if getattr(self, "loaded", False):
            return frozenset()
        self.loaded = True
        return super().load_weights(tensors)


def test_a_cell_notices_an_engine_with_old_weights(models: Path):
    engine = "tests.realistic.test_cells:Stale"
    verdict = run(Cell(architecture="qwen3", dtype="bfloat16", lora=False, rule="grpo", engine=engine), models)

    assert verdict.status == "wrong"
    assert "engine and learner differ" in verdict.reason


def test_a_text_model_has_no_picture_to_corrupt(models: Path):
    verdict = run(Cell(architecture="llama", dtype="float32", lora=False, rule="papo"), models)

    assert verdict.status == "refused"
    assert "vision" in verdict.reason
