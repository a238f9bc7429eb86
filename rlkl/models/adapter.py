"""Low-rank adapters (LoRA): adding them to a model, reading them, merging them, writing them for peft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlkl.errors import RecipeError
from rlkl.models.sharding import gathered_adapters, whole
from rlkl.recipe import LoraSection

_NAME = "default"
"""The name that peft gives to a model's only adapter. It is part of parameter names, but not of names in files."""

_PEFT_PREFIX = "base_model.model."
"""Names in a peft file start with this."""

_IN_VISION = r"(.*\.)?visual(\..*)?"
"""Names of modules of a vision tower and its projector."""


def add_adapter(model: Any, section: LoraSection, *, freeze_vision: bool) -> Any:
    """Put adapters into ``model``, in place; return peft's wrapper, which can switch them off.

    ``freeze_vision`` leaves out the vision tower of a vision-language model. Raises `RecipeError` if no module is left
    to adapt, or if an adapter would untie tied embeddings.
    """
    from peft import LoraConfig, get_peft_model

    frozen = freeze_vision and getattr(model.config, "vision_config", None) is not None
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=section.target_modules,
        exclude_modules=_IN_VISION if frozen else None,
        task_type="CAUSAL_LM",
    )
    named = f"model.lora.target_modules = {section.target_modules!r}"
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        leaves = {name.rpartition(".")[2] for name, module in model.named_modules() if not any(module.children())}
        but = " outside the vision tower, which model.freeze_vision leaves out" if frozen else ""
        raise RecipeError(
            f"{named}: no adapters can be put there{but} ({error}). Name modules of this model "
            f"({', '.join(sorted(leaf for leaf in leaves if not leaf.isdecimal()))}), or all-linear"
        ) from error
    _check_ties(model, named)
    _check_precision(model, named)
    for _, parameter in adapter_parameters(model):  # peft makes them float32
        parameter.data = parameter.data.to(model.dtype)
    return adapted


def _check_precision(model: nn.Module, named: str) -> None:
    """Refuse adapters that peft adds to bfloat16 weights in each pass: rounding would hide most of what they learn.

    It does so for weights that no linear module holds, as those of stacked experts and of their router.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    layers: dict[str, Any] = {n: module for n, module in model.named_modules() if isinstance(module, LoraLayer)}
    added = {name for name, layer in layers.items() if isinstance(layer, ParamWrapper)}
    if any(layers[name].get_param().dtype == torch.bfloat16 for name in added):
        others = sorted({name.rpartition(".")[2] for name in layers.keys() - added}) or ["q_proj", "v_proj"]
        raise RecipeError(
            f"{named} in model.dtype = bfloat16 puts adapters on weights outside linear modules (stacked experts, "
            "routers), which peft adds up in bfloat16, so most of what they learn would be rounded away. Name linear "
            f"modules (model.lora.target_modules=[{', '.join(others)}]), or set model.dtype=float32"
        )


def _check_ties(model: Any, named: str) -> None:
    """Refuse an adapter on tied embeddings: it would move one end of the model, and a checkpoint holds both as one."""
    from peft.tuners.lora import LoraLayer

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = [getattr(end, "base_layer", end).weight for end in ends]
    if weights[0] is weights[1] and any(isinstance(end, LoraLayer) for end in ends):
        raise RecipeError(
            f"{named} puts an adapter on the embeddings, which this model shares with its output head "
            "(tie_word_embeddings): it would move one of the two, and the published model could not hold both. Leave "
            "embeddings and head out, or train all weights (without model.lora)"
        )


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the adapters in ``model``, each under its name in a peft file."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield _PEFT_PREFIX + name.replace(f".{_NAME}", ""), parameter


def adapter_names(path: str, section: LoraSection, *, freeze_vision: bool) -> list[str]:
    """Return the names in a peft file of adapters for the model at ``path``, without loading its weights."""
    from transformers import AutoConfig

    from rlkl.models.language_model import model_class

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        shell = model_class(config).from_config(config, trust_remote_code=False)
        add_adapter(shell, section, freeze_vision=freeze_vision)
    return [name for name, _ in adapter_parameters(shell)]


def adapted_module(name: str) -> str:
    """Return the model's own name of the module that the adapter tensor ``name`` belongs to."""
    return name.removeprefix(_PEFT_PREFIX).partition(".lora_")[0]


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of ``model`` under its checkpoint name, with its adapter added in float32 if it has one.

    A tensor that several names share (tied embeddings) comes once, under its first name. The base weights are left as
    they are, bit for bit. Shards are gathered, one tensor at a time, so every rank must take all of them.
    """
    adapted = dict(_adapted_weights(model))
    for name, tensor in base_weights(model):
        if name in adapted:
            with gathered_adapters(adapted[name]):
                yield name, whole(tensor.detach()).float() + _change(adapted[name])
        else:
            yield name, whole(tensor.detach())


def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of the weights of `merged_weights` without their adapters; nothing is gathered."""
    shared: set[int] = set()
    for full_name, tensor in model.state_dict(keep_vars=True).items():
        key = id(tensor) if isinstance(tensor, DTensor) else tensor.data_ptr()
        if key not in shared and ".lora_" not in full_name:
            shared.add(key)
            yield _without_levels(full_name), tensor


def _change(layer: Any) -> Tensor:
    """Return what an adapter adds to its weight, multiplied in float32 whatever precision the adapter is held in."""
    held = {parameter: parameter.data for name, parameter in layer.named_parameters() if ".lora_" in f".{name}"}
    for parameter in held:
        parameter.data = parameter.data.float()
    change = layer.get_delta_weight(_NAME)
    for parameter, data in held.items():
        parameter.data = data
    return change


def _adapted_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the checkpoint name of each adapted weight, and the layer that holds its adapter.

    A module with several weights (stacked experts) has a layer for each, one around the other.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield _without_levels(f"{name}.{getattr(module, 'parameter_name', 'weight')}"), module


def _without_levels(name: str) -> str:
    """Return a weight's name without the levels that adapters put into it."""
    return name.replace(".base_layer", "")


def save_adapter(tensors: dict[str, Tensor], wrapper: Any, folder: Path, *, base_model: str) -> None:
    """Write adapters, by their names in a peft file, as a folder that names ``base_model`` as their model."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = wrapper.peft_config[_NAME]
    inference, base = config.inference_mode, config.base_model_name_or_path
    config.inference_mode, config.base_model_name_or_path = True, base_model
    config.save_pretrained(str(folder))
    config.inference_mode, config.base_model_name_or_path = inference, base
