"""Reward models: a text's score has nothing to do with the texts beside it."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from reward_models import SequenceClassifier
from rlkl.errors import RewardError, RewardInputError
from rlkl.tasks.characters import (
    CHARACTER_VOCABULARY,
    EOS,
    EOS_ID,
    PAD,
    PAD_ID,
    character_tokenizer,
    small_qwen3_config,
)
from tests.chat_tokenizers import TURN_ENDS, chat_tokenizer

TEXTS = ["a", "hello there", "x" * 60, "", "The same.", "the end" + EOS, PAD, "12 + 12 = 24", "q" * 33, "zz"]
TOLERANCE = 1e-5
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def qwen3(labels: int, **changes: Any) -> Any:
    config = small_qwen3_config(tied=False)
    config.num_labels = labels
    for name, value in changes.items():
        setattr(config, name, value)
    return Qwen3ForSequenceClassification(config)


def bert(labels: int) -> Any:
    config = BertConfig(
        vocab_size=CHARACTER_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    config.num_labels = labels
    return BertForSequenceClassification(config)


def gpt2(labels: int) -> Any:
    """Absolute positions, and no padding token."""
    config = GPT2Config(vocab_size=CHARACTER_VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=2)
    config.num_labels = labels
    return GPT2ForSequenceClassification(config)


MODELS: dict[str, Callable[[int], Any]] = {
    "qwen3": qwen3,
    "qwen3 without padding token": lambda labels: qwen3(labels, pad_token_id=None),
    "bert": bert,
    "gpt2": gpt2,
}


def save(folder: Path, model: Any, *, side: str = "right", pad: bool = True, template: str | None = None) -> str:
    """Random weights, large enough that scores differ, and a tokenizer of one token a character."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer = character_tokenizer()
    tokenizer.padding_side = side
    if not pad:
        tokenizer.pad_token = None
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def alone(path: str, texts: list[str]) -> list[float]:
    """Scores by transformers itself, one text at a time, without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        return [model(input_ids=row).logits[0, 0].item() for row in ids]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_scores_do_not_depend_on_the_batch(tmp_path, kind, side, pad):
    path = save(tmp_path, MODELS[kind](1), side=side, pad=pad)
    reward = SequenceClassifier(path=path, text="completion", batch_size=4)
    reward.setup()
    expected = [reward(completions=[text])[0] for text in TEXTS]
    assert max(expected) - min(expected) > 100 * TOLERANCE, "a model that tells texts apart"
    whole = [text for text in TEXTS if text]
    assert [score for text, score in zip(TEXTS, expected, strict=True) if text] == pytest.approx(
        alone(path, whole), abs=TOLERANCE
    )
    rng = random.Random(0)
    for _ in range(5):
        order = rng.choices(range(len(TEXTS)), k=rng.randint(1, 12))
        scores = reward(completions=[TEXTS[index] for index in order])
        assert scores == pytest.approx([expected[index] for index in order], abs=TOLERANCE)


def test_the_model_is_as_it_was_after_scoring(tmp_path):
    reward = SequenceClassifier(path=save(tmp_path, qwen3(1, pad_token_id=None)), text="completion")
    reward(completions=["a", "bcd"])
    assert reward._loaded is not None
    assert reward._loaded._model.config.pad_token_id is None


def test_which_label_and_what_of_it(tmp_path):
    model = qwen3(3, id2label={0: "bad", 1: "fine", 2: "good"}, label2id={"bad": 0, "fine": 1, "good": 2})
    path = save(tmp_path, model)

    def scores(**settings: Any) -> list[float]:
        return SequenceClassifier(path=path, text="completion", **settings)(completions=["abc", "de"])

    logits = [scores(label=number) for number in range(3)]
    assert scores(label="good") == logits[2]
    odds = torch.tensor(logits).softmax(dim=0)
    assert scores(label="fine", output="probability") == pytest.approx(odds[1].tolist(), abs=TOLERANCE)
    with pytest.raises(RewardInputError, match=r"'label' is None; expected one of the model's 3 labels: 0 \(bad\)"):
        scores()
    with pytest.raises(RewardInputError, match="did you mean 'good'"):
        scores(label="god")
    with pytest.raises(RewardInputError, match="'label' is 3; expected one of the model's labels"):
        scores(label=3)


def test_one_logit_as_a_probability(tmp_path):
    path = save(tmp_path, qwen3(1))
    logit = SequenceClassifier(path=path, text="completion")(completions=["abc"])[0]
    probability = SequenceClassifier(path=path, text="completion", output="probability")(completions=["abc"])[0]
    assert probability == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=TOLERANCE)


def test_where_the_prompt_comes_from(tmp_path):
    path = save(tmp_path, qwen3(1), template=TEMPLATE)
    plain = SequenceClassifier(path=path, text="completion")
    joined = SequenceClassifier(path=path)
    assert joined(prompts=["1+1="], completions=["2"]) == pytest.approx(plain(completions=["1+1=2"]), abs=TOLERANCE)
    chat = SequenceClassifier(path=path, text="chat", prompt_column="question")
    expected = plain(completions=["<user>1+1=<assistant>2"])
    assert chat(question=["1+1="], completions=["2"]) == pytest.approx(expected, abs=TOLERANCE)
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    expected = plain(completions=["<system>s<user>u<assistant>2"])
    assert chat(question=[turns], completions=["2"]) == pytest.approx(expected, abs=TOLERANCE)
    with pytest.raises(RewardError, match="a prompt is 3; expected text, or a list of messages"):
        chat(question=[3], completions=["2"])


def test_a_model_that_says_so_reads_prompt_answer_and_end(tmp_path):
    model = qwen3(1, rlkl_text="sampled")
    path = save(tmp_path, model)
    ids = [*character_tokenizer().encode("1+1="), *character_tokenizer().encode("2"), EOS_ID]
    with torch.inference_mode():
        expected = model.eval()(input_ids=torch.tensor([ids])).logits.item()
    score = SequenceClassifier(path=path)(prompts=["1+1="], completions=["2"])[0]
    assert score == pytest.approx(expected, abs=TOLERANCE)
    ended = SequenceClassifier(path=path)(prompts=["1+1=" + EOS], completions=["2" + EOS])[0]
    assert ended == pytest.approx(expected, abs=TOLERANCE)
    joined = SequenceClassifier(path=path, text="prompt_completion")(prompts=["1+1="], completions=["2"])[0]
    assert joined != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["gemma", "phi3", "qwen3"])
def test_a_completion_of_a_chat_ends_as_the_trained_answers_did(tmp_path, family):
    tokenizer = chat_tokenizer(family)
    end = tokenizer.convert_tokens_to_ids(TURN_ENDS[family])
    config = small_qwen3_config(tied=False, vocabulary=len(tokenizer))
    config.num_labels = 1
    config.rlkl_text = "sampled"
    config.rlkl_chat_template_kwargs = {"enable_thinking": False}
    model = Qwen3ForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    turns = [{"role": "user", "content": "name a colour"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    ids = [*tokenizer.encode(prompt, add_special_tokens=False), *tokenizer.encode("blue"), end]
    with torch.inference_mode():
        expected = model.eval()(input_ids=torch.tensor([ids])).logits.item()
    for form in (prompt, turns):
        score = SequenceClassifier(path=str(tmp_path))(prompts=[form], completions=["blue"])[0]
        assert score == pytest.approx(expected, abs=TOLERANCE)


def test_texts_that_are_too_long(tmp_path):
    path = save(tmp_path, bert(1))
    text = "ab" * 100

    def score(text: str, **settings: Any) -> float:
        return SequenceClassifier(path=path, text="completion", **settings)(completions=[text, "other"])[0]

    with pytest.raises(RewardError, match="a text has 200 tokens, the model takes 128"):
        score(text)
    assert score(text, truncate="left") == pytest.approx(score(text[-128:]), abs=TOLERANCE)
    assert score("z" + text, truncate="right", max_tokens=9) == pytest.approx(score("zabababab"), abs=TOLERANCE)
    with pytest.raises(RewardInputError, match="'max_tokens' is 129; expected at most the model's 128 positions"):
        score(text, max_tokens=129)


def test_a_model_without_a_score_head_is_refused(tmp_path):
    model = Qwen3ForCausalLM(small_qwen3_config(tied=False))
    path = save(tmp_path, model)
    with pytest.raises(RewardInputError, match=r"Its weights lack score\.weight, so scores would be random"):
        SequenceClassifier(path=path).setup()


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(RewardInputError, match=r"'path' is .*expected an existing folder"):
        SequenceClassifier(path=str(tmp_path / "nowhere")).setup()
    with pytest.raises(RewardInputError, match="expected a folder with a model and its tokenizer"):
        SequenceClassifier(path=str(tmp_path)).setup()
    with pytest.raises(RewardInputError, match="has no chat template"):
        SequenceClassifier(path=save(tmp_path / "model", qwen3(1)), text="chat").setup()


def test_it_is_picklable_and_close_lets_go(tmp_path):
    reward = SequenceClassifier(path=save(tmp_path, qwen3(1)), text="completion")
    first = reward(completions=["abc"])
    again = pickle.loads(pickle.dumps(reward))
    assert again._loaded is None
    assert again(completions=["abc"]) == first
    again.close()
    assert again._loaded is None


def test_the_padding_token_of_the_model_is_the_one_that_counts(tmp_path):
    """A text may end in what the tokenizer pads with; only the model's own padding token is skipped."""
    model = qwen3(1, pad_token_id=PAD_ID + 5)
    reward = SequenceClassifier(path=save(tmp_path, model), text="completion")
    assert reward(completions=["ab" + PAD])[0] != pytest.approx(reward(completions=["ab"])[0], abs=100 * TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        {"text": "answer"},
        {"batch_size": 0},
        {"dtype": "int8"},
        {"text": "completion", "prompt_column": "a"},
        {"label": 1.5},
    ],
)
def test_wrong_settings(settings):
    with pytest.raises(RewardInputError, match="SequenceClassifier: setting"):
        SequenceClassifier(path="/models/reward", **settings)
