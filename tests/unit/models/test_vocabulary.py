from __future__ import annotations

import logging
import string
from pathlib import Path

import pytest

from rlkl.errors import InputError
from rlkl.models.vocabulary import check_same_tokens
from rlkl.tasks.characters import word_tokenizer
from rlkl.training.setup import train
from tests.integration.runs import make_recipe
from tests.models import tiny_qwen3

WORDS = list(string.ascii_lowercase)


def saved(folder: Path, words: list[str], *added: str) -> str:
    tokenizer = word_tokenizer(words)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_of_the_same_size_with_another_tokenizer_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    policy, teacher = (tiny_qwen3(tmp_path / name, tied=False, seed=0) for name in ("policy", "teacher"))
    saved(teacher, [*string.ascii_letters, *string.digits])
    models = {"teacher": {"path": str(teacher)}}
    recipe = make_recipe(tmp_path / "run", policy, update={"terms": [{"term": "kl", "to": "teacher"}]}, models=models)
    with pytest.raises(
        InputError,
        match=r"models\.teacher\.path = '.*teacher' has another tokenizer than the policy at '.*policy': "
        r"token id 3 is 'a' there and '0' here, token id 4 is 'b' there and '1' here, token id 5 .* \(62 of 65 ids dif",
    ):
        train(recipe)
    assert not (tmp_path / "run").exists()


def test_the_first_ids_that_differ_are_named(tmp_path: Path):
    swapped = [*WORDS[:10], WORDS[11], WORDS[10], *WORDS[12:]]
    paths = saved(tmp_path / "other", swapped), saved(tmp_path / "policy", WORDS)
    with pytest.raises(InputError, match=r"token id 13 is 'l' there and 'k' here, token id 14 .* \(2 of 29 ids differ"):
        check_same_tokens("model.reference", *paths)


def test_equal_tokens_and_further_ids_of_one_model_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    policy = saved(tmp_path / "policy", WORDS)
    for other in (policy, saved(tmp_path / "equal", WORDS), saved(tmp_path / "more", WORDS, "<think>")):
        check_same_tokens("model.reference", other, policy)
    assert caplog.records == []


def test_a_renamed_added_token_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    policy, other = saved(tmp_path / "policy", WORDS, "<reserved_1>"), saved(tmp_path / "other", WORDS, "<think>")
    with caplog.at_level(logging.WARNING):
        check_same_tokens("model.reference", other, policy)
    assert "token id 29 is '<think>' there and '<reserved_1>' here (1 of 30 ids differ)" in caplog.text


def test_a_model_without_tokenizer_files_is_not_checked(tmp_path: Path):
    policy = saved(tmp_path / "policy", WORDS)
    bare = tiny_qwen3(tmp_path / "bare", tied=True, seed=0)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    check_same_tokens("models.teacher.path", str(bare), policy)
    check_same_tokens("models.teacher.path", policy, str(bare))
    check_same_tokens("models.teacher.path", "no/such-model-of-the-hub", policy)


def test_a_tokenizer_that_cannot_be_loaded_is_refused_with_its_key(tmp_path: Path):
    policy, broken = saved(tmp_path / "policy", WORDS), saved(tmp_path / "broken", WORDS)
    (tmp_path / "broken" / "tokenizer.json").write_text("no JSON")
    with pytest.raises(InputError, match=r"models\.teacher\.path = '.*broken': its tokenizer cannot be loaded"):
        check_same_tokens("models.teacher.path", broken, policy)
