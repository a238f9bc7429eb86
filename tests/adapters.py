"""How far a policy with adapters has gone, computed in float32, where rounding hides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

SCALE = 2.0
"""Alpha over rank of the adapters in these tests."""
SEQUENCES = torch.randint(2, 16, (8, 48), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logprobs(model: nn.Module) -> Tensor:
    """Log-probs of `SEQUENCES`, in float32."""
    every = model(input_ids=SEQUENCES).logits[:, :-1].log_softmax(-1)
    return every.gather(-1, SEQUENCES[:, 1:, None])[..., 0]


def base(model_path: Path) -> nn.Module:
    """The base model as every process of a bfloat16 run has it, computing in float32."""
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).float()


def with_adapter(model_path: Path, adapter: Mapping[str, Tensor], rounded: torch.dtype = torch.float32) -> nn.Module:
    """The base model plus an adapter, added up and rounded to ``rounded``."""
    model = base(model_path)
    for name in adapter:
        if name.endswith(".lora_A.weight"):
            other = name.replace(".lora_A.", ".lora_B.")
            weight = model.get_parameter(name.removeprefix("base_model.model.").replace(".lora_A.", "."))
            weight.data = (weight.data + SCALE * adapter[other] @ adapter[name]).to(rounded).float()
    return model


def share(now: Tensor, start: Tensor, learner: Tensor) -> float:
    """How much of the learner's way a policy has gone."""
    way = (learner - start).flatten()
    return float((now - start).flatten() @ way / (way @ way))
