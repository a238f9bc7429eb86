"""The weight files of a model's folder, read as far as their headers: whole or not, and of which shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""The names under which transformers looks for weights."""
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""As the safetensors library has it."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""The ends of names of input embeddings, a row for each token id."""


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes from the header of a safetensors file: 8 bytes of length (little-endian), then JSON.

    Raises `ValueError` with the reason if the file is not whole or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        if start.startswith(b"version "):
            raise ValueError("is a pointer of Git LFS, not the weights; fetch them with git lfs pull")
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or length > _LONGEST_HEADER:
            raise ValueError(f"is no safetensors file ({size} bytes)")
        header = _header(stream.read(length))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    expected = _LENGTH_BYTES + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size < expected:
        raise ValueError(f"is cut off: it has {size} bytes, expected {expected}")
    return {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}


def _header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except ValueError as error:
        raise ValueError("is no safetensors file, or is cut off in its header") from error
    if not isinstance(header, dict):
        raise ValueError("is no safetensors file")
    return header


def problem_with_weights(folder: Path) -> str | None:
    """Return what is wrong with the weight files of a folder; None if all of them are there and whole.

    The contents of tensors are not read.
    """
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        return "the folder holds no weights (model.safetensors or pytorch_model.bin, or shards of them)"
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    whole = next((folder / name for name in _WHOLE if (folder / name).is_file()), None)
    if whole is None and index is None:
        found = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
        return (
            f"the folder holds {', '.join(found[:3])}, but no model.safetensors and no model.safetensors.index.json, "
            "which names shards; rename the file, or save the model again with save_pretrained"
        )
    if whole is None and index is not None and (problem := _missing_shards(index)):
        return problem
    for file in sorted(folder.glob("*.safetensors")):
        try:
            shapes_in(file)
        except (OSError, ValueError) as error:
            return f"{file.name} {error}. Copy or download it again" if isinstance(error, ValueError) else str(error)
    return None


def _missing_shards(index: Path) -> str | None:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{index.name} cannot be read ({type(error).__name__}: {error}). Copy or download it again"
    gone = [name for name in names if not (index.parent / str(name)).is_file()]
    if not gone:
        return None
    listed = ", ".join(map(str, gone[:3])) + (", ..." if len(gone) > 3 else "")
    return (
        f"{listed} is missing: {index.name} names {len(names)} shards, and {len(gone)} of them are not there. Copy or "
        "download the model again"
    )


def embedding_shape(folder: Path) -> tuple[int, int] | None:
    """Return token ids and width of the input embeddings in the safetensors files of a folder; None if unknown."""
    found = [
        shape
        for file in sorted(folder.glob("*.safetensors"))
        for name, shape in shapes_in(file).items()
        if name.endswith(_EMBEDDINGS) and len(shape) == 2
    ]
    return (found[0][0], found[0][1]) if len(found) == 1 else None


def problem_with_shape(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return how the weights contradict ``config``, the values of config.json; None if they do not, as far as known."""
    text = config.get("text_config") or config
    shape, vocabulary, width = embedding_shape(folder), text.get("vocab_size"), _width_of(text)
    if shape is None or not isinstance(vocabulary, int) or not isinstance(width, int):
        return None
    if shape == (vocabulary, width):
        return None
    return (
        f"its weights embed {shape[0]} token ids in {shape[1]} numbers each, but config.json says vocab_size "
        f"{vocabulary} and hidden_size {width}, so the two are not of one model; copy both from one source"
    )


def _width_of(text: Mapping[str, Any]) -> Any:
    return text.get("word_embed_proj_dim") or text.get("hidden_size")  # OPT projects narrow embeddings


def problem_with_kind(config: Mapping[str, Any]) -> str | None:
    """Return why a model of this config.json cannot write text; None if it can, as far as that shows."""
    classes = [name for name in config.get("architectures") or () if isinstance(name, str)]
    if config.get("is_encoder_decoder") or config.get("model_type") in _ENCODER_DECODERS:
        return "is an encoder-decoder model, and rlkl trains decoders alone"
    if classes and not any(name.endswith(_WRITE_TEXT) for name in classes):
        return f"is a {classes[0]}, which has no head that writes text"
    return None


_WRITE_TEXT = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText", "Model")
"""The ends of names of classes in transformers. A bare ``Model`` may have its head tied to the embeddings."""
_ENCODER_DECODERS = ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "longt5", "whisper")
