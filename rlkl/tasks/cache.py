"""Base models of built-in worlds are built once and kept."""

from __future__ import annotations

import hashlib
import inspect
import logging
import tempfile
import time
from pathlib import Path

from rlkl.system.cache import cache_folder
from rlkl.tasks import characters, sizes, teaching
from rlkl.tasks.base import Task

logger = logging.getLogger(__name__)


def cached_base_model(name: str, task: Task) -> Path:
    """Return the folder of the task's base model; build it first if it is absent.

    The key hashes the task's settings and the source of its builder, so a changed builder builds anew. The model is
    built aside and renamed into place: of two processes that build at once, the first one's is kept by both.
    """
    target = cache_folder() / "base_models" / f"{name.replace('/', '-')}-{_fingerprint(task)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("building the base model of task:%s (once; it is kept in %s)", name, target)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as aside:
        built = Path(aside) / "model"
        built.mkdir()
        task.build_base_model(built)
        try:
            built.rename(target)
        except OSError:
            if not target.is_dir():  # anything but losing the race to another process
                raise
    logger.info("built the base model of task:%s in %.0f s", name, time.monotonic() - started)
    return target


def _fingerprint(task: Task) -> str:
    """Hash the task's settings, the files of its module (``reviews*.py``) and the shared files that it uses.

    A task that is made of others has them as fields; the files of their modules count, too.
    """
    values = [getattr(task, name) for name in getattr(task, "__dataclass_fields__", ())]
    parts = [task, *(value for value in values if Task in type(value).__mro__)]
    modules = [Path(inspect.getfile(type(part))) for part in parts]
    own = [file for module in modules for file in sorted(module.parent.glob(f"{module.stem}*.py"))]
    files = [*own, Path(characters.__file__), Path(teaching.__file__)]
    if task.further_models():
        files.append(Path(sizes.__file__))
    texts = [file.read_text(encoding="utf-8") for file in files]
    return hashlib.blake2b("\n".join([repr(task), *texts]).encode(), digest_size=8).hexdigest()
