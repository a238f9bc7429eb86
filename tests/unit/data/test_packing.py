from dataclasses import replace

import pytest
import torch

from rlkl.data.packing import micro_batches, minibatches, pack
from rlkl.errors import RolloutError
from rlkl.types import Completion, Example, Prompt, Rollout


def example(prompt: tuple[int, ...], completion: tuple[int, ...], *, group: int = 0, reward: float = 0.0) -> Example:
    logprobs = tuple(-0.5 - index for index in range(len(completion)))
    return Example(
        prompt=Prompt(id="p", text="", token_ids=prompt),
        rollout=Rollout(
            sample_index=0,
            completion=Completion(
                token_ids=completion, logprobs=logprobs, finish_reason="length" if len(completion) == 3 else "stop"
            ),
            reward=reward,
            components={},
            weights_version=0,
        ),
        group=group,
    )


def test_tokens_masks_and_counts_stand_where_they_belong():
    batch = pack([example((5, 6), (7, 1), reward=0.5), example((5,), (8, 9, 10), group=1)], completion_limit=3)

    assert batch.token_ids_BT.tolist() == [[5, 6, 7, 1], [5, 8, 9, 10]]
    assert batch.response_BT.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert batch.rollout_logprobs_BT.tolist() == [[0.0, 0.0, -0.5, -1.5], [0.0, -0.5, -1.5, -2.5]]
    assert batch.rewards_B.tolist() == [0.5, 0.0]
    assert batch.truncated_B.tolist() == [False, True]
    assert (batch.denominators.sequences, batch.denominators.tokens) == (2, 5)
    assert batch.denominators.completion_limit == 3


def test_shorter_rows_are_padded_on_the_right_and_cut_again():
    batch = pack([example((5,), (1,)), example((5, 6, 7), (8, 1))], completion_limit=3)

    assert batch.attention_BT.tolist() == [[True, True, False, False, False], [True] * 5]
    assert batch.rows(torch.tensor([0])).token_ids_BT.tolist() == [[5, 1]]


def test_micro_batches_keep_like_lengths_together_within_the_budget():
    lengths = [2, 9, 3, 8, 20]
    batch = pack([example((5,), (6,) * (length - 1)) for length in lengths], completion_limit=20)

    cuts = [rows.tolist() for rows in micro_batches(batch, 18)]

    assert cuts == [[4], [1, 3], [2, 0]]  # 20 alone although over budget; 2 x 9; 2 x 3


def test_packed_micro_batches_count_real_tokens_and_what_a_group_shares_once():
    """Group 0: a prompt of 6 shared by three rows of 8, 9 and 7 tokens. Group 1: one row of 20. Group 2: two of 4."""
    rows = [((5,) * 6, (6, 7), 0), ((5,) * 6, (8, 8, 8), 0), ((5,) * 6, (9,), 0), ((3,), (4,) * 19, 1)]
    rows += [((2, 2), (n, n), 2) for n in (6, 7)]
    batch = pack([example(prompt, answer, group=group) for prompt, answer, group in rows], completion_limit=20)

    def cuts(tokens: int) -> list[list[int]]:
        return [rows.tolist() for rows in micro_batches(batch, tokens, packed=True)]

    assert cuts(100) == [[3, 0, 1, 2, 4, 5]]
    assert cuts(32) == [[3, 0, 1, 2], [4, 5]], "20 + 6 + 2 + 3 + 1 tokens, then 2 + 2 + 2"
    assert cuts(31) == [[3, 0, 1], [2, 4, 5]], "the third row of group 0 pays for its prompt again"
    assert cuts(1) == [[3], [0], [1], [2], [4], [5]]


def test_minibatches_keep_groups_whole_and_change_with_the_epoch():
    batch = pack([example((5,), (6, 1), group=row // 2) for row in range(12)], completion_limit=3)

    first = minibatches(batch, 3, seed=0, step=0, epoch=0)
    second = minibatches(batch, 3, seed=0, step=0, epoch=1)

    for parts in (first, second):
        assert sorted(torch.cat(parts).tolist()) == list(range(12))
        for rows in parts:
            groups = batch.group_B[rows]
            assert all((groups == group).sum() == 2 for group in groups)
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in second]
    assert [r.tolist() for r in first] == [r.tolist() for r in minibatches(batch, 3, seed=0, step=0, epoch=0)]


def test_one_minibatch_keeps_the_order_of_the_batch():
    batch = pack([example((5,), (6, 1), group=row) for row in range(4)], completion_limit=3)

    assert [rows.tolist() for rows in minibatches(batch, 1, seed=0, step=0, epoch=0)] == [[0, 1, 2, 3]]


def test_fewer_groups_than_minibatches_give_fewer_optimizer_steps():
    batch = pack([example((5,), (6, 1), group=row // 2) for row in range(4)], completion_limit=3)

    assert len(minibatches(batch, 3, seed=0, step=0, epoch=0)) == 2


def test_token_rewards_stand_at_their_tokens():
    plain = example((5, 6), (7, 1), reward=0.5)
    earning = replace(plain, rollout=replace(plain.rollout, token_rewards=(0.5, -0.25)))
    batch = pack([example((5,), (8, 9, 10)), earning], completion_limit=3)

    assert pack([plain], completion_limit=3).token_rewards_BT is None
    assert batch.token_rewards_BT is not None
    assert batch.token_rewards_BT.tolist() == [[0.0] * 4, [0.0, 0.0, 0.5, -0.25]]
    some = batch.rows(torch.tensor([1])).token_rewards_BT
    assert some is not None
    assert some.tolist() == [[0.0, 0.0, 0.5, -0.25]]


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf")])
def test_a_log_prob_of_the_sampler_that_is_not_finite_is_refused(logprob: float):
    one = example((5, 6, 7), (8, 9))
    completion = replace(one.rollout.completion, logprobs=(-1.0, logprob))
    broken = replace(one, rollout=replace(one.rollout, completion=completion))
    with pytest.raises(
        RolloutError, match=rf"log-prob {logprob:g} for token 1 of a completion of prompt {one.prompt.id}"
    ):
        pack([example((5,), (6,)), broken], completion_limit=8)
