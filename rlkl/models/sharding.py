"""Divide the weights of a model among ranks (FSDP2), and gather them again.

Every decoder layer is a group of its own. Embeddings, final norm, output head and vision tower form the root group,
which stays whole from a forward pass to the end of its backward pass: the head runs after `LanguageModel.hidden`, chunk
by chunk. A vision tower of its own group would wait for ever if one rank has no picture.

All ranks must sum the gradients of the groups in the same order. FSDP sums those of a layer when its backward pass
reaches the layer's input, and after the root group's if the input needs no gradient. So whether the first layer's input
needs a gradient must not depend on what a micro-batch holds; `Policy` sees to that for adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from rlkl.models.scattering import Layout, fill, from_first, is_first, layout_of, take_layout, take_out, together


def shard(model: nn.Module, config: Any, mesh: DeviceMesh, *, dtype: torch.dtype, passes: Sequence[str] = ()) -> None:
    """Divide rank 0's weights of ``model`` among the ranks of ``mesh``, in place and on its device.

    Gradients are summed over the ranks. In bfloat16 the trained weights become float32 shards, which are rounded when
    they are gathered, and gradients are added in float32. ``config`` is the model's, of transformers; ``passes`` names
    methods that run the weights beside ``forward``. Only rank 0 must have loaded weights: those of other ranks may be
    on the meta device, and are not used.
    """
    half = dtype != torch.float32
    layout = from_first(mesh, layout_of(model))
    held = take_out(model) if is_first(mesh) else {}
    together(mesh, lambda: take_layout(model, _float32_if_trained(layout) if half else layout))
    precision = MixedPrecisionPolicy(
        param_dtype=dtype if half else None, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
    )
    for layer in decoder_layers(model, config):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    model.to_empty(device=torch.device(mesh.device_type))
    fill(model, held, layout, mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The losses have the denominators of the whole batch, so gradients are summed. Gloo cannot scale a sum.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
            module.set_reduce_scatter_unused_params(True, recurse=False)
    for name in passes:
        register_fsdp_forward_method(model, name)


def _float32_if_trained(layout: Layout) -> Layout:
    return {name: replace(entry, dtype=torch.float32) if entry.trains else entry for name, entry in layout.items()}


def decoder_layers(model: nn.Module, config: Any) -> list[nn.Module]:
    """Return the decoder layers of the text model, outside a vision tower; empty if it keeps them in no list."""
    count = config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and not {"visual", "vision"} & {*name.split(".")}:
            return list(module)
    return []


def is_sharded(model: object) -> bool:
    """Return whether `shard` has divided the weights of ``model``."""
    return isinstance(model, FSDPModule)


def is_shard(tensor: Tensor) -> bool:
    """Return whether a tensor is divided among ranks."""
    return isinstance(tensor, DTensor)


def reshard(model: object) -> None:
    """Drop the gathered weights, so that parameters are shards and the next pass gathers them as they are then.

    A pass without gradient, or without its backward pass, leaves the root group gathered.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def unshard(model: object) -> None:
    """Gather the root group (vision tower included), to use it outside of a pass. Every rank must call it."""
    if isinstance(model, FSDPModule):
        model.unshard()


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor of a shard; every rank must call it. Other tensors are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a shard, in the same memory. Other tensors are returned as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(shard_of: Tensor, part: Tensor) -> Tensor:
    """Return ``part`` as a shard that is divided as ``shard_of`` is, along its rows; as it is if that is no shard.

    A row of ``part`` may have another shape than a row of ``shard_of``. If ``part`` is in host memory, so is the shard.
    """
    if not isinstance(shard_of, DTensor):
        return part
    shape = torch.Size((shard_of.shape[0], *part.shape[1:]))
    mesh = shard_of.device_mesh
    return DTensor.from_local(
        part,
        mesh if mesh.device_type == part.device.type else _on(part.device.type, mesh),
        shard_of.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


@lru_cache
def _on(device: str, mesh: DeviceMesh) -> DeviceMesh:
    """Return the mesh of the same ranks on another kind of device; every rank must call it."""
    return DeviceMesh(device, mesh.mesh)


def divided(shard_of: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor, the same on every rank, as a shard that is divided as ``shard_of`` is."""
    if not isinstance(shard_of, DTensor):
        return tensor
    return distribute_tensor(tensor, shard_of.device_mesh, shard_of.placements, src_data_rank=None)


@contextmanager
def gathered_adapters(layer: nn.Module) -> Iterator[None]:
    """Put whole parameters into the place of the adapter's shards in ``layer`` while the block runs."""
    swapped: list[tuple[nn.Module, str, Any]] = []
    for path, module in layer.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor) and ".lora_" in f".{path}.{name}":
                swapped.append((module, name, parameter))
                module._parameters[name] = nn.Parameter(parameter.full_tensor(), requires_grad=False)
    try:
        yield
    finally:
        for module, name, parameter in swapped:
            module._parameters[name] = parameter
