"""The optimizers: their arithmetic, their state in a checkpoint, and where it is kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlkl.costs.eight_bit import in_blocks
from rlkl.errors import CheckpointError, EnvironmentProblem
from rlkl.learner.eight_bit import AdamW8bit
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.optimizers import AdamW, HostedState, build_optimizer
from rlkl.learner.state import state_tensors
from rlkl.recipe import LearnerSection, Recipe
from tests.models import random_model
from tests.unit.learner.test_learner import examples


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "wide"
    return random_model("qwen3", folder, seed=0, hidden_size=256, intermediate_size=512, num_hidden_layers=1)


def build(path: Path, **settings: Any) -> Learner:
    section = {"device": "cpu", "threads": 1, "lr": 1e-3, **settings}
    recipe = Recipe.model_validate({"model": {"path": str(path)}, "data": {"source": "-"}, "learner": section})
    return Learner(LearnerSpec(recipe=recipe, model_path=str(path)))


def train(learner: Learner, *steps: int) -> list[dict[str, float]]:
    records = [learner.prepare(examples(step), step=step) | learner.step(step) for step in steps]
    return [{name: x for name, x in one.items() if not name.startswith("time/")} for one in records]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.policy.published()}


def test_moments_of_8_bits_follow_those_of_32():
    """A quadratic with noise: both end at the same place, by the same way."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(32, 256, generator=generator)
    parts = [nn.Parameter(torch.zeros(32, 256)) for _ in range(2)]
    optimizers = [
        build_optimizer({"policy.w": part}, LearnerSection.model_validate({"lr": 0.02, "optimizer": name}), None)
        for part, name in zip(parts, ("adamw", "adamw_8bit"), strict=True)
    ]
    for step in range(200):
        noise = torch.randn(32, 256, generator=generator)
        for part, optimizer in zip(parts, optimizers, strict=True):
            part.grad = part.detach() - target + 0.1 * noise
            optimizer.step()
        if step == 0:
            assert torch.allclose(*parts, rtol=0, atol=1e-6), "the first step has moments of 32 bits"
    assert isinstance(optimizers[1], AdamW8bit)
    state = optimizers[1].kept(parts[1])
    assert {key: (x.dtype, tuple(x.shape)) for key, x in state.items()} == {
        "step": (torch.float32, ()),
        "state1": (torch.uint8, (32, 256)),
        "state2": (torch.uint8, (32, 256)),
        "absmax1": (torch.float32, (32, 1)),
        "absmax2": (torch.float32, (32, 1)),
    }
    distance = [float((part.detach() - target).square().mean().sqrt()) for part in parts]
    assert distance[0] < 0.1
    assert distance[1] < 0.1
    assert float((parts[0] - parts[1]).detach().square().mean().sqrt()) < 0.02


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_and_small_parameters_are_as_in_adamw(decay: float):
    generator = torch.Generator().manual_seed(0)
    shapes = {"policy.w": (16, 256), "policy.odd": (40, 130), "policy.norm": (256,)}
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = []
    for name in ("adamw", "adamw_8bit"):
        section = LearnerSection.model_validate({"lr": 0.01, "optimizer": name, "weight_decay": decay})
        trained = {key: nn.Parameter(x.clone()) for key, x in start.items()}
        optimizer = build_optimizer(trained, section, None)
        draw = torch.Generator().manual_seed(1)
        for _ in range(5):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * group["lr_scale"]
            for part in trained.values():
                part.grad = torch.randn(part.shape, generator=draw)
            optimizer.step()
        found.append(trained)
    for key in ("policy.odd", "policy.norm"):
        torch.testing.assert_close(found[1][key], found[0][key], rtol=0, atol=1e-6)
    assert float((found[1]["policy.w"] - found[0]["policy.w"]).detach().abs().max()) < 0.02


def test_only_matrices_of_whole_blocks_have_8_bits():
    assert in_blocks("policy.model.layers.0.mlp.up_proj.weight", (1536, 512))
    assert in_blocks("policy.model.layers.0.mlp.experts.gate_up_proj", (4, 64, 256))
    assert not in_blocks("policy.model.layers.0.mlp.up_proj.weight", (4864, 896))
    assert not in_blocks("policy.model.layers.0.self_attn.q_proj.weight", (8, 256))
    assert not in_blocks("policy.model.embed_tokens.weight", (1000, 512))
    assert not in_blocks("policy.transformer.wte.weight", (1000, 512))
    assert not in_blocks("policy.model.norm.weight", (8192,))


@pytest.mark.parametrize("settings", [{"optimizer": "adamw_8bit"}, {"offload": "optimizer"}])
def test_a_resumed_learner_goes_on_bit_for_bit(wide: Path, tmp_path: Path, settings: dict[str, Any]):
    whole = build(wide, **settings)
    records = train(whole, 0, 1, 2, 3)
    first, second = build(wide, **settings), build(wide, **settings)
    before = train(first, 0, 1)
    first.save(tmp_path)
    second.restore(tmp_path)
    assert before + train(second, 2, 3) == records
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(second).items())
    kinds = {tensor.dtype for tensor in state_tensors(whole._optimization).values()}
    assert (torch.uint8 in kinds) == ("optimizer" in settings)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the state although parameter and host are the same memory here."""
    monkeypatch.setattr(HostedState, "copies_on_cpu", True)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
@pytest.mark.usefixtures("copies")
def test_an_optimizer_in_host_memory_makes_the_same_steps(wide: Path, tmp_path: Path, name: str):
    """Also after a resume, and after a failed step was undone."""
    plain = build(wide, minibatches=2, optimizer=name)
    hosted = build(wide, minibatches=2, optimizer=name, offload="optimizer")
    assert train(plain, 0, 1, 2) == train(hosted, 0, 1, 2)
    hosted.save(tmp_path)
    resumed = build(wide, minibatches=2, optimizer=name, offload="optimizer")
    resumed.restore(tmp_path)
    before = state_tensors(resumed._optimization)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state_tensors(plain._optimization).items())
    break_off(resumed, 3)
    assert train(plain, 3) == train(resumed, 3)
    assert all(torch.equal(tensor, weights(plain)[key]) for key, tensor in weights(resumed).items())


@pytest.mark.usefixtures("copies")
def test_the_state_comes_one_parameter_at_a_time():
    parts = {f"policy.{name}": nn.Parameter(torch.zeros(16, 256)) for name in "abc"}
    optimizer = build_optimizer(parts, LearnerSection(), None)
    hosted, away = HostedState(optimizer), []
    step = optimizer.step

    def look() -> None:
        step()
        kept = [optimizer.kept(part).get("exp_avg") for part in parts.values()]
        away.append([x is None or any(x is buffer for buffer in hosted._buffers.values()) for x in kept])

    optimizer.step = look  # pyright: ignore[reportAttributeAccessIssue]
    for part in parts.values():
        part.grad = torch.ones(16, 256)
    hosted.step()
    hosted.step()
    assert away == 2 * [[False, True, True], [True, False, True], [True, True, False]]
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 0]


def break_off(learner: Learner, step: int) -> None:
    """Let a step of several optimizer steps fail at the 20th update of a parameter."""
    optimizer, made = learner._optimization.optimizer, []
    kind, name = (AdamW8bit.__mro__[1], "update_step") if isinstance(optimizer, AdamW8bit) else (AdamW, "step")
    original = getattr(kind, name)

    def fail(*arguments: Any) -> Any:
        made.append(1)
        if len(made) == 20:
            raise RuntimeError("broken")
        return original(*arguments)

    learner.prepare(examples(step), step=step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, fail)
        with pytest.raises(RuntimeError, match="broken"):
            learner.step(step)


def test_an_update_that_fails_half_way_is_undone(wide: Path):
    learner, undisturbed = (build(wide, optimizer="adamw_8bit", minibatches=2) for _ in range(2))
    assert train(learner, 0) == train(undisturbed, 0)
    break_off(learner, 1)
    assert train(learner, 1) == train(undisturbed, 1)


@pytest.mark.parametrize(("saved", "wanted"), [("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")])
def test_the_state_of_another_optimizer_is_refused(wide: Path, tmp_path: Path, saved: str, wanted: str):
    learner = build(wide, optimizer=saved)
    train(learner, 0)
    learner.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"another learner\.optimizer.*Resume with the optimizer of that run"):
        build(wide, optimizer=wanted).restore(tmp_path)


def test_a_missing_package_is_named(wide: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rlkl.learner.eight_bit", None)
    with pytest.raises(EnvironmentProblem, match=r"adamw_8bit needs the package bitsandbytes.*rlkl\[8bit\]"):
        build(wide, optimizer="adamw_8bit")
