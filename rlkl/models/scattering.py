"""Give the weights of a model, which rank 0 alone has loaded, to the ranks that divide them, tensor by tensor.

The other ranks build the model on torch's meta device, where tensors have a shape and no memory.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from rlkl.errors import EnvironmentProblem

T = TypeVar("T")

META = torch.device("meta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A parameter or a buffer of a model, under one of its names."""

    first: str
    """The first name of the same parameter: that of the embeddings, for a head that shares their weights."""
    shape: torch.Size
    dtype: torch.dtype
    is_parameter: bool
    trains: bool


Layout = Mapping[str, Entry]
"""Names of all parameters and buffers of a model, in order. A shared tensor is there under each of its names."""


def is_first(mesh: DeviceMesh) -> bool:
    """Return whether this process is rank 0, which loads."""
    return mesh.get_local_rank() == 0


def together(mesh: DeviceMesh, work: Callable[[], T]) -> T:
    """Run ``work``, which calls no other rank, and return its result once all ranks are done.

    If it raises on some ranks, all ranks raise: each its own error, and the others that of the lowest rank.
    """
    try:
        result = work()
    except Exception as error:
        _exchange(mesh, _portable(error))
        raise
    for error in _exchange(mesh, None):
        if error is not None:
            raise error
    return result


def from_first(mesh: DeviceMesh, value: T) -> T:
    """Return rank 0's ``value`` on every rank."""
    return _exchange(mesh, value if is_first(mesh) else None)[0]


def _exchange(mesh: DeviceMesh, value: Any) -> list[Any]:
    parts: list[Any] = [None] * mesh.size()
    distributed.all_gather_object(parts, value, group=mesh.get_group())
    return parts


def _portable(error: Exception) -> Exception:
    """Return the error, or one with the same message if it cannot travel between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except (pickle.PickleError, TypeError, AttributeError, ValueError):
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def layout_of(model: nn.Module) -> Layout:
    """List the parameters and buffers of a model."""
    firsts: dict[int, str] = {}
    return {
        name: Entry(
            first=firsts.setdefault(id(tensor), name),
            shape=tensor.shape,
            dtype=tensor.dtype,
            is_parameter=isinstance(tensor, nn.Parameter),
            trains=tensor.requires_grad,
        )
        for name, (_, tensor) in _tensors(model).items()
    }


def take_layout(model: nn.Module, layout: Layout) -> None:
    """Replace all parameters and buffers by tensors of this layout on the meta device, shared as there.

    Raises `EnvironmentProblem` if the model has others than the layout names.
    """
    own = _tensors(model)
    if differing := sorted(own.keys() ^ layout.keys()):
        raise EnvironmentProblem(
            f"the ranks of the learner built different models from one config.json ({type(model).__name__}): they "
            f"differ in {', '.join(differing[:3])} ({len(differing)} tensors). Check that all machines have the same "
            "model and the same versions of torch, transformers and peft"
        )
    made: dict[str, Tensor] = {}
    for name, entry in layout.items():
        if entry.first not in made:
            empty = torch.empty(entry.shape, dtype=entry.dtype, device=META)
            made[entry.first] = nn.Parameter(empty, requires_grad=entry.trains) if entry.is_parameter else empty
        module, _ = own[name]
        own_kind = module._parameters if entry.is_parameter else module._buffers
        own_kind[name.rpartition(".")[2]] = made[entry.first]  # pyright: ignore[reportArgumentType]


def take_out(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by their first names."""
    own = _tensors(model)
    return {name: own[name][1].detach() for name, entry in layout_of(model).items() if entry.first == name}


@torch.no_grad()
def fill(model: nn.Module, held: dict[str, Tensor], layout: Layout, mesh: DeviceMesh) -> None:
    """Fill a sharded model with the weights that rank 0 has ``held``, and forget them there one after the other.

    ``layout`` is of the held weights. Each rank receives its own rows of a parameter, and all of a buffer.
    """
    own = _tensors(model)
    for name, entry in layout.items():
        tensor = own[name][1]
        if entry.shape.numel() == 0:
            continue
        if not entry.is_parameter:
            _broadcast(tensor, held.get(entry.first), mesh)
        elif entry.first == name:
            assert isinstance(tensor, DTensor), "every parameter is in a group"
            _scatter(tensor.to_local(), held.pop(name, None), entry, mesh)


def _scatter(part: Tensor, whole: Tensor | None, entry: Entry, mesh: DeviceMesh) -> None:
    """Receive this rank's rows into ``part``; ``whole`` is there on rank 0. All ranks receive equally many bytes."""
    rows = -(-entry.shape[0] // mesh.size())
    block = torch.empty((rows, *entry.shape[1:]), dtype=entry.dtype, device=part.device)
    blocks = None
    if whole is not None:
        whole = whole.to(part.device).contiguous()
        pieces = [whole[rank * rows : (rank + 1) * rows] for rank in range(mesh.size())]
        blocks = [_bytes(piece if len(piece) == rows else _padded(piece, rows)) for piece in pieces]
    distributed.scatter(_bytes(block), blocks, group=mesh.get_group(), group_src=0)
    part.copy_(block[: len(part)])


def _broadcast(buffer: Tensor, whole: Tensor | None, mesh: DeviceMesh) -> None:
    if whole is not None:
        buffer.copy_(whole)
    distributed.broadcast(_bytes(buffer), group=mesh.get_group(), group_src=0)


def _padded(piece: Tensor, rows: int) -> Tensor:
    padded = piece.new_zeros((rows, *piece.shape[1:]))
    padded[: len(piece)] = piece
    return padded


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor, in the same memory: no backend knows all precisions."""
    return tensor.view(-1).view(torch.uint8)


def _tensors(model: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return module and tensor of each parameter and buffer by name; a shared one has several names."""

    def found() -> Iterator[tuple[str, tuple[nn.Module, Tensor]]]:
        for path, module in model.named_modules():
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    yield f"{path}.{key}".removeprefix("."), (module, tensor)

    return dict(found())
