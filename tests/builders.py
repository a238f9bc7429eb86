"""Small batches and rollouts for tests.

Shapes: B sequences, T tokens. Every sequence has a prompt of `PROMPT_TOKENS` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlkl.batch import Batch, Denominators, Signal, Signals
from rlkl.learner.learner import Learner
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup
from rlkl.updates.run_facts import RunFacts

FACTS = RunFacts(
    has_pairs=False,
    has_rewards=True,
    prompts_per_step=4,
    samples_per_prompt=8,
    max_rounds=1,
    epochs=1,
    minibatches=1,
    tracks_reference_kl=True,
)
"""A run that gives no reason for a warning."""
PROMPT_TOKENS = 2
COMPLETION_LIMIT = 8


def make_batch(
    *,
    lengths: Sequence[int],
    rewards: Sequence[float],
    groups: Sequence[int],
    truncated: Sequence[int] = (),
    corrupted: Sequence[int] = (),
    padding: int = 0,
    seed: int = 0,
) -> Batch:
    """A batch with responses of ``lengths`` tokens, random ids and random frozen log-probs, denominators counted.

    ``truncated`` and ``corrupted`` list rows; ``padding`` adds columns on the right.
    """
    lengths_B1 = torch.tensor(lengths).unsqueeze(1)
    width = PROMPT_TOKENS + max(lengths)
    positions_T = torch.arange(width + padding)
    attention_BT = positions_T < PROMPT_TOKENS + lengths_B1
    response_BT = attention_BT & (positions_T >= PROMPT_TOKENS)
    truncated_B = torch.zeros(len(lengths), dtype=torch.bool)
    truncated_B[list(truncated)] = True
    pictured_B = torch.zeros(len(lengths), dtype=torch.bool)
    pictured_B[list(corrupted)] = True

    def draw(offset: int) -> Tensor:
        return random_logprobs(response_BT[:, :width], seed=seed + offset)

    def pad(x_BT: Tensor) -> Tensor:
        return torch.nn.functional.pad(x_BT, (0, padding))

    return Batch(
        token_ids_BT=pad(torch.randint(1, 50, (len(lengths), width), generator=torch.Generator().manual_seed(seed))),
        attention_BT=attention_BT,
        response_BT=response_BT,
        rollout_logprobs_BT=pad(draw(1)),
        rewards_B=torch.tensor(rewards, dtype=torch.float32),
        group_B=torch.tensor(groups),
        truncated_B=truncated_B,
        advantages_BT=torch.zeros(response_BT.shape),
        returns_BT=torch.zeros(response_BT.shape),
        role_B=torch.zeros(len(lengths), dtype=torch.int64),
        weight_B=torch.ones(len(lengths)),
        list_B=torch.full((len(lengths),), -1),
        rank_B=torch.zeros(len(lengths), dtype=torch.int64),
        pictured_B=pictured_B,
        progress=0.0,
        denominators=Denominators(sequences=1, tokens=1, completion_limit=COMPLETION_LIMIT),
        signals=Signals(
            {
                Signal.PROXIMAL_LOGPROBS: pad(draw(1)),
                Signal.REFERENCE_LOGPROBS: pad(draw(2)),
                Signal.CORRUPTED_LOGPROBS: pad(draw(3)),
            }
        ),
    ).recounted()


def random_logprobs(response_BT: Tensor, *, seed: int) -> Tensor:
    """Log-probs between -2 and -1, zero outside the response."""
    logprobs_BT = -1 - torch.rand(response_BT.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(response_BT, logprobs_BT, 0.0)


def with_frozen(batch: Batch, values: Mapping[Signal, Tensor]) -> Batch:
    """``batch`` with some frozen signals replaced."""
    return replace(batch, signals=batch.signals.merged(Signals(values)))


def with_policy(batch: Batch, policy_logprobs_BT: Tensor) -> Signals:
    """What `PolicyUpdate.loss` is given: the frozen signals and the policy's log-probs."""
    return batch.signals.merged(Signals({Signal.POLICY_LOGPROBS: policy_logprobs_BT}))


def make_group(prompt_id: str, rewards: Sequence[float]) -> RolloutGroup:
    """A prompt with one two-token completion a reward."""
    return RolloutGroup(
        prompt=Prompt(id=prompt_id, text=prompt_id, token_ids=(3, 4)),
        rollouts=tuple(
            Rollout(
                sample_index=index,
                completion=Completion(token_ids=(5, 1), logprobs=(-0.5, -0.25), finish_reason="stop"),
                reward=reward,
                components={"gold": reward},
                weights_version=0,
            )
            for index, reward in enumerate(rewards)
        ),
    )


def prepared_batch(learner: Learner) -> Batch:
    """Return the batch that the learner prepared last."""
    assert learner._last is not None
    return learner._last.batch
