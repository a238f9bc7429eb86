"""Low-rank adapters (LoRA): adding them to a model, reading them, merging them, writing them for peft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkl.recipe import LoraSection

_NAME = "default"
"""The name that peft gives to a model's only adapter. It is part of parameter names, but not of names in files."""

_PEFT_PREFIX = "base_model.model."
"""Names in a peft file start with this."""


def add_adapter(model: nn.Module, section: LoraSection) -> Any:
    """Put adapters into ``model``, in place; return peft's wrapper, which can switch them off."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the adapters in ``model``, each under its name in a peft file."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield _PEFT_PREFIX + name.replace(f".{_NAME}", ""), parameter


def adapter_names(path: str, section: LoraSection) -> list[str]:
    """Return the names in a peft file of adapters for the model at ``path``, without loading its weights."""
    from transformers import AutoConfig

    from rlkl.models.language_model import model_class

    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        shell = model_class(config).from_config(config)
        add_adapter(shell, section)
    return [name for name, _ in adapter_parameters(shell)]


def adapted_module(name: str) -> str:
    """Return the model's own name of the module that the adapter tensor ``name`` belongs to."""
    return name.removeprefix(_PEFT_PREFIX).partition(".lora_")[0]


@torch.no_grad()
def merged_adapters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield base plus adapter under checkpoint names, added in float32 into new tensors.

    The base weights are left as they are, bit for bit.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            base = layer.get_base_layer()
            yield f"{name}.weight", base.weight.float() + layer.get_delta_weight(_NAME).float()
            if base.bias is not None:
                yield f"{name}.bias", base.bias.detach()


def save_adapter(model: nn.Module, wrapper: Any, folder: Path, *, base_model: str) -> None:
    """Write the adapters as a peft folder that names ``base_model`` as the model to put them into."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().float().cpu().contiguous() for name, p in adapter_parameters(model)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = wrapper.peft_config[_NAME]
    inference, base = config.inference_mode, config.base_model_name_or_path
    config.inference_mode, config.base_model_name_or_path = True, base_model
    config.save_pretrained(str(folder))
    config.inference_mode, config.base_model_name_or_path = inference, base
