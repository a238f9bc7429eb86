"""LoRA in bfloat16, for real: what vLLM samples from and what is exported is what the learner holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import rlkl
from rlkl.errors import WeightSyncError
from rlkl.learner.shards_on_disk import read_tensors, shapes_in
from rlkl.learner.state import TENSORS_FOLDER
from rlkl.training.result import RunResult
from tests.adapters import SCALE, SEQUENCES, base, logprobs, share, with_adapter
from tests.integration.runs import DEADLINE_S, REPOSITORY, make_recipe, records
from tests.models import deep_qwen3

STEPS = 10
MODEL = {"dtype": "bfloat16", "lora": {"rank": 16, "alpha": 16 * SCALE}}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deep_qwen3(tmp_path_factory.mktemp("models") / "deep")


@pytest.fixture(scope="module")
def run(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Ten steps at the default learning rate."""
    recipe = make_recipe(
        tmp_path_factory.mktemp("runs") / "adapters",
        model_path,
        model=MODEL,
        steps=STEPS,
        rollout={"engine": "tests.integration.engines:TellsItsAdapters"},
        learner={"lr": 1e-6},
        tracking={"wandb": "off"},
    )
    return rlkl.train(recipe)


def learner_adapter(run: RunResult) -> dict[str, Tensor]:
    """The adapters that the optimizer holds after the last step, as a peft file names them."""
    folder = run.run_dir / "checkpoints" / f"step_{STEPS:06d}" / TENSORS_FOLDER
    shapes = {name: shape for name, shape in shapes_in(folder).items() if name.startswith("trained.")}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    read_tensors(tensors, folder, alone=True)
    return {
        name.replace("trained.policy.model.", "base_model.model.", 1).replace(".default.", "."): tensor
        for name, tensor in tensors.items()
    }


def test_the_published_policy_has_gone_the_learners_way(run: RunResult, model_path: Path):
    held = load_file(model_path / "held" / f"{STEPS}.safetensors")
    adapter = learner_adapter(run)
    start, learner = logprobs(base(model_path)), logprobs(with_adapter(model_path, adapter))

    assert held.keys() == adapter.keys()
    assert (learner - start).abs().max() > 1e-5
    assert share(logprobs(with_adapter(model_path, held)), start, learner) == pytest.approx(1, abs=0.01)
    merged = logprobs(with_adapter(model_path, adapter, torch.bfloat16))
    assert share(merged, start, learner) < 0.2, "merged into bfloat16 weights, most of it would be lost"
    lines = records(run.run_dir)
    assert all(line["weights/verified"] == 1 for line in lines)
    assert max(line["rollout/mismatch_max"] for line in lines) < 0.5


def test_the_export_is_the_learner_in_transformers_and_in_peft(run: RunResult, model_path: Path):
    policy = run.run_dir / "policy"
    learner = logprobs(with_adapter(model_path, learner_adapter(run)))

    exported = AutoModelForCausalLM.from_pretrained(policy)
    assert exported.dtype == torch.float32
    assert (logprobs(exported) - learner).abs().max() < 1e-5
    adapted = PeftModel.from_pretrained(base(model_path), str(policy / "adapter"))
    assert (logprobs(adapted) - learner).abs().max() < 1e-5
    assert str(model_path) in (policy / "adapter" / "adapter_config.json").read_text()


def test_vllm_loads_the_exported_policy_and_the_exported_adapter(run: RunResult, model_path: Path):
    policy = run.run_dir / "policy"
    exported = AutoModelForCausalLM.from_pretrained(policy)
    tokens = SEQUENCES[0, :16]

    merged = _run("score_with_vllm", str(policy), *map(str, tokens.tolist()))
    assert merged == pytest.approx(_logprobs_of(exported, tokens), abs=1e-4)

    prompt, sampled, found = _run("generate_with_adapter", str(model_path), str(policy / "adapter"))
    wanted = _logprobs_of(exported, torch.tensor(prompt + sampled))[-len(sampled) :]
    assert found == pytest.approx(wanted, abs=0.2)  # bfloat16 against float32


@torch.no_grad()
def _logprobs_of(model: nn.Module, tokens: Tensor) -> list[float]:
    every = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
    return every.gather(-1, tokens[1:, None])[:, 0].tolist()


def _run(module: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", f"tests.integration.{module}", *arguments]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S)
    assert answer.returncode == 0, answer.stderr
    (found,) = [line for line in answer.stdout.splitlines() if line.startswith("[")]  # vLLM prints lines of its own
    return json.loads(found)


def test_an_adapter_that_is_lost_stops_the_run_and_is_named(model_path: Path, tmp_path: Path):
    engine = {"engine": "tests.integration.engines:LosesOneAdapter"}

    with pytest.raises(WeightSyncError, match=r"no tensor of version 0 reached.*layers\.1\.mlp\.down_proj\.lora_B"):
        rlkl.train(make_recipe(tmp_path / "lost", model_path, model=MODEL, rollout=engine))


def test_steps_of_a_deep_model_that_move_nothing_are_no_sign_of_stale_weights(tmp_path: Path):
    """Rounding adds up to more than 5e-5 nats over the layers, and a learning rate of 0 moves nothing."""
    model_path = deep_qwen3(tmp_path / "model", width=256, initializer_range=0.5)
    recipe = make_recipe(tmp_path / "run", model_path, steps=2, learner={"lr": 0.0}, rollout={"max_new_tokens": 64})

    result = rlkl.train(recipe)

    assert result.status == "done"
    assert max(line["weights/probe_max"] for line in records(result.run_dir)) > 5e-5
