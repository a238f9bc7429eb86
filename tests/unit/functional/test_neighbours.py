"""Products of the distributions at neighbouring tokens, and words: by hand."""

from __future__ import annotations

import pytest
import torch

from rlkl.functional.neighbours import NeighbourProducts, joined, looked_up, next_in_response, word_tables
from rlkl.tasks.characters import character_tokenizer, word_tokenizer
from rlkl.updates.terms.span.words import texts_inside


def test_the_distance_by_hand() -> None:
    policy = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.25, 0.5, 0.25]]
    teacher = [[0.4, 0.4, 0.2], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]]
    wanted = [
        sum((policy[t][v] * policy[t + 1][v] - teacher[t][v] * teacher[t + 1][v]) ** 2 for v in range(3))
        for t in range(2)
    ]
    policy_CV, teacher_CV = (torch.tensor(x, dtype=torch.float64).log() for x in (policy, teacher))
    found = NeighbourProducts()(policy_CV, teacher_CV, torch.tensor([0, 1, 2]), None)
    assert found.tolist() == pytest.approx([*wanted, 0.0])
    assert NeighbourProducts()(policy_CV[:0], teacher_CV[:0], torch.tensor([]), None).shape == (0,)
    assert NeighbourProducts()(policy_CV[:1], teacher_CV[:1], torch.tensor([0]), None).tolist() == [0.0]


def test_the_gradient_is_that_of_finite_differences_and_it_is_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (2 * torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    ids = torch.zeros(4, dtype=torch.int64)
    assert torch.autograd.gradcheck(
        lambda x: NeighbourProducts()(x.log_softmax(-1), teacher.log_softmax(-1), ids, None), (logits,)
    )
    apart = [torch.tensor([[0.0, -torch.inf]] * 2), torch.tensor([[-torch.inf, 0.0]] * 2)]
    assert NeighbourProducts()(apart[0], apart[1], ids[:2], None).tolist() == [2.0, 0.0]


def test_neighbours_are_in_the_response() -> None:
    response_BT = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    assert next_in_response(response_BT).int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_flags_by_token_and_spans_between_breaks() -> None:
    ids_BT = torch.tensor([[0, 1, 2, 1, 9]])
    flags_BT = looked_up(ids_BT, torch.tensor([True, True, False]))
    assert flags_BT.tolist() == [[True, True, False, True, False]]  # id 9 is unknown
    assert joined(flags_BT, flags_BT).tolist() == [[True, False, False, False, False]]


def test_words_of_letters_digits_and_bytes() -> None:
    texts = ["un", " happy", "ness", ".", "", "\n", "2", "\N{REPLACEMENT CHARACTER}", "é", "a.", ".a", "_"]
    after_I, into_I = word_tables(texts)
    assert after_I.int().tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0]
    assert into_I.int().tolist() == [1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0]


def test_tokenizers_of_characters_and_of_words() -> None:
    """Characters of a word are together; each token of a tokenizer of words is a word of its own."""
    characters = character_tokenizer()
    after_I, into_I = word_tables(texts_inside(characters))
    ids = characters.encode("ab 12+3\n")
    together = joined(looked_up(torch.tensor([ids]), after_I), looked_up(torch.tensor([ids]), into_I))
    assert together[0].int().tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    assert not after_I[:3].any()  # padding, end and unknown
    words = word_tokenizer(["good", "film", "."])
    after_I, into_I = word_tables(texts_inside(words))
    assert texts_inside(words)[3:] == [" good", " film", " ."]
    assert not into_I.any()
