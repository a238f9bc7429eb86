"""Batches: cutting, roles, and the counts that losses divide by."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from rlkl.batch import Batch, Denominators
from rlkl.data.packing import pack, zero_tensors
from rlkl.types import Completion, Example, Prompt, Rollout
from tests.builders import make_batch


def example(group: int, length: int, **values: object) -> Example:
    completion = Completion(token_ids=(5,) * length, logprobs=(-1.0,) * length, finish_reason="stop")
    rollout = Rollout(sample_index=0, completion=completion, reward=1.0, components={}, weights_version=0)
    return Example(prompt=Prompt(id="p", text="", token_ids=(3, 4)), rollout=rollout, group=group, **values)  # pyright: ignore[reportArgumentType]


def mixed() -> Batch:
    """Two main sequences of 2 and 3 tokens, and a replayed one of 5."""
    return pack(
        [example(0, 2), example(1, 5, role="replay", weight=0.5), example(2, 3, list=4, rank=1)], completion_limit=8
    )


def test_every_tensor_with_a_row_a_sequence_is_cut_by_its_suffix():
    batch = mixed()
    cut = batch.rows(torch.tensor([2, 0]))
    names = [one.name for one in fields(Batch) if one.name.endswith(("_B", "_BT"))]
    assert {"weight_B", "returns_BT"} <= set(names)
    for name in names:
        whole, part = getattr(batch, name), getattr(cut, name)
        if whole is not None:
            assert torch.equal(part, whole[[2, 0], :5] if name.endswith("_BT") else whole[[2, 0]]), name


def test_a_tensor_that_pack_does_not_know_starts_as_zeros():
    zeros = zero_tensors((2, 3), without={"token_ids_BT"})
    assert zeros["advantages_BT"].shape == (2, 3)
    assert zeros["rewards_B"].shape == (2,)
    assert "token_ids_BT" not in zeros
    assert "token_rewards_BT" not in zeros, "it is optional"


def test_denominators_are_counted_by_role():
    counts = mixed().denominators
    assert (counts.sequences, counts.tokens, counts.stopped) == (2, 5, 2)
    replay = counts.of("replay")
    assert (replay.sequences, replay.tokens, replay.stopped, replay.completion_limit) == (1, 5, 1, 8)
    assert counts.of("main") is counts


def test_a_role_that_the_step_lacks_divides_by_one():
    counts = make_batch(lengths=[2, 3], rewards=[0.0, 1.0], groups=[0, 0]).denominators
    assert counts.others == {}
    assert (counts.of("replay").sequences, counts.of("replay").tokens) == (1, 1)


def test_only_masks_the_other_roles():
    batch = mixed()
    main, replay = batch.only("main"), batch.only("replay")
    assert main.response_BT.sum(dim=1).tolist() == [2, 0, 3]
    assert replay.response_BT.sum(dim=1).tolist() == [0, 5, 0]
    assert (main.denominators.tokens, replay.denominators.tokens) == (5, 5)
    plain = batch.rows(torch.tensor([0, 2])).recounted()
    assert plain.only("main") is plain


def test_rows_that_were_changed_are_written_back():
    batch = mixed()
    rows = batch.of_role("main")
    part = batch.rows(rows)
    changed = batch.with_rows(rows, replace(part, advantages_BT=part.advantages_BT + 2.0))
    assert rows.tolist() == [0, 2]
    assert changed.advantages_BT.shape == batch.advantages_BT.shape
    assert changed.advantages_BT[:, 0].tolist() == [2.0, 0.0, 2.0]
    assert changed.advantages_BT[:, -1].tolist() == [0.0, 0.0, 0.0], "the part is as wide as its longest sequence"
    assert torch.equal(changed.token_ids_BT, batch.token_ids_BT)


def test_roles_weights_lists_and_ranks_come_from_the_examples():
    batch = mixed()
    assert batch.role_B.tolist() == [0, 1, 0]
    assert batch.weight_B.tolist() == [1.0, 0.5, 1.0]
    assert batch.list_B.tolist() == [-1, -1, 4]
    assert batch.rank_B.tolist() == [0, 0, 1]


def test_names_of_an_earlier_version_are_read_or_name_the_new_ones():
    """A rule written before lists and ranks reads pairs; if it makes them, the error tells it how."""
    batch = replace(mixed(), list_B=torch.tensor([0, 0, -1]), rank_B=torch.tensor([0, 1, 0])).recounted()
    assert batch.pair_B.tolist() == [0, 0, -1]
    assert batch.chosen_B.tolist() == [True, False, False]
    assert batch.denominators.pairs == 1
    with pytest.raises(TypeError, match=r"no field chosen_B: set rank_B.*; Batch has no field pair_B: set list_B"):
        replace(batch, pair_B=batch.list_B, chosen_B=batch.chosen_B)
    assert batch.corrupted_B is batch.pictured_B
    with pytest.raises(TypeError, match="no field corrupted_B: set pictured_B"):
        replace(batch, corrupted_B=batch.pictured_B)
    with pytest.raises(TypeError, match="no field chosen or pair: use list"):
        example(0, 2, pair=3, chosen=True)


def test_denominators_need_a_limit():
    with pytest.raises(TypeError):
        Denominators(sequences=1, tokens=1)  # pyright: ignore[reportCallIssue]
