"""Answers end as the chat template ends a turn, and are tokenized as a sampler would have returned them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from reward_models.training.demonstrations import load_demonstrations
from reward_models.training.pairs import load_pairs
from reward_models.training.recipe import AnswersSection, PairsSection
from rlkl.data.answers import AnswerEncoder, find_turn_end
from rlkl.data.chat import EncodedPrompt
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.recipe import DataSection
from rlkl.rollout.settings import _stop_token_ids
from rlkl.types import Prompt
from tests.chat_tokenizers import FAMILIES, TURN_ENDS, chat_tokenizer

ASK = [{"role": "user", "content": "name a colour"}]
FAMILY = pytest.mark.parametrize("family", FAMILIES)


def said(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **more}]


def write(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(folder: Path, tokenizer: Any, row: dict[str, Any], **keys: Any) -> Prompt:
    section = DataSection(source=write(folder, row), chosen_column="chosen", rejected_column="rejected", **keys)
    return load_prompts(section, Encoder(tokenizer=tokenizer), seed=0).take(0, 1)[0]


@FAMILY
@pytest.mark.parametrize("special", [True, False])
def test_the_turn_end_comes_from_the_template(family: str, special: bool):
    tokenizer = chat_tokenizer(family, control_is_special=special)
    end = find_turn_end(tokenizer, {})
    assert end is not None
    assert end.text == TURN_ENDS[family]
    assert tokenizer.encode(end.text, add_special_tokens=False) == [end.stop_id]


@FAMILY
def test_answers_of_every_kind_of_data_end_with_the_turn_end(family: str, tmp_path: Path):
    tokenizer = chat_tokenizer(family)
    stop = tokenizer.convert_tokens_to_ids(TURN_ENDS[family])
    row = {"prompt": ASK, "chosen": said("blue"), "rejected": said("a stone"), "completion": "red"}
    prompt = pair(tmp_path, tokenizer, row)
    reward_pair = load_pairs(PairsSection(source=write(tmp_path, row)), tokenizer)[0]
    demonstration = load_demonstrations(AnswersSection(source=write(tmp_path, row)), tokenizer)[0]
    ids = [*prompt.answers, reward_pair.chosen_ids, reward_pair.rejected_ids, demonstration.answer_ids]
    assert [answer[-1] for answer in ids] == [stop] * 5
    texts = [tokenizer.decode(answer[:-1]) for answer in (*prompt.answers, demonstration.answer_ids)]
    assert [text.rpartition("</think>")[2].strip() for text in texts] == ["blue", "a stone", "red"]


@FAMILY
def test_an_answer_with_its_own_turn_end_gets_no_second_one(family: str, tmp_path: Path):
    end = TURN_ENDS[family]
    row = {"prompt": ASK, "chosen": said(f"blue{end}"), "rejected": said("red")}
    tokenizer = chat_tokenizer(family)
    (chosen, _) = pair(tmp_path, tokenizer, row).answers
    assert chosen.count(tokenizer.convert_tokens_to_ids(end)) == 1


@FAMILY
@pytest.mark.parametrize("prompt", ["the answer is", "is two plus "])
def test_answers_to_plain_text_end_with_the_end_of_sequence(family: str, prompt: str, tmp_path: Path):
    tokenizer = chat_tokenizer(family)
    row = {"prompt": prompt, "chosen": "blue", "rejected": "red"}
    loaded = pair(tmp_path, tokenizer, row)
    assert [answer[-1] for answer in loaded.answers] == [tokenizer.eos_token_id] * 2
    assert [tokenizer.decode(answer[:-1]) for answer in loaded.answers] == ["blue", "red"]


def test_plain_text_that_opens_the_assistants_turn_is_answered_by_a_turn(tmp_path: Path):
    tokenizer = chat_tokenizer("gemma")
    text = "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    loaded = pair(tmp_path, tokenizer, {"prompt": text, "chosen": "blue", "rejected": "red"})
    assert tokenizer.decode(loaded.answers[0]) == "blue<end_of_turn>"
    assert loaded.token_ids == tuple(tokenizer.encode(text, add_special_tokens=False))


@FAMILY
@pytest.mark.parametrize("as_chat", [True, False])
def test_ids_are_those_of_trl_up_to_the_stop_token(family: str, as_chat: bool, tmp_path: Path):
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DPOTrainer

    tokenizer = chat_tokenizer(family)
    row: dict[str, Any] = {"prompt": ASK, "chosen": said("blue or red"), "rejected": said("five")}
    if not as_chat:
        row = {"prompt": "the answer is", "chosen": " five.", "rejected": " two"}
    trainer, settings = SimpleNamespace(_tokenizer=tokenizer), SimpleNamespace(dataset_num_proc=None, max_length=None)
    prepared: Any = DPOTrainer._prepare_dataset(
        cast("DPOTrainer", trainer), Dataset.from_list([row]), tokenizer, cast("Any", settings), "train"
    )
    (theirs,) = prepared
    ours = pair(tmp_path, tokenizer, row)
    assert list(ours.token_ids) == theirs["prompt_ids"]
    for own, name in zip(ours.answers, ("chosen_ids", "rejected_ids"), strict=True):
        other = theirs[name]
        assert list(own) == other[: len(own)]
        beyond = tokenizer.decode(other[len(own) :])
        assert beyond == {"gemma": "\n", "qwen3": "\n", "phi3": "\n<|endoftext|>"}.get(family if as_chat else "", "")


@pytest.mark.parametrize(
    ("thinking", "prompt_end", "answer"),
    [
        ({}, "assistant\n", "<think>\n\n</think>\n\nblue<|im_end|>"),
        ({"enable_thinking": True}, "assistant\n", "<think>\n\n</think>\n\nblue<|im_end|>"),
        ({"enable_thinking": False}, "assistant\n<think>\n\n</think>\n\n", "blue<|im_end|>"),
    ],
)
def test_template_arguments_hold_for_prompts_and_answers(
    thinking: dict[str, bool], prompt_end: str, answer: str, tmp_path: Path
):
    tokenizer = chat_tokenizer("qwen3")
    row = {"prompt": ASK, "chosen": said("blue"), "rejected": said("red")}
    prompt = pair(tmp_path, tokenizer, row, chat_template_kwargs=thinking)
    assert prompt.text.endswith(prompt_end)
    assert tokenizer.decode(prompt.answers[0]) == answer
    source = write(tmp_path, row)
    learned = load_pairs(PairsSection(source=source, chat_template_kwargs=thinking), tokenizer)[0]
    assert learned.chosen_ids == prompt.token_ids + prompt.answers[0]


def test_a_template_that_writes_the_prompt_otherwise_gets_the_content_and_the_turn_end(tmp_path: Path):
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.length }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    prompt = pair(tmp_path, tokenizer, {"prompt": ASK, "chosen": "blue", "rejected": "red"})
    assert [tokenizer.decode(answer) for answer in prompt.answers] == ["blue<|im_end|>", "red<|im_end|>"]


def test_a_template_without_a_control_token_ends_with_the_end_of_sequence(tmp_path: Path):
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert find_turn_end(tokenizer, {}) is None
    prompt = pair(tmp_path, tokenizer, {"prompt": ASK, "chosen": "blue", "rejected": "red"})
    assert [tokenizer.decode(answer) for answer in prompt.answers] == [" blue<|endoftext|>", " red<|endoftext|>"]


def test_an_answer_of_tool_calls_is_what_the_template_writes(tmp_path: Path):
    calls = [{"type": "function", "function": {"name": "look_up", "arguments": {}}}]
    row = {
        "prompt": ASK,
        "chosen": [{"role": "assistant", "content": None, "tool_calls": calls}],
        "rejected": said("red"),
    }
    tokenizer = chat_tokenizer("qwen3")
    chosen = pair(tmp_path, tokenizer, row, chat_template_kwargs={"enable_thinking": False}).answers[0]
    assert tokenizer.decode(chosen) == "<tool_call>\nlook_up\n</tool_call><|im_end|>"


def test_what_the_policy_sampled_is_encoded_as_it_is():
    tokenizer = chat_tokenizer("qwen3")
    answers = AnswerEncoder(tokenizer, {})
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    prompt = EncodedPrompt(text=text, token_ids=tuple(tokenizer.encode(text)))
    assert tokenizer.decode(answers.encode_sampled(prompt, "blue")) == "blue<|im_end|>"
    assert tokenizer.decode(answers.encode_sampled(prompt, "")) == "<|im_end|>"
    plain = EncodedPrompt(text="hi", token_ids=tuple(tokenizer.encode("hi")))
    assert tokenizer.decode(answers.encode_sampled(plain, "blue")) == "blue<|endoftext|>"


@FAMILY
def test_a_completion_stops_at_the_turn_end(family: str, tmp_path: Path):
    tokenizer = chat_tokenizer(family)
    ends = tokenizer.convert_tokens_to_ids([FAMILIES[family][1], TURN_ENDS[family]])
    assert _stop_token_ids(str(tmp_path), tokenizer, {}) == tuple(dict.fromkeys(ends))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ends[1], 7]}))
    assert _stop_token_ids(str(tmp_path), tokenizer, {}) == tuple(dict.fromkeys([*ends, 7]))
