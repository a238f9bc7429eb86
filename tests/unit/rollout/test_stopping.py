"""Stop texts: where a completion ends, whatever tokens they are made of, and what rewards see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.stopping import CompletionTexts, StopWatch, cut_at_stop
from rlkl.tasks.characters import character_tokenizer
from tests.chat_tokenizers import chat_tokenizer
from tests.models import tiny_qwen3


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0)


def settings(path: Path, *stop: str) -> EngineSettings:
    return EngineSettings(
        model_path=str(path),
        dtype="float32",
        max_prompt_tokens=8,
        max_new_tokens=24,
        temperature=1.0,
        stop_token_ids=(1,),
        stop=stop,
        memory_fraction=0.5,
        kv_cache_gib=1,
    )


def test_the_text_ends_before_the_first_stop_text():
    assert cut_at_stop("4. Next: 5", ["Next", ": "]) == "4. "
    assert cut_at_stop("4.", ["Next"]) == "4."


@pytest.mark.parametrize("text", ["the answer is five.\n\nthank you", "ein Stück \u2603\u2603 END", "END", "xEND"])
def test_a_stop_text_is_found_at_the_token_that_completes_it(text: str):
    tokenizer = chat_tokenizer("qwen3")
    ids = tokenizer.encode(text)
    for stop in ("\n\n", "END", "\u2603", "answer is"):
        watch = StopWatch(tokenizer, [stop, "never"])
        shortest = next((n for n in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:n])), None)
        assert watch.end(ids, 0) == shortest
        steps = [watch.end(ids[:n], n - 1) for n in range(1, len(ids) + 1)]
        assert next((end for end in steps if end is not None), None) == shortest


def test_a_stop_text_far_behind_the_beginning_is_found():
    tokenizer = chat_tokenizer("qwen3")
    ids = tokenizer.encode("blue, " * 200 + "\u2603END red")
    end = StopWatch(tokenizer, ["\u2603END"]).end(ids, 0)
    assert tokenizer.decode(ids[:end]).endswith("\u2603END")


@pytest.mark.parametrize("special", [True, False])
def test_rewards_see_neither_the_turn_end_nor_what_follows_a_stop_text(special: bool):
    tokenizer = chat_tokenizer("qwen3", control_is_special=special)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    texts = CompletionTexts(tokenizer, turn_end_id=end, stop=["\n\n"])
    ids = [[*tokenizer.encode("blue"), end], tokenizer.encode("red\n\nmore"), []]
    assert texts(ids) == ["blue", "red", ""]


def test_hf_completions_end_at_a_stop_text_with_the_tokens_unchanged(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    tokenizer: Any = character_tokenizer()
    requests = [Request(prompt_token_ids=(4, 5, 6)[: 1 + n % 3], seed=n) for n in range(24)]
    free = HfEngine(settings(model_path)).generate(requests)
    texts = tokenizer.batch_decode([c.token_ids for c in free], skip_special_tokens=True)
    stop = next(text[8:10] for text in texts if len(text) > 12)
    stopped = HfEngine(settings(model_path, stop, "never")).generate(requests)
    assert any(stop in text for text in texts)
    for before, after, text in zip(free, stopped, texts, strict=True):
        if stop not in text:
            assert after == before
            continue
        size = len(after.token_ids)
        assert after.token_ids == before.token_ids[:size]
        assert after.logprobs == pytest.approx((before.logprobs or ())[:size], abs=1e-5)
        assert after.finish_reason == "stop"
        assert tokenizer.decode(after.token_ids, skip_special_tokens=True) == text[: text.index(stop) + len(stop)]
