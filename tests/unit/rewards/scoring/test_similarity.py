"""METEOR similarity. Expected values: NLTK's formula by hand, with equal words only."""

from __future__ import annotations

import pytest

from rlkl.rewards.scoring import similarity
from rlkl.rewards.scoring.similarity import meteor, pair_similarity, sampled_similarity, similarity_of_all
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup


class CorpusWithoutData:
    """As NLTK's loader behaves where the corpus is not installed."""

    def ensure_loaded(self) -> None:
        raise LookupError("corpora/wordnet")


@pytest.fixture(autouse=True)
def _wordnet_is_absent(monkeypatch):
    """The same figures on a machine that has the corpus."""
    monkeypatch.setattr(similarity, "wordnet", CorpusWithoutData())
    similarity._matching.cache_clear()
    yield
    similarity._matching.cache_clear()


def group(prompt_id: str, *texts: str) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            sample_index=index,
            completion=Completion(token_ids=(), logprobs=(), finish_reason="stop", text=text),
            reward=0.0,
            components={},
            weights_version=0,
        )
        for index, text in enumerate(texts)
    )
    return RolloutGroup(prompt=Prompt(id=prompt_id, text="", token_ids=()), rollouts=rollouts)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a", "a", 0.5),
        ("a b c d", "a b c d", 1 - 0.5 / 4**3),
        ("a b c d", "a b c d e f g h", 0.901989),
        ("a b c d e f g h", "a b c d", 0.522204),
        ("a b c d", "d c b a", 0.5),
        ("a b c d", "a x c y", 0.25),
        ("a b", "c d", 0.0),
        ("a b", "", 0.0),
        ("", "", 0.0),
        ("running films", "runs film", 0.0),
        ("The Plot", "the plot", 1 - 0.5 / 2**3),
    ],
)
def test_meteor_with_equal_words_only(reference, hypothesis, expected):
    assert meteor(reference, hypothesis) == pytest.approx(expected, abs=1e-6)


def test_a_pair_is_compared_in_both_directions():
    assert pair_similarity("a b c d", "a b c d e f g h") == pytest.approx(0.712097, abs=1e-6)
    assert pair_similarity("a b c d e f g h", "a b c d") == pair_similarity("a b c d", "a b c d e f g h")


def test_all_ordered_pairs_are_averaged():
    assert similarity_of_all(["a b", "a b", "c d"]) == pytest.approx((1 - 0.5 / 8) / 3)
    assert similarity_of_all(["a b"]) is None
    assert similarity_of_all([]) is None


def test_one_text_for_all_prompts_is_seen_and_silence_is_not():
    template = "thank you for asking i am happy to help"
    collapsed = [group(str(number), template, template) for number in range(4)]
    silent = [group(str(number), "", "") for number in range(4)]
    assert sampled_similarity(collapsed, pairs=16, seed=0) == pytest.approx(1 - 0.5 / 9**3)
    assert sampled_similarity(collapsed, pairs=16, seed=0) > 0.999  # pyright: ignore[reportOptionalOperand]
    assert sampled_similarity(silent, pairs=16, seed=0) == 0.0


def test_pairs_never_come_from_one_prompt():
    """Within a prompt all completions agree, between prompts none do, so any pair of one prompt would show."""
    groups = [group("first", "a b c", "a b c"), group("second", "d e f", "d e f"), group("first", "a b c")]
    assert sampled_similarity(groups, pairs=200, seed=1) == 0.0
    assert sampled_similarity([groups[0], groups[2]], pairs=4, seed=1) is None
    assert sampled_similarity([], pairs=4, seed=1) is None


def test_the_draw_depends_on_the_seed_alone_and_nears_the_mean_over_all_pairs():
    texts = ["a b", "a c", "a d", "e f", "a b"]
    groups = [group(str(number), text) for number, text in enumerate(texts)]
    assert sampled_similarity(groups, pairs=8, seed=3) == sampled_similarity(groups, pairs=8, seed=3)
    assert len({sampled_similarity(groups, pairs=8, seed=seed) for seed in range(5)}) > 1
    assert sampled_similarity(groups, pairs=4000, seed=0) == pytest.approx(similarity_of_all(texts), abs=0.02)


def test_with_wordnet_stems_and_synonyms_match(monkeypatch):
    class Synset:
        def lemmas(self):
            return [self]

        def name(self):
            return "flick"

    class Corpus:
        def ensure_loaded(self):
            pass

        def synsets(self, word):
            return [Synset()] if word == "film" else []

    monkeypatch.setattr(similarity, "wordnet", Corpus())
    similarity._matching.cache_clear()
    assert meteor("running", "runs") == 0.5
    assert meteor("flick", "film") == 0.5
    assert meteor("flick", "book") == 0.0
