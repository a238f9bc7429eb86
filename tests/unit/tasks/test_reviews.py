"""The world of reviews: language, gold reward, preferences, proxy, base model."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks.characters import EOS_ID, PAD_ID, word_tokenizer
from rlkl.tasks.reviews import REWARD_MODEL, Reviews
from rlkl.tasks.reviews_language import (
    ASPECTS,
    GENRES,
    VALENCE,
    WORDS,
    gold_reward,
    openings,
    parse,
    praises,
    write_review,
)
from rlkl.tasks.reviews_preferences import impression, preference

ensure_torch_extras()

PROMPT = "the plot of this western was"


def reviews(count: int, *, error_fraction: float, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    prompts = rng.choices(openings(), k=count)
    return [(prompt, write_review(rng, prompt, error_fraction=error_fraction)) for prompt in prompts]


def test_openings_are_all_aspects_of_all_genres():
    assert len(set(openings())) == len(ASPECTS) * len(GENRES) == 200
    assert PROMPT in openings()


def test_each_word_is_in_the_vocabulary_once():
    assert len(set(WORDS)) == len(WORDS)
    assert {
        word for prompt, review in reviews(500, error_fraction=0.5) for word in f"{prompt} {review}".split()
    } <= set(WORDS)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("brilliant .", 1.0),
        ("good .", 0.75),
        ("very good .", 0.75),
        ("slow .", 0.25),
        ("awful .", 0.0),
        ("brilliant and good .", 0.875),
        ("brilliant but slow .", 0.625),
        ("good . i adored it .", 0.875),
        ("good . i would gladly see it again .", 0.875),
        ("good . the music was truly superb and very moving .", 2.75 / 3),
        ("brilliant and slow .", 0.625 / 2),  # "and" between praise and blame
        ("brilliant but good .", 0.875 / 2),  # "but" between two words of praise
        ("brilliant . i hated it .", 0.5 / 2),  # sentences of opposite sides
        ("brilliant but slow . i hated it .", 1.25 / 3),  # a mixed judgement contradicts neither side
        ("brilliant and brilliant .", 1.0 / 2),  # an adjective said again
        ("very good and very superb .", 0.875 / 2),  # an intensifier said again
        ("superb . the plot was brilliant .", 1.0 / 2),  # the prompt's own aspect again
        ("very good and very good . the plot was very good .", 0.75 / 2**5),
    ],
)
def test_gold_reward_is_mean_valence_halved_by_each_fault(completion, expected):
    assert gold_reward(PROMPT, completion) == pytest.approx(expected)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        ".",
        "brilliant",
        "brilliant brilliant .",
        "brilliant . .",
        "very .",
        "brilliant and .",
        "very very good .",
        "good . i adored .",
        "good . i would adored it .",
        "good . the brilliant was good .",
        "good . i adored it . i adored it .",
        "good . adored it .",
        "the music was good .",
        "good , superb .",
        "Good .",
    ],
)
def test_what_is_not_in_the_grammar_is_worth_nothing(completion):
    assert parse(completion) is None
    assert gold_reward(PROMPT, completion) == 0.0


def test_reviews_without_errors_parse_without_fault_of_side_and_fit_into_sixteen_tokens():
    written = reviews(2000, error_fraction=0.0)
    assert all(parse(review) is not None for _, review in written)
    assert max(len(review.split()) for _, review in written) == 15
    assert not any(judgement.contradicts_itself for _, review in written for judgement in parse(review) or [])
    praise = fmean(fmean(praises(word) for word in review.split() if word in VALENCE) for _, review in written)
    assert praise == pytest.approx(0.5, abs=0.03)


def test_errors_come_at_their_rate():
    broken = fmean(parse(review) is None for _, review in reviews(4000, error_fraction=0.5))
    assert 0.4 < broken <= 0.5  # few errors leave a sentence of the grammar, such as a dropped intensifier


def test_skimmers_count_words_whatever_the_grammar():
    assert impression("truly brilliant and clever .") == 2.5
    assert impression("brilliant brilliant brilliant") == 3.0
    assert impression("awful . i hated it .") == -2.0
    assert impression("very very") == 1.0
    assert impression("") == 0.0


def test_annotators_prefer_by_impression_or_by_gold():
    babble, sentence = "brilliant brilliant very very good", "good ."

    def share_of_babble(careful_fraction: float) -> float:
        rng = random.Random(0)
        rows = [preference(rng, PROMPT, (babble, sentence), careful_fraction=careful_fraction) for _ in range(2000)]
        return fmean(row["chosen"] == babble for row in rows)

    assert share_of_babble(0.0) == pytest.approx(0.9526, abs=0.02)  # sigmoid(4 - 1)
    assert share_of_babble(1.0) == pytest.approx(0.0025, abs=0.005)  # sigmoid(8 x (0 - 0.75))


def test_preference_rows_carry_their_gold_and_are_the_same_each_time():
    rows = Reviews(pairs=300).preference_rows()
    assert rows == Reviews(pairs=300).preference_rows()
    assert rows != Reviews(pairs=300, seed=1).preference_rows()
    assert [row["id"] for row in rows[:2]] == ["pair-0", "pair-1"]
    for row in rows:
        assert row["chosen_gold"] == gold_reward(row["prompt"], row["chosen"])
        assert row["rejected_gold"] == gold_reward(row["prompt"], row["rejected"])
    better = fmean(row["chosen_gold"] - row["rejected_gold"] for row in rows)
    assert better > 0.1


def test_the_reward_model_ignores_padding():
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from rlkl.tasks.reviews_reward_model import ReviewRewardModel, encode, score

    torch.manual_seed(0)
    model = ReviewRewardModel()
    torch.nn.init.normal_(model.context_value.weight)
    texts = ["", "good .", "truly brilliant and clever . i adored it .", "word-from-elsewhere"]
    ids_BT = pad_sequence([encode(text) for text in texts], batch_first=True)
    alone_B = torch.tensor([score(model, text) for text in texts])
    assert len(set(alone_B.tolist())) == 4
    torch.testing.assert_close(model(ids_BT), alone_B)
    torch.testing.assert_close(model(torch.nn.functional.pad(ids_BT, (0, 7))), alone_B)


def test_the_reward_model_agrees_with_annotators_and_can_be_hacked(tmp_path):
    import torch

    from rlkl.tasks.reviews_reward_model import load_reward_model, save_reward_model, score, teach_reward_model

    torch.manual_seed(0)
    rows = Reviews(pairs=4096).preference_rows()
    model = teach_reward_model(rows, epochs=3, batch_size=64, lr=3e-3)
    unseen = Reviews(pairs=300, seed=1).preference_rows()
    assert fmean(score(model, row["chosen"]) > score(model, row["rejected"]) for row in unseen) > 0.7
    scores = [score(model, row[column]) for row in rows for column in ("chosen", "rejected")]
    assert fmean(scores) == pytest.approx(0.0, abs=1e-3)
    best = "truly brilliant and very moving . i adored it ."
    babble = " ".join(["brilliant"] * 15)
    assert gold_reward(PROMPT, best) == 1.0
    assert gold_reward(PROMPT, babble) == 0.0
    assert score(model, babble) > score(model, best) + 0.5 > score(model, "awful .") + 2
    save_reward_model(model, tmp_path / "saved")
    assert score(load_reward_model(tmp_path / "saved"), best) == score(model, best)


def test_word_tokenizer_joins_words_with_spaces():
    tokenizer = word_tokenizer(WORDS)
    text = f"{PROMPT} truly brilliant ."
    ids = tokenizer.encode(text)
    assert len(ids) == 9
    assert tokenizer.decode([*ids, EOS_ID], skip_special_tokens=True) == text
    assert tokenizer.encode("brilliant.") == [tokenizer.unk_token_id]
    assert len(tokenizer) == 3 + len(WORDS)


def test_demonstrations_are_prompt_review_and_end():
    tokenizer = word_tokenizer(WORDS)
    (ids_BT, lengths_B), _ = Reviews(steps=2, batch_size=16)._demonstrations(tokenizer)
    assert lengths_B.tolist() == [6] * 16
    for row in ids_BT.tolist():
        ended = row[: row.index(EOS_ID)]
        assert tokenizer.decode(ended[:6]) in openings()
        assert len(ended) > 6
        assert tokenizer.unk_token_id not in ended
        assert set(row[len(ended) + 1 :]) <= {PAD_ID}


def test_building_gives_a_model_a_tokenizer_and_the_proxy_the_same_each_time(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world = Reviews(steps=2, batch_size=8, pairs=64)
    torch.manual_seed(3)
    expected_draw = torch.rand(4)
    torch.manual_seed(3)
    world.build_base_model(tmp_path / "first")
    assert torch.equal(torch.rand(4), expected_draw)
    world.build_base_model(tmp_path / "second")
    for file in ("model.safetensors", f"{REWARD_MODEL}/model.safetensors"):
        first, second = (load_file(tmp_path / name / file) for name in ("first", "second"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert model.config.vocab_size == len(tokenizer) == 3 + len(WORDS)
    assert tokenizer.encode(PROMPT) == word_tokenizer(WORDS).encode(PROMPT)
    assert [file.name for file in (tmp_path / "first").glob("*.safetensors")] == ["model.safetensors"]


def test_the_proxy_is_built_with_the_base_model_and_read_from_the_cache(tmp_path, monkeypatch):
    from rlkl.tasks.reviews_reward_model import load_reward_model, score

    monkeypatch.setenv("RLKL_CACHE", str(tmp_path))
    world = Reviews(steps=1, batch_size=4, pairs=64)
    value = world.reward("truly brilliant .")
    (folder,) = (tmp_path / "base_models").iterdir()
    assert value == score(load_reward_model(folder / REWARD_MODEL), "truly brilliant .")
    assert world.further_rewards()["gold"](PROMPT, "brilliant .") == 1.0
