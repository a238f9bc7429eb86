"""Messages in all forms that real data sets have: each is used, or counted as a bad row with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reward_models.training.demonstrations import load_demonstrations
from reward_models.training.recipe import AnswersSection
from rlkl.data.prompts import Encoder, PromptSource, load_prompts
from rlkl.errors import DataError, RecipeError
from rlkl.recipe import DataSection
from rlkl.recipe.io import recipe_from
from tests.chat_tokenizers import chat_tokenizer

LONE = "half a pair \ud83d"
CALLS = [{"type": "function", "function": {"name": "look_up", "arguments": {"key": "colour"}}}]


def load(folder: Path, *rows: dict[str, Any], family: str = "qwen3", **keys: Any) -> PromptSource:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(source=str(path), shuffle=False, **{"max_bad_fraction": 0.9, **keys})
    return load_prompts(section, Encoder(tokenizer=chat_tokenizer(family)), seed=0)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize("family", ["qwen3", "gemma"])
def test_parts_that_are_all_text_are_read_as_one_text(tmp_path: Path, family: str):
    parts = [{"type": "text", "text": "name "}, {"type": "text", "text": "a colour", "image_url": None}]
    one, other = load(tmp_path, {"prompt": [user(parts)]}, {"prompt": [user("name a colour")]}, family=family).take(
        0, 2
    )
    assert (one.text, one.token_ids) == (other.text, other.token_ids)


@pytest.mark.parametrize("content", [None, ""])
def test_a_tool_call_needs_no_content(tmp_path: Path, content: str | None):
    turns = [
        user("name a colour"),
        {"role": "assistant", "content": content, "tool_calls": CALLS},
        {"role": "tool", "content": "blue"},
    ]
    (prompt,) = load(tmp_path, {"prompt": turns}).take(0, 1)
    assert "<|im_start|>assistant\n<tool_call>\nlook_up\n</tool_call><|im_end|>" in prompt.text
    assert "None" not in prompt.text


@pytest.mark.parametrize(
    ("messages", "detail"),
    [
        ([user([{"type": "text", "text": LONE}])], r"'prompt' has a lone surrogate \(U\+D83D\), which is not valid"),
        ([user(LONE)], "lone surrogate"),
        ([user([{"type": "text"}])], "message 1 has a part of type 'text' without text"),
        ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "a part of type 'image_url', and the model takes"),
        ([user(["hi"])], "message 1 has a part that is not"),
        ([user("hi"), {"role": "assistant", "content": None}, user("?")], "message 2 has content that is null"),
        ([user({"text": "hi"})], "message 1 has content that is of type dict"),
        ([user("hi"), {"role": "assistant", "content": "", "tool_calls": 3}, user("?")], "the chat template refuses"),
        ([{"content": "hi"}], "message 1 is not"),
    ],
)
def test_other_forms_are_bad_rows_with_their_numbers(tmp_path: Path, messages: list[Any], detail: str):
    report = load(tmp_path, {"prompt": [user("fine")]}, {"prompt": messages}).report
    assert [(bad.row, bad.problem) for bad in report.examples] == [(1, "malformed")]
    with pytest.raises(DataError, match=rf"row 2 \(malformed: .*{detail}"):
        load(tmp_path, {"prompt": [user("fine")]}, {"prompt": messages}, max_bad_fraction=0.1)


@pytest.mark.parametrize("as_chat", [True, False])
def test_a_lone_surrogate_in_plain_text_or_in_an_answer_is_a_bad_row(tmp_path: Path, as_chat: bool):
    fine = {"prompt": "p", "chosen": "a", "rejected": "b", "completion": "c"}
    rows = [fine, *({**fine, column: LONE} for column in ("prompt", "chosen", "rejected"))]
    columns = {"chosen_column": "chosen", "rejected_column": "rejected", "as_chat": as_chat}
    report = load(tmp_path, *rows, **columns).report
    assert [(bad.row, bad.problem) for bad in report.examples] == [(n, "malformed") for n in (1, 2, 3)]
    source = str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text(json.dumps(fine) + "\n" + json.dumps({**fine, "completion": LONE}) + "\n")
    assert len(load_demonstrations(AnswersSection(source=source, max_bad_fraction=0.5), chat_tokenizer("phi3"))) == 1


def test_an_id_with_a_lone_surrogate_is_no_name(tmp_path: Path):
    assert [prompt.id for prompt in load(tmp_path, {"prompt": "a", "id": LONE}).take(0, 1)] == ["row-0"]


def test_template_arguments_that_the_template_does_not_read_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"chat_template_kwargs\.enable_thinkin: .* did you mean 'enable_thinking'"):
        load(tmp_path, {"prompt": [user("hi")]}, chat_template_kwargs={"enable_thinkin": False})


def test_template_arguments_that_rlkl_sets_are_refused():
    values: dict[str, Any] = {
        "model": {"path": "m"},
        "data": {"source": "d", "chat_template_kwargs": {"tokenize": True}},
    }
    with pytest.raises(RecipeError, match=r"data\.chat_template_kwargs = .*: rlkl sets tokenize itself; expected"):
        recipe_from(values)
