"""From examples to tensors, and from a batch to minibatches and micro-batches. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkl.batch import Batch, Denominators, ImageInputs
from rlkl.data.vision import PictureProcessor, image_inputs
from rlkl.seeds import derive_seed
from rlkl.types import Example


def pack(
    examples: Sequence[Example],
    *,
    completion_limit: int,
    progress: float = 0.0,
    pictures: PictureProcessor | None = None,
) -> Batch:
    """Right-padded tensors of some examples, at least one. Denominators count all of them.

    ``pictures`` cuts the prompts' pictures into patches; a picture that several sequences share is cut once.
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
    return Batch(
        token_ids_BT=token_ids_BT,
        attention_BT=attention_BT,
        response_BT=response_BT,
        rollout_logprobs_BT=rollout_logprobs_BT,
        rewards_B=torch.tensor([example.rollout.reward for example in examples], dtype=torch.float32),
        group_B=torch.tensor([example.group for example in examples]),
        truncated_B=torch.tensor([completion.finish_reason == "length" for completion in completions]),
        advantages_BT=torch.zeros(shape, dtype=torch.float32),
        returns_BT=torch.zeros(shape, dtype=torch.float32),
        pair_B=torch.tensor([-1 if example.pair is None else example.pair for example in examples]),
        chosen_B=torch.tensor([example.chosen for example in examples]),
        corrupted_B=torch.zeros(len(examples), dtype=torch.bool),
        progress=progress,
        denominators=Denominators(sequences=1, tokens=1, pairs=1, completion_limit=completion_limit),
        images=_images(examples, pictures),
        token_rewards_BT=_token_rewards(examples, shape),
    ).recounted()


def _token_rewards(examples: Sequence[Example], shape: tuple[int, int]) -> Tensor | None:
    if not any(example.rollout.token_rewards for example in examples):
        return None
    token_rewards_BT = torch.zeros(shape, dtype=torch.float32)
    for row, example in enumerate(examples):
        start, earned = len(example.prompt.token_ids), example.rollout.token_rewards
        token_rewards_BT[row, start : start + len(earned)] = torch.tensor(earned)
    return token_rewards_BT


def _images(examples: Sequence[Example], pictures: PictureProcessor | None) -> ImageInputs | None:
    if pictures is None:
        assert not any(example.prompt.images for example in examples), "prompts without a picture for a text model"
        return None
    return image_inputs([pictures.of_prompt(example.prompt) for example in examples])


def minibatches(batch: Batch, count: int, *, seed: int, step: int, epoch: int) -> list[Tensor]:
    """Row numbers of each optimizer step: whole groups, in an order drawn anew each epoch.

    One minibatch keeps the batch's own order, so that its micro-batches are cut as the frozen pass cut them and an
    on-policy ratio is exactly 1.
    """
    if count == 1:
        return [torch.arange(batch.size)]
    groups = batch.group_B.unique()
    generator = torch.Generator().manual_seed(derive_seed(seed, "minibatches", step, epoch))
    shuffled = groups[torch.randperm(len(groups), generator=generator)]
    return [torch.isin(batch.group_B, part).nonzero()[:, 0] for part in shuffled.tensor_split(min(count, len(groups)))]


def micro_batches(batch: Batch, max_tokens: int) -> list[Tensor]:
    """Row numbers of each forward pass: rows of like length together, at most ``max_tokens`` with their padding.

    The two sequences of a pair stay together. A sequence or pair longer than ``max_tokens`` goes alone.
    """
    lengths = batch.attention_BT.sum(dim=1).tolist()
    units = sorted(_units(batch), key=lambda rows: -max(lengths[row] for row in rows))
    cuts: list[list[int]] = []
    width = 0
    for rows in units:
        if not cuts or (len(cuts[-1]) + len(rows)) * width > max_tokens:
            cuts.append([])
            width = max(lengths[row] for row in rows)
        cuts[-1] += rows
    return [torch.tensor(rows) for rows in cuts]


def _units(batch: Batch) -> list[list[int]]:
    """Rows that must share a micro-batch: each pair's two, and every other row by itself."""
    units: dict[int, list[int]] = {}
    for row, pair in enumerate(batch.pair_B.tolist()):
        units.setdefault(pair if pair >= 0 else -1 - row, []).append(row)
    return list(units.values())
