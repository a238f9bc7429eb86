"""Lets a torchvision built for CUDA load beside a CPU build of torch.

The torchvision wheel on PyPI is compiled for CUDA. Beside a CPU torch its compiled library does not load, and
``import torchvision`` (so any model import of transformers) fails with "operator torchvision::nms does not exist".
Its Python part (transforms, which processors of vision models use) works once the two missing operator schemas exist.
"""

from __future__ import annotations

_library = None


def ensure_torchvision() -> None:
    """Register torchvision's missing operator schemas; call before transformers or vllm is imported.

    Does nothing where torchvision is absent or its compiled operators load. Also a ``vllm.general_plugins`` entry
    point, because vLLM inspects model classes in a child process of its own.
    """
    global _library
    from importlib.util import find_spec

    if _library is not None or find_spec("torchvision") is None:
        return
    import torch

    if torch.cuda.is_available() or _compiled_operators_load():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _compiled_operators_load() -> bool:
    import ctypes
    from importlib.util import find_spec
    from pathlib import Path

    import torch

    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    library = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if library is None:
        return False
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True
