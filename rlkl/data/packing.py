"""From examples to tensors, and from a batch to minibatches and micro-batches. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkl.batch import Batch, Denominators
from rlkl.seeds import derive_seed
from rlkl.types import Example


def pack(examples: Sequence[Example], *, completion_limit: int) -> Batch:
    """Right-padded tensors of some examples, at least one. Denominators count all of them."""
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
        denominators=Denominators(sequences=1, tokens=1, completion_limit=completion_limit),
    ).recounted()


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

    A sequence longer than ``max_tokens`` goes alone.
    """
    lengths = batch.attention_BT.sum(dim=1).tolist()
    order = sorted(range(batch.size), key=lambda row: -lengths[row])
    cuts: list[list[int]] = []
    for row in order:
        if cuts and (len(cuts[-1]) + 1) * lengths[cuts[-1][0]] <= max_tokens:
            cuts[-1].append(row)
        else:
            cuts.append([row])
    return [torch.tensor(rows) for rows in cuts]
