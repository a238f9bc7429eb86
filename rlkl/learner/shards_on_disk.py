"""Tensors of a checkpoint on disk, written by all ranks together and read by any number of ranks.

The folder is one of torch.distributed.checkpoint. A shard is written by its rank; a tensor that every rank holds is
written by one of them.

torch keeps the index of such a folder as a pickle, and its own reader runs whatever code that names. `_Reader` loads
only the classes that an index of tensors has.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_IN_AN_INDEX = {
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    (_FILES, "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}
"""Module and name of all that an index of tensors refers to, beside the precisions. None of it runs code.

The class of values other than tensors is left out: torch unpickles such values without a limit.
"""


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    """Write tensors by name. ``alone``: by this process; otherwise every rank must call this."""
    writer = FileSystemWriter(folder, thread_count=1)
    with _no_warning():
        save(dict(tensors), storage_writer=writer, no_dist=alone)


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the whole shapes of the tensors in ``folder``, by name."""
    metadata = _Reader(folder).read_metadata()
    return {
        name: tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


@torch.no_grad()
def read_tensors(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    """Fill tensors, which may be shards, from ``folder``. ``alone``: as for `write_tensors`."""
    with _no_warning():
        load(dict(tensors), storage_reader=_Reader(folder), no_dist=alone)


class _Reader(FileSystemReader):
    """Reads a folder whose files anybody may have written: no code of theirs runs, no file outside is read."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index. Raises `pickle.UnpicklingError` if it holds anything but tensors in files of the folder."""
        with Path(self._get_metadata_path(kwargs.get("rank"))).open("rb") as file:
            metadata = _IndexUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"the index is a {type(metadata).__name__}")
        for info in (metadata.storage_data or {}).values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"the index names a file that is not in the folder: {info.relative_path}")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Loads the classes of an index, and refuses all others."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return what the index refers to; raises `pickle.UnpicklingError` if no index needs it."""
        if (module, name) in _IN_AN_INDEX:
            return super().find_class(module, name)
        if module == "torch" and isinstance(precision := getattr(torch, name, None), torch.dtype):
            return precision
        raise pickle.UnpicklingError(f"the index refers to {module}.{name}, which no index of tensors needs")


@contextmanager
def _no_warning() -> Iterator[None]:
    """Do without the warning that a process writes or reads alone: it is meant to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
