"""Pairs and demonstrations, read with the word tokenizer of the reviews world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from reward_models.training import demonstrations, pairs
from reward_models.training.demonstrations import load_demonstrations
from reward_models.training.pairs import load_pairs
from reward_models.training.recipe import AnswersSection, PairsSection
from rlkl.errors import DataError
from rlkl.tasks.characters import EOS_ID, word_tokenizer
from rlkl.tasks.reviews_language import WORDS


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def a_pair(**more: Any) -> dict[str, Any]:
    return {"prompt": "the plot was", "chosen": "superb .", "rejected": "dull", **more}


def test_a_pair_is_prompt_answer_and_end(tmp_path, tokenizer):
    (pair,) = load_pairs(PairsSection(source=write(tmp_path / "a.jsonl", a_pair())), tokenizer)
    prompt = tokenizer.encode("the plot was")
    assert pair.prompt == "the plot was"
    assert list(pair.chosen_ids) == [*prompt, *tokenizer.encode("superb ."), EOS_ID]
    assert list(pair.rejected_ids) == [*prompt, *tokenizer.encode("dull"), EOS_ID]
    assert pairs.training_rows([pair]) == {
        "chosen_ids": [list(pair.chosen_ids)],
        "rejected_ids": [list(pair.rejected_ids)],
    }


def test_margins_and_probabilities_come_from_their_columns(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", a_pair(better_by=2, sure=0.75))
    with_margin = load_pairs(PairsSection(source=source, margin_column="better_by"), tokenizer)
    assert (with_margin[0].margin, with_margin[0].probability) == (2.0, None)
    assert pairs.training_rows(with_margin)["margin"] == [2.0]
    soft = load_pairs(PairsSection(source=source, probability_column="sure"), tokenizer)
    assert (soft[0].margin, soft[0].probability) == (None, 0.75)
    assert pairs.training_rows(soft)["probability"] == [0.75]


@pytest.mark.parametrize("value", [None, "2", True, [1.0]])
def test_a_margin_that_is_no_number_is_named_with_its_row(tmp_path, tokenizer, value):
    source = write(tmp_path / "a.jsonl", a_pair(m=1.0), a_pair(m=value, chosen="moving"))
    with pytest.raises(DataError, match=r"data.margin_column = 'm': row-1 has .* expected a number"):
        load_pairs(PairsSection(source=source, margin_column="m"), tokenizer)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_probability_lies_between_0_and_1(tmp_path, tokenizer, value):
    source = write(tmp_path / "a.jsonl", a_pair(p=value))
    with pytest.raises(DataError, match="expected probabilities from 0 to 1"):
        load_pairs(PairsSection(source=source, probability_column="p"), tokenizer)


def test_demonstrations_learn_the_answer_or_the_prompt_too(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", {"prompt": "the plot was", "completion": "superb ."})
    rows = load_demonstrations(AnswersSection(source=source), tokenizer)
    prompt, answer = tokenizer.encode("the plot was"), [*tokenizer.encode("superb ."), EOS_ID]
    assert demonstrations.training_rows(rows, train_on_prompt=False) == {
        "input_ids": [[*prompt, *answer]],
        "labels": [[-100, -100, -100, *answer]],
    }
    assert demonstrations.training_rows(rows, train_on_prompt=True)["labels"] == [[*prompt, *answer]]


def test_an_answer_may_be_the_last_of_some_messages(tmp_path, tokenizer):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "superb"}]
    source = write(tmp_path / "a.jsonl", {"prompt": "the plot was", "completion": messages})
    (row,) = load_demonstrations(AnswersSection(source=source), tokenizer)
    assert list(row.answer_ids) == [*tokenizer.encode("superb"), EOS_ID]


def test_a_few_bad_answers_are_left_out_and_many_refused(tmp_path, tokenizer, caplog):
    good = [{"prompt": f"the plot was {word}", "completion": "superb"} for word in WORDS[:18]]
    bad = [{"prompt": "the cast was", "completion": text} for text in ("", None, "superb " * 9)]
    section = {"source": write(tmp_path / "a.jsonl", *good, *bad), "max_answer_tokens": 8}
    rows = load_demonstrations(AnswersSection(**section, max_bad_fraction=0.2), tokenizer)
    assert len(rows) == 18
    assert "18 of 21 rows kept (2 empty, 0 malformed, 1 too long): row 19 (empty: 'completion' has no" in caplog.text
    with pytest.raises(DataError, match=r"raise data\.max_answer_tokens \(now 8\)"):
        load_demonstrations(AnswersSection(**section, max_bad_fraction=0.1), tokenizer)
