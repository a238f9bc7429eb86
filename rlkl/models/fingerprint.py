"""A hash of a model folder's weights and settings. Weights are read once; their digests are kept for the next start."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlkl.system.cache import cache_folder

logger = logging.getLogger(__name__)

SETTINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files beside the weights that change what a model computes."""

SETTLED_S = 2.0
"""A digest is kept only of files that are older: a write within one tick of the file system's clock leaves no trace."""

_SMALL = 1 << 20
_GIB = 1 << 30
_READERS = 4


def model_fingerprint(path: str, *, commit: str | None = None) -> str:
    """Hash what a model is: the contents of its folder, or the ``commit`` of a model from the hub.

    Two folders with equal weights and settings have one fingerprint, wherever they are.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"commit {commit}"
    weights = sorted(_weight_files(folder))
    settings = [folder / name for name in SETTINGS if (folder / name).is_file()]
    size = sum(file.stat().st_size for file in weights)
    if size > _GIB:
        logger.info("hashing the weights in %s (%.1f GiB; unchanged files are read once only)", folder, size / _GIB)
    digest = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor(_READERS) as pool:
        files = [*settings, *weights]
        for file, content in zip(files, pool.map(_digest, files), strict=True):
            digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def _weight_files(folder: Path) -> Iterator[Path]:
    """Yield the weight files that transformers loads, by its order of preference; the folder may hold others."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            yield folder / name
            return
        if (index := folder / f"{name}.index.json").is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            yield from (file for shard in names if (file := folder / shard).is_file())
            return
    yield from folder.glob("*.safetensors")


def _digest(file: Path) -> str:
    """Return the digest of a file's content. A large file is read again only if it has changed."""
    stamp = _stamp(file)
    if stamp[0] < _SMALL:
        return _read(file)
    kept = (
        cache_folder()
        / "digests"
        / f"{hashlib.blake2b(str(file.absolute()).encode(), digest_size=16).hexdigest()}.json"
    )
    try:
        found = json.loads(kept.read_text())
    except (OSError, ValueError):
        found = {}
    if found.get("stamp") == stamp:
        return found["digest"]
    content = _read(file)
    if _stamp(file) == stamp and time.time() - max(stamp[1], stamp[2]) / 1e9 > SETTLED_S:
        _keep(kept, {"file": str(file.absolute()), "stamp": stamp, "digest": content})
    return content


def _stamp(file: Path) -> list[int]:
    """Return size, modification and status times (nanoseconds), and inode: overwriting the file changes one of them."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _keep(file: Path, value: object) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(value))
        aside.replace(file)
    except OSError as error:  # the next start reads the weights again
        logger.debug("%s cannot be kept: %s", file, error)
