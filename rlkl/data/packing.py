"""From examples to tensors, and from a batch to minibatches and micro-batches. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import Tensor

from rlkl.batch import ROLES, Batch, Denominators, ImageInputs
from rlkl.data.vision import PictureProcessor, image_inputs
from rlkl.errors import NumericalFault
from rlkl.functional.packing import shared_prefixes
from rlkl.seeds import derive_seed
from rlkl.types import POLICY_TOKEN, Example


def pack(
    examples: Sequence[Example],
    *,
    completion_limit: int,
    progress: float = 0.0,
    pictures: PictureProcessor | None = None,
) -> Batch:
    """Turn at least one example into right-padded tensors. Denominators count all of them.

    Tensors of `Batch` that are not made here start as zeros: `PolicyUpdate.credit` fills them. ``pictures`` cuts the
    prompts' pictures into patches; a picture that several sequences share is cut once.

    Raises `NumericalFault` if a log-prob of the sampler is not finite.
    """
    assert examples, "an empty batch has no tensors"
    prompts = [example.prompt.token_ids for example in examples]
    completions = [example.rollout.completion for example in examples]
    sequences = [prompt + completion.token_ids for prompt, completion in zip(prompts, completions, strict=True)]
    shape = (len(sequences), max(len(sequence) for sequence in sequences))
    token_ids_BT = torch.zeros(shape, dtype=torch.int64)
    attention_BT = torch.zeros(shape, dtype=torch.bool)
    response_BT = torch.zeros(shape, dtype=torch.bool)
    rollout_logprobs_BT = torch.zeros(shape, dtype=torch.float32)
    for row, (prompt, completion, sequence) in enumerate(zip(prompts, completions, sequences, strict=True)):
        token_ids_BT[row, : len(sequence)] = torch.tensor(sequence)
        attention_BT[row, : len(sequence)] = True
        response_BT[row, len(prompt) : len(sequence)] = True
        if completion.logprobs is not None:
            rollout_logprobs_BT[row, len(prompt) : len(sequence)] = torch.tensor(completion.logprobs)
    made: dict[str, Any] = {
        "token_ids_BT": token_ids_BT,
        "attention_BT": attention_BT,
        "response_BT": response_BT,
        "rollout_logprobs_BT": rollout_logprobs_BT,
        "truncated_B": torch.tensor([completion.finish_reason == "length" for completion in completions]),
        "pictured_B": torch.tensor([bool(example.prompt.images) for example in examples]),
        **_example_columns(examples),
    }
    _check_sampler(rollout_logprobs_BT, examples)
    made |= zero_tensors(shape, without=made)
    return Batch(
        **made,
        progress=progress,
        denominators=Denominators(sequences=1, tokens=1, completion_limit=completion_limit),
        images=_images(examples, pictures),
        token_rewards_BT=_token_rewards(examples, shape),
        provenance_BT=_provenance(examples, shape),
    ).recounted()


def _check_sampler(logprobs_BT: Tensor, examples: Sequence[Example]) -> None:
    if bool(torch.isfinite(logprobs_BT).all()):
        return
    row, column = (~torch.isfinite(logprobs_BT)).nonzero()[0].tolist()
    prompt = examples[row].prompt
    raise NumericalFault(
        f"the sampler gave the log-prob {float(logprobs_BT[row, column]):g} for token {column - len(prompt.token_ids)} "
        f"of a completion of prompt {prompt.id}: it drew a token that it holds for impossible, or its weights are not "
        "finite. Look at rollout.vllm, and at the weights of the last checkpoint"
    )


def zero_tensors(shape: tuple[int, int], *, without: Collection[str]) -> dict[str, Tensor]:
    """Return float32 zeros for each tensor of a `Batch` of ``shape`` (B, T) that is required and not in ``without``."""
    required = [one.name for one in fields(Batch) if one.default is MISSING and one.default_factory is MISSING]
    size_of = {"_BT": shape, "_B": shape[:1]}
    return {
        name: torch.zeros(size_of[suffix])
        for name in required
        if name not in without and (suffix := name[name.rfind("_") :]) in size_of
    }


def _example_columns(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return the numbers of each example, ``[B]`` each."""
    return {
        "rewards_B": torch.tensor([example.rollout.reward for example in examples], dtype=torch.float32),
        "group_B": torch.tensor([example.group for example in examples]),
        "role_B": torch.tensor([ROLES.index(example.role) for example in examples]),
        "weight_B": torch.tensor([example.weight for example in examples], dtype=torch.float32),
        "list_B": torch.tensor([-1 if example.list is None else example.list for example in examples]),
        "rank_B": torch.tensor([example.rank for example in examples]),
    }


def _token_rewards(examples: Sequence[Example], shape: tuple[int, int]) -> Tensor | None:
    if not any(example.rollout.token_rewards for example in examples):
        return None
    token_rewards_BT = torch.zeros(shape, dtype=torch.float32)
    for row, example in enumerate(examples):
        start, earned = len(example.prompt.token_ids), example.rollout.token_rewards
        token_rewards_BT[row, start : start + len(earned)] = torch.tensor(earned)
    return token_rewards_BT


def _provenance(examples: Sequence[Example], shape: tuple[int, int]) -> Tensor | None:
    if not any(example.rollout.completion.corrections for example in examples):
        return None
    provenance_BT = torch.full(shape, POLICY_TOKEN)
    for row, example in enumerate(examples):
        start, origins = len(example.prompt.token_ids), example.rollout.completion.provenance
        provenance_BT[row, start : start + len(origins)] = torch.tensor(origins, dtype=torch.int64)
    return provenance_BT


def _images(examples: Sequence[Example], pictures: PictureProcessor | None) -> ImageInputs | None:
    if pictures is None:
        assert not any(example.prompt.images for example in examples), "prompts without a picture for a text model"
        return None
    return image_inputs([pictures.of_prompt(example.prompt) for example in examples])


def minibatches(batch: Batch, count: int, *, seed: int, step: int, epoch: int) -> list[Tensor]:
    """Return the row numbers of each optimizer step: whole groups, in an order drawn anew each epoch.

    The groups of each role are divided evenly, so that every step gets its share of replayed ones.

    One minibatch keeps the batch's own order, so that its micro-batches are cut as the frozen pass cut them and an
    on-policy ratio is exactly 1.
    """
    if count == 1:
        return [torch.arange(batch.size)]
    generator = torch.Generator().manual_seed(derive_seed(seed, "minibatches", step, epoch))
    first = batch.role_B.min()  # the role main, if the batch has any of it: the rule's own groups set the count
    count = min(count, len(batch.group_B[batch.role_B == first].unique()))
    parts = [torch.zeros(batch.size, dtype=torch.bool) for _ in range(count)]
    for role in batch.role_B.unique():
        groups = batch.group_B[batch.role_B == role].unique()
        shuffled = groups[torch.randperm(len(groups), generator=generator)]
        for part_B, chosen in zip(parts, shuffled.tensor_split(count), strict=True):
            part_B |= (batch.role_B == role) & torch.isin(batch.group_B, chosen)
    return [part_B.nonzero()[:, 0] for part_B in parts]


def micro_batches(batch: Batch, max_tokens: int, *, packed: bool = False) -> list[Tensor]:
    """Return the row numbers of each forward pass, at most ``max_tokens`` tokens each; long rows come first.

    Without ``packed`` rows of like length go together and padding counts. With it only real tokens count, the rows of a
    group go together, and what they share counts once. The sequences of a list stay together. A sequence or list longer
    than ``max_tokens`` goes alone.
    """
    lengths = batch.attention_BT.sum(dim=1).tolist()
    if packed:
        return _packed_cuts(batch, max_tokens, lengths)
    units = sorted(_units(batch), key=lambda rows: -max(lengths[row] for row in rows))
    cuts: list[list[int]] = []
    width = 0
    for rows in units:
        if not cuts or (len(cuts[-1]) + len(rows)) * width > max_tokens:
            cuts.append([])
            width = max(lengths[row] for row in rows)
        cuts[-1] += rows
    return [torch.tensor(rows) for rows in cuts]


PADDED_LIMIT = 4
"""A packed micro-batch has at most so many times ``max_tokens`` places, counting padding and the prompt of each row.

Memory inside attention, and of what reads the states of rows, grows with these places."""


def _packed_cuts(batch: Batch, max_tokens: int, lengths: list[int]) -> list[Tensor]:
    shared_B, _ = shared_prefixes(batch.token_ids_BT, batch.attention_BT.sum(dim=1), batch.sharing_B)
    shared, groups = shared_B.tolist(), batch.sharing_B.tolist()
    longest: dict[int, int] = {}
    for length, group in zip(lengths, groups, strict=True):
        longest[group] = max(length, longest.get(group, 0))
    units = sorted(_units(batch), key=lambda rows: (-longest[groups[rows[0]]], groups[rows[0]], rows[0]))
    cuts: list[list[int]] = []
    for rows in units:
        together = [*cuts[-1], *rows] if cuts else rows
        own = sum(lengths[row] - shared[row] for row in together)
        tokens = own + sum({groups[row]: shared[row] for row in together}.values())
        places = len(together) * max(lengths[row] for row in together)
        if not cuts or tokens > max_tokens or places > PADDED_LIMIT * max_tokens:
            cuts.append([])
        cuts[-1] += rows
    return [torch.tensor(rows) for rows in cuts]


def _units(batch: Batch) -> list[list[int]]:
    """Return the rows that must share a micro-batch: those of each list, and every other row by itself."""
    units: dict[int, list[int]] = {}
    for row, number in enumerate(batch.list_B.tolist()):
        units.setdefault(number if number >= 0 else -1 - row, []).append(row)
    return list(units.values())
