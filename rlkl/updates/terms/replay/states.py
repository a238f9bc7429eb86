"""The file of fixed samples and the classes of their hidden states, which `rlkl replay-states` writes.

A folder holds `HEADER_FILE`, for people and for the check that the states are those of the run's model, and
`TENSORS_FILE`. The states themselves are not kept: the margin needs their classes alone, 2 bits a number
(`rlkl.functional.margin`). 1,000 samples of 563 tokens of a model of width 4,096 take 0.6 GB; float32 takes 9.2 GB.

Shapes: S samples, N tokens of all samples one after the other, H dimensions, P = ceil(H / 4) bytes a token.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkl.errors import RecipeError

HEADER_FILE = "states.json"
TENSORS_FILE = "states.safetensors"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesHeader:
    """The model and the texts that the states are of."""

    model: str
    """The model as it was named to `rlkl replay-states`."""
    model_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    """The precision in which the states were computed: ``float32`` or ``bfloat16``."""
    hidden_size: int
    data: str
    samples: int
    tokens: int
    tensors_digest: str = ""
    """Hash of `TENSORS_FILE`."""
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayStates:
    """Samples, and the classes of their hidden states before training."""

    token_ids_N: Tensor
    """int32."""
    lengths_S: Tensor
    """int32: tokens of each sample, at least 2."""
    classes_NP: Tensor
    """uint8: four classes a byte."""
    low_H: Tensor
    """float32: mean minus standard deviation of each dimension over all tokens."""
    high_H: Tensor
    """float32: mean plus standard deviation."""
    slack_H: Tensor
    """float32: the distance to a threshold that rounding may explain; see `rlkl.learner.replay_states`."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.lengths_S)

    def token_ids(self, sample: int) -> tuple[int, ...]:
        """Return the token ids of a sample."""
        return tuple(self.token_ids_N[self._span(sample)].tolist())

    def classes(self, sample: int) -> Tensor:
        """Return the packed classes ``[tokens, P]`` of a sample."""
        return self.classes_NP[self._span(sample)]

    def _span(self, sample: int) -> slice:
        start = int(self.lengths_S[:sample].sum())
        return slice(start, start + int(self.lengths_S[sample]))


def write_states(folder: Path, states: ReplayStates, header: StatesHeader) -> None:
    """Write the folder; the header comes last and holds the digest of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(states, name).contiguous() for name in ReplayStates.__slots__}
    (folder / HEADER_FILE).unlink(missing_ok=True)
    save_file(tensors, folder / TENSORS_FILE)
    values = {**asdict(header), "tensors_digest": _digest(folder / TENSORS_FILE)}
    (folder / HEADER_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_header(folder: Path, key: str) -> StatesHeader:
    """Read the header. ``key`` is the recipe's, for messages; raises `RecipeError` if there is none that fits."""
    path = folder / HEADER_FILE
    if not path.is_file():
        raise RecipeError(
            f"{key} = '{folder}' holds no {HEADER_FILE}; write it with: rlkl replay-states MODEL DATA --output {folder}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise RecipeError(
                f"{key} = '{folder}' has format {values['format']}, and this rlkl reads {FORMAT}. {_again(folder)}"
            )
        return StatesHeader(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{key}: {path} cannot be read ({error!r}). {_again(folder)}") from error


def read_states(folder: Path, key: str) -> ReplayStates:
    """Read the samples; raises `RecipeError` if they are missing, damaged, or not those of the header."""
    header = read_header(folder, key)
    path = folder / TENSORS_FILE
    try:
        if _digest(path) != header.tensors_digest:
            raise RecipeError(f"{key}: {path} is not the file that {HEADER_FILE} was written with. {_again(folder)}")
        tensors = load_file(path)
        return ReplayStates(**{name: tensors[name] for name in ReplayStates.__slots__})
    except (OSError, SafetensorError, KeyError) as error:
        raise RecipeError(f"{key}: {path} cannot be read ({error!r}). {_again(folder)}") from error


def check_enough(states: ReplayStates, sequences: int, folder: str, key: str) -> None:
    """Raise `RecipeError` if a step wants more samples than there are. ``key`` is the recipe's, of the term."""
    if sequences > states.samples:
        raise RecipeError(
            f"{key}.sequences = {sequences}, but '{folder}' holds {states.samples} samples. Lower sequences, or write "
            f"more samples with rlkl replay-states MODEL DATA --output {folder} --samples N"
        )


def _again(folder: Path) -> str:
    return f"Write the folder again with: rlkl replay-states MODEL DATA --output {folder}"


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
