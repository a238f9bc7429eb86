"""An exported policy is read back and compared with the learner, in every form that a run can export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlkl.errors import ExportError
from rlkl.learner.export import ExportScores, compare_export, growth_to_float32
from rlkl.learner.learner import Learner
from rlkl.types import Probe
from rlkl.weights import bounds_for, check_export
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, train

GENERATOR = torch.Generator().manual_seed(0)
PROBES = [Probe(token_ids=tuple(torch.randint(2, 14, (40,), generator=GENERATOR).tolist())) for _ in range(6)]
LORA = {"lora": {"rank": 4}}
BF16 = {"dtype": "bfloat16"}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "policy", tied=request.param, seed=0))


def trained(model_path: str, folder: Path, model: dict, lr: float = 1e-4) -> tuple[Learner, list[tuple[float, ...]]]:
    """A learner after three steps and its saved policy in ``folder/policy``; the log-probs before training."""
    learner = build(model_path, model=model, learner={"lr": lr})
    before = learner.probe(PROBES)
    train(learner, steps=3)
    learner.save(folder)
    return learner, before


def verdict(found: ExportScores, before: list[tuple[float, ...]]) -> None:
    bounds = bounds_for(found.dtype, layers=2, width=64)
    bounds = replace(bounds, rounding=max(bounds.rounding, found.rounding))
    check_export(before if found.before is None else found.before, found.learner, found.exported, bounds)


@pytest.mark.parametrize("model", [{}, BF16, LORA, BF16 | LORA], ids=["float32", "bf16", "lora", "bf16-lora"])
def test_what_a_run_exports_is_what_the_learner_holds(model_path: str, tmp_path: Path, model: dict):
    learner, before = trained(model_path, tmp_path, model)
    wanted_dtype = learner.policy.export_dtype

    found = compare_export(learner, tmp_path / "policy", PROBES)
    assert found.problem is None
    verdict(found, before)

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").dtype == wanted_dtype
    assert wanted_dtype == (torch.float32 if "lora" in model else getattr(torch, model.get("dtype", "float32")))
    if "lora" in model:
        assert found.dtype == "float32"
        assert found.before != found.learner


def test_an_export_that_lost_its_movement_to_rounding_is_refused(model_path: str, tmp_path: Path):
    learner, before = trained(model_path, tmp_path, BF16 | LORA)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").bfloat16()
    merged.save_pretrained(tmp_path / "policy")

    found = compare_export(learner, tmp_path / "policy", PROBES)
    assert found.problem is not None
    with pytest.raises(ExportError, match="it differs from the learner by"):
        verdict(found, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_of_the_weights_before_training_is_refused(model_path: str, tmp_path: Path, dtype: str):
    learner, before = trained(model_path, tmp_path, {"dtype": dtype}, lr=1e-3)
    AutoModelForCausalLM.from_pretrained(model_path).save_pretrained(tmp_path / "policy")

    found = compare_export(learner, tmp_path / "policy", PROBES)
    assert found.problem is not None
    assert "tensors that are not the learner's: model.embed_tokens.weight" in found.problem
    with pytest.raises(ExportError, match="it differs from the learner by"):
        verdict(found, before)


def test_an_adapter_file_that_is_not_the_learners_is_refused(model_path: str, tmp_path: Path):
    learner, _ = trained(model_path, tmp_path, BF16 | LORA)
    file = tmp_path / "policy" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(sorted(tensors)))
    save_file(tensors | {name: tensors[name] * 1.01}, file)

    found = compare_export(learner, tmp_path / "policy", PROBES)
    assert found.problem is not None
    assert "adapter/ in it holds 1 tensors that are not the learner's: base_model.model" in found.problem


def test_peft_loads_the_adapter_and_finds_its_base_model(model_path: str, tmp_path: Path):
    from peft import AutoPeftModelForCausalLM

    learner, _ = trained(model_path, tmp_path, BF16 | LORA)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "policy" / "adapter", dtype=torch.bfloat16)

    found = compare_export(learner, tmp_path / "policy", PROBES)
    ids = torch.tensor([probe.token_ids for probe in PROBES])
    with torch.no_grad():
        logits = loaded.float()(input_ids=ids).logits[:, :-1]
    scores = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(scores, torch.tensor(found.learner), atol=1e-4)


@pytest.mark.parametrize("model", [{}, BF16, LORA, BF16 | LORA], ids=["float32", "bf16", "lora", "bf16-lora"])
def test_a_bfloat16_policy_doubles_for_the_comparison_in_float32(model_path: str, model: dict):
    policy = build(model_path, model=model).policy
    weights = sum(p.numel() for p in policy.parameters())
    assert growth_to_float32(policy) == (2 * weights if "dtype" in model else 0)


@pytest.mark.parametrize("model", [{}, BF16], ids=["float32", "bf16"])
def test_transformers_scores_the_export_as_the_learner_does(model_path: str, tmp_path: Path, model: dict):
    """In bfloat16 the learner computes with the exported bits, and in bfloat16, so the numbers are the same."""
    learner, before = trained(model_path, tmp_path, model)
    wanted = torch.tensor(learner.probe(PROBES))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")

    ids = torch.tensor([probe.token_ids for probe in PROBES])
    with torch.no_grad():
        logits = exported(input_ids=ids).logits[:, :-1].float()
    scores = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    assert (scores - wanted).abs().max() < 1e-5
    assert (wanted - torch.tensor(before)).abs().max() > 1e-2
