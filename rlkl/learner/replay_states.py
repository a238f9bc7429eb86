"""Compute the hidden states that the term ``replay`` compares with, and check that they are those of a run's model.

The samples go through the model twice: for the thresholds, and for the classes. The numbers of another pass differ in
their last bits, since its micro-batches are cut otherwise. So a number may leave its band by `SLACK` times (standard
deviation + |mean|) of its dimension at no cost. The margin is therefore exactly 0 before training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkl.errors import RecipeError
from rlkl.functional.margin import classes_of, packed_classes
from rlkl.models.fingerprint import model_fingerprint
from rlkl.models.language_model import LanguageModel
from rlkl.recipe import Recipe
from rlkl.recipe.resolved_model import ResolvedModel
from rlkl.updates.terms.replay.settings import ReplaySettings
from rlkl.updates.terms.replay.states import ReplayStates, StatesHeader, check_enough, read_header, read_states

SLACK = {"float32": 1e-4, "bfloat16": 0.03}
"""Rounding of a hidden state, relative to the spread and the mean of its dimension."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """Sums over all tokens, float64."""

    count: int
    sum_H: Tensor
    squares_H: Tensor

    @property
    def mean_H(self) -> Tensor:
        return self.sum_H / self.count

    @property
    def std_H(self) -> Tensor:
        return (self.squares_H / self.count - self.mean_H.square()).clamp(min=0).sqrt()


def compute_states(
    model: LanguageModel, samples: Sequence[Sequence[int]], *, micro_batch_tokens: int, progress: Progress | None = None
) -> ReplayStates:
    """Run the model over all samples and return their classes. A sample is the ids of at least 2 tokens.

    ``progress`` gets the samples done and their number, of both passes together.
    """
    moments, done = _Moments(count=0, sum_H=torch.zeros(()), squares_H=torch.zeros(())), 0
    for states_NH in _hidden_states(model, samples, micro_batch_tokens):
        exact_NH = states_NH.double()
        moments = _Moments(
            count=moments.count + len(exact_NH),
            sum_H=moments.sum_H + exact_NH.sum(dim=0),
            squares_H=moments.squares_H + exact_NH.square().sum(dim=0),
        )
        done += 1
        if progress is not None:
            progress(done, 2 * len(samples))
    mean_H, std_H = moments.mean_H, moments.std_H
    low_H, high_H = (mean_H - std_H).float(), (mean_H + std_H).float()
    packed = []
    for states_NH in _hidden_states(model, samples, micro_batch_tokens):
        packed.append(packed_classes(classes_of(states_NH, low_H, high_H)))
        done += 1
        if progress is not None:
            progress(done, 2 * len(samples))
    slack = SLACK[str(model.dtype).removeprefix("torch.")]
    return ReplayStates(
        token_ids_N=torch.tensor([token for sample in samples for token in sample], dtype=torch.int32),
        lengths_S=torch.tensor([len(sample) for sample in samples], dtype=torch.int32),
        classes_NP=torch.cat(packed),
        low_H=low_H,
        high_H=high_H,
        slack_H=(slack * (std_H + mean_H.abs())).float(),
    )


@torch.no_grad()
def _hidden_states(model: LanguageModel, samples: Sequence[Sequence[int]], most: int) -> Iterator[Tensor]:
    """Yield the states ``[tokens, H]`` of each sample, float32 in host memory; a pass has ``most`` tokens, padded."""
    start = 0
    while start < len(samples):
        end, width = start, 0
        while end < len(samples) and (end == start or max(width, len(samples[end])) * (end - start + 1) <= most):
            width = max(width, len(samples[end]))
            end += 1
        ids_BT = torch.zeros(end - start, width, dtype=torch.int64)
        for row, sample in enumerate(samples[start:end]):
            ids_BT[row, : len(sample)] = torch.tensor(sample)
        hidden_BTH = model.hidden(ids_BT.to(model.device)).float().cpu()
        yield from (hidden_BTH[row, : len(sample)] for row, sample in enumerate(samples[start:end]))
        start = end


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash the tokens by their ids."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=16).hexdigest()


def check_states(recipe: Recipe, model: ResolvedModel, tokenizer: Any) -> None:
    """Raise `RecipeError` if a term cannot replay its states.

    They are refused if they are missing or damaged, if they are of another model, tokenizer or precision, or if a step
    wants more samples than there are. All of the file is read.
    """
    for number, term in enumerate(recipe.update.terms):
        if not isinstance(term, ReplaySettings):
            continue
        key, folder = f"update.terms[{number}]", Path(term.states).expanduser()
        _check_header(read_header(folder, f"{key}.states"), f"{key}.states", folder, _Run(recipe, model, tokenizer))
        check_enough(read_states(folder, f"{key}.states"), term.sequences, term.states, key)


@dataclass(frozen=True, slots=True)
class _Run:
    recipe: Recipe
    model: ResolvedModel
    tokenizer: Any


def _check_header(header: StatesHeader, key: str, folder: Path, run: _Run) -> None:
    recipe, model, tokenizer = run.recipe, run.model, run.tokenizer
    what = f"{key} = '{folder}'"
    again = (
        f"Write them for this model: rlkl replay-states {recipe.model.path} DATA --output {folder} "
        f"--dtype {recipe.model.dtype}"
    )
    if header.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
        raise RecipeError(
            f"{what} holds token ids of another tokenizer, that of {header.model!r}, than model.path = "
            f"{recipe.model.path!r} has. {again}"
        )
    if header.model_fingerprint != model_fingerprint(model.path, commit=model.commit):
        raise RecipeError(
            f"{what} holds states of another model, {header.model!r}, than model.path = {recipe.model.path!r}: its "
            f"weights or settings differ, so the policy would be held to states that it never had. {again}"
        )
    if header.dtype != recipe.model.dtype:
        raise RecipeError(
            f"{what} holds states in {header.dtype}, and model.dtype is {recipe.model.dtype}; rounding alone "
            f"would leave the bands. {again}"
        )
