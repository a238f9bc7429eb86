"""The judge against a real server: vLLM's OpenAI-compatible one, on loopback, with a tiny model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward_models import Judge
from rlkl.errors import RewardError, RewardInputError
from tests.integration.runs import DEADLINE_S, REPOSITORY, free_port
from tests.integration.test_vision_in_vllm import SETTINGS
from tests.models import tiny_qwen3

TEMPLATE = "Rate {completion} for {question}:"
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
)
ROWS = [{"question": f"{n}+1", "completion": f"{'x' * n} {n}"} for n in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_qwen3(tmp_path_factory.mktemp("judge") / "model", tied=False, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "256", "--enforce-eager"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **SETTINGS},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_it_answers(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(DEADLINE_S)


def _wait_until_it_answers(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert server.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < until, log.read_text()[-5000:]
            time.sleep(0.5)


def ask(judge: Judge, rows: list[dict[str, str]]) -> list[Any]:
    async def run() -> list[Any]:
        answers = await asyncio.gather(*(judge(**row) for row in rows), return_exceptions=True)
        await judge.close()
        return answers

    return asyncio.run(run())


@torch.no_grad()
def digits_by_transformers(folder: Path) -> list[int]:
    """The likeliest digit after each row's conversation."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)]
    found = []
    for row in ROWS:
        turns = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": TEMPLATE.format(**row)}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, -1]
        found.append(int(logits[ids].argmax()))
    return found


def make(url: str, folder: Path, allowed: str, **settings: Any) -> Judge:
    ids = [AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(character) for character in allowed]
    return Judge(
        base_url=url,
        model="judge",
        template=TEMPLATE,
        system="Be fair.",
        score_pattern=r"(\d)",
        low=0,
        high=9,
        max_tokens=1,
        extra={"allowed_token_ids": ids},
        **settings,
    )


def test_scores_are_what_the_model_says(url, model):
    """An untrained model rates at random, but always the same: as transformers reads it from the same conversation."""
    judge = make(url, model, "0123456789", concurrency=4)
    judge.setup()
    expected = digits_by_transformers(model)
    assert len(set(expected)) > 1
    assert ask(judge, ROWS) == [pytest.approx(digit / 9) for digit in expected]


def test_a_reply_without_a_score_is_an_error(url, model):
    answers = ask(make(url, model, "abc"), ROWS[:2])
    for answer in answers:
        with pytest.raises(RewardError, match="the reply has no match of"):
            raise answer


def test_a_request_that_the_server_refuses_is_an_error(url, model):
    (answer,) = ask(make(url, model, "0"), [{"question": "x" * 400, "completion": ""}])
    with pytest.raises(RewardError, match="refused the request with status 400"):
        raise answer


def test_a_model_that_the_server_does_not_have(url):
    with pytest.raises(RewardInputError, match="did you mean 'judge'"):
        Judge(base_url=url, model="judges").setup()
