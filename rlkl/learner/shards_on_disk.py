"""Tensors of a checkpoint on disk, written by all ranks together and read by any number of ranks.

The folder is one of torch.distributed.checkpoint. A shard is written by its rank; a tensor that every rank holds is
written by one of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    """Write tensors by name. ``alone``: by this process; otherwise every rank must call this."""
    writer = FileSystemWriter(folder, thread_count=1)
    with _no_warning():
        save(dict(tensors), storage_writer=writer, no_dist=alone)


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the whole shapes of the tensors in ``folder``, by name."""
    metadata = FileSystemReader(folder).read_metadata()
    return {
        name: tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


@torch.no_grad()
def read_tensors(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    """Fill tensors, which may be shards, from ``folder``. ``alone``: as for `write_tensors`."""
    with _no_warning():
        load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=alone)


@contextmanager
def _no_warning() -> Iterator[None]:
    """Do without the warning that a process writes or reads alone: it is meant to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
