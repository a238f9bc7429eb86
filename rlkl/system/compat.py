"""Make torchvision, torchaudio and torchcodec built for CUDA work beside a CPU build of torch.

Their wheels on PyPI are compiled for CUDA. Beside a CPU torch the compiled libraries do not load, and any model import
of transformers fails ("operator torchvision::nms does not exist", "Could not load this library: _torchaudio").
torchvision's Python part (transforms, which processors of vision models use) works once the two missing operator
schemas exist; torchaudio and torchcodec are hidden, so that transformers and vllm see them as not installed.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

_library: object = None


def ensure_torch_extras() -> None:
    """Call before transformers or vllm is imported. Does nothing if the compiled libraries load or are absent.

    Also a ``vllm.general_plugins`` entry point, because vLLM inspects model classes in a child process of its own.
    """
    global _library
    for name in ("torchaudio", "torchcodec"):
        if name not in sys.modules and _is_broken(name):
            sys.modules[name] = None  # pyright: ignore[reportArgumentType] - the import system's own mark for "absent"
            _forget_that_installed(name)
    if _library is None and "torchvision" not in sys.modules and _is_broken("torchvision"):
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library = library


def _forget_that_installed(package: str) -> None:
    """Clear transformers' record that the package is installed, which it may have made on an earlier import."""
    noted = sys.modules.get("transformers.utils.import_utils")
    if noted is not None:
        vars(noted)[f"is_{package}_available"].cache_clear()


def _is_broken(package: str) -> bool:
    """Return whether the package is installed for CUDA while torch is not."""
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return False
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return False
    libraries = sorted(Path(spec.origin).parent.rglob("*.so"))
    return bool(libraries) and not any(_loads(library) for library in libraries)


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True
