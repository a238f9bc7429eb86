"""Learners of two ranks that are built and compared with models loaded whole, for `test_sharded_loading`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from rlkl.learner import placing
from rlkl.learner.learner import Learner
from rlkl.learner.ranks import Ranks
from rlkl.models.language_model import LanguageModel
from rlkl.models.policy import Policy
from rlkl.models.sharding import local, whole
from rlkl.recipe import ModelSection
from rlkl.signals import REFERENCE
from rlkl.updates.base import HeadInput, Heads, ModelShape
from tests.models import random_model, tiny_qwen2_5_vl, tiny_qwen3
from tests.unit.learner.sharded_cases import Case, build, with_ranks

CPU = torch.device("cpu")

LOADED: dict[str, Case] = {
    "tied": Case(update={"kl_coef": 0.1}),
    "critic": Case(update={"rule": "ppo", "critic": "model", "kl_coef": 0.1}, path="untied"),
    "bfloat16": Case(update={"kl_coef": 0.1}, model={"dtype": "bfloat16"}, path="gemma"),
    "adapters": Case(model={"dtype": "bfloat16", "lora": {"rank": 2}}, path="untied"),
    "seeing": Case(update={"kl_coef": 0.1}, path="seeing"),
    "experts": Case(update={"kl_coef": 0.1}, path="experts"),
    "untied by its weights": Case(update={"kl_coef": 0.1}, path="said to be tied"),
    "not packed": Case(update={"kl_coef": 0.1}, path="not packed"),
}
"""Learners that are built."""

REFUSED = {
    "refused": ("EnvironmentProblem", "does more between its hidden states and its logits than rlkl knows"),
    "broken": ("RecipeError", "Check that config.json and weights are of one model"),
    "cut off": ("RecipeError", "file not fully covered"),
}
"""Models that rank 0 cannot load or will not take, and its error."""


def make_models(folder: Path) -> None:
    """Write the models of all cases."""
    tiny_qwen3(folder / "tied", tied=True, seed=0)
    tiny_qwen3(folder / "untied", tied=False, seed=0)
    tiny_qwen2_5_vl(folder / "seeing", seed=0)
    random_model("gemma3_text", folder / "gemma", seed=0)
    random_model("qwen3_moe", folder / "experts", seed=0)
    random_model("falcon_h1", folder / "not packed", seed=0)
    edit_config(tiny_qwen3(folder / "said to be tied", tied=False, seed=0), tie_word_embeddings=True)
    random_model("modernbert-decoder", folder / "refused", seed=0)
    broken = tiny_qwen3(folder / "broken", tied=False, seed=0) / "model.safetensors"
    tensors = load_file(broken)
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, broken, metadata={"format": "pt"})
    cut = tiny_qwen3(folder / "cut off", tied=False, seed=0) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])


def edit_config(model: Path, **changes: Any) -> None:
    """Change a model's config.json."""
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor in memory that the block made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for one in tree_leaves(output):
            if isinstance(one, Tensor) and not one.is_meta:
                self.bytes = max(self.bytes, local(one).untyped_storage().nbytes())
        return output


def process(number: int, folder: Path) -> None:
    """Be one of two ranks."""
    with_ranks(folder, "two", number, 2, work)


def work(ranks: Ranks, folder: Path) -> None:
    """Build all learners; leave what this rank held and has, or the error that it got."""
    for name, case in LOADED.items():
        torch.save(loaded(case, folder, ranks), folder / f"{name} {ranks.rank}.pt")
    for name in REFUSED:
        torch.save(
            error_of(lambda name=name: build(Case(path=name), folder, ranks)), folder / f"{name} {ranks.rank}.pt"
        )
    torch.save(misplaced(folder, ranks), folder / f"misplaced {ranks.rank}.pt")


def error_of(call: Callable[[], object]) -> tuple[str, str]:
    """Return kind and message of the error that the call raises."""
    with pytest.raises(Exception, match=r"\w") as found:
        call()
    return type(found.value).__name__, str(found.value)


def loaded(case: Case, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Build a learner, and compare its models with whole ones."""
    held: list[int] = []
    made: list[tuple[int, int]] = []
    wholes: list[int] = []
    divide = placing.shard

    def counted(model: nn.Module, *arguments: Any, **settings: Any) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        held.append(sum(one.numel() for one in tensors if not one.is_meta))
        with Largest() as most:
            divide(model, *arguments, **settings)
        tensors = [*model.parameters(), *model.buffers()]
        made.append((most.bytes, max(local(one.detach()).untyped_storage().nbytes() for one in tensors)))
        wholes.append(max(one.nbytes for one in tensors))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "shard", counted)
        learner = build(case, folder, ranks)
    return {
        "held": held,
        "made": made,
        "wholes": wholes,
        "differing": differing(learner, case, folder),
        "packs": learner.policy.packs,
    }


def differing(learner: Learner, case: Case, folder: Path) -> dict[str, list[str]]:
    """Return the names of tensors that are not those of a model loaded whole, for each model of the learner."""
    path = str(folder / case.path)
    section = ModelSection.model_validate({"path": path, **case.model})
    policy = Policy(path, section, device=CPU, seed=learner._recipe.seed)
    assert policy.packs == learner.policy.packs
    assert tied(policy) == tied(learner.policy)
    found = {"policy": unlike(learner.policy, policy)}
    reference = learner._models.frozen[REFERENCE]
    if isinstance(reference, LanguageModel):
        found["reference"] = unlike(reference, LanguageModel(path, dtype=policy.dtype, device=CPU, packed=True))
    if learner._models.heads is not None:
        backbone: Any = learner._models.heads.backbone
        assert not backbone.training
        found["critic"] = unlike(backbone, AutoModelForCausalLM.from_pretrained(path, dtype=policy.dtype).base_model)
    return found


def tied(model: Any) -> bool:
    """Whether embeddings and head are one parameter."""
    return model.model.get_input_embeddings().weight is model.model.get_output_embeddings().weight


def unlike(sharded: nn.Module, alone: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that differ by a bit, in a name, or (buffers) in their precision."""
    parameters, others = dict(sharded.named_parameters()), dict(alone.named_parameters())
    buffers, other_buffers = dict(sharded.named_buffers()), dict(alone.named_buffers())
    found = sorted((parameters.keys() ^ others.keys()) | (buffers.keys() ^ other_buffers.keys()))
    found += [
        name for name, p in parameters.items() if not torch.equal(whole(p.detach()).float(), others[name].float())
    ]
    found += [name for name, b in buffers.items() if b.dtype != other_buffers[name].dtype]
    return found + [name for name, b in buffers.items() if not torch.equal(b, other_buffers[name])]


class Misplaced(Heads):
    """Heads that keep their backbone in a list."""

    reads = HeadInput.TOKENS

    def __init__(self, model: ModelShape) -> None:
        super().__init__()
        self.backbones = nn.ModuleList([model.load_copy()])

    def forward(self, x: Tensor) -> Tensor:
        return self.backbones[0](input_ids=x).logits


def misplaced(folder: Path, ranks: Ranks) -> tuple[str, str] | None:
    """Return the error for heads whose backbone the ranks cannot fill; rank 0 has loaded it, and gets it too."""
    assert ranks.mesh is not None
    shape = ModelShape(path=str(folder / "tied"), hidden_size=64, layers=2, seed=0, loads=ranks.rank == 0)
    return error_of(lambda: placing.place_backbones(Misplaced(shape), ranks.mesh))
