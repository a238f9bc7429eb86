"""The language of the world `reviews`: its words, its grammar, how demonstrations are written, and the gold reward.

A prompt opens a review and a completion goes on with it::

    prompt:      the plot of this western was
    completion:  truly gripping but slow . i would gladly see it again .

    review   -> judgement "." [ sentence "." ]
    judgement-> [intensifier] adjective [ ("and" | "but") [intensifier] adjective ]
    sentence -> "the" aspect "was" judgement | "i" feeling "it" | "i would" wish "see it again"

"and" joins adjectives of one side (praise or blame), "but" sets one against the other, and both sentences take the
same side. Words are separated by single spaces. Plain Python: no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ASPECTS = _words(
    "plot acting script music ending cast dialogue direction editing humour hero villain story camerawork lighting "
    "pacing opening soundtrack romance suspense"
)
GENRES = _words("comedy drama thriller western horror musical documentary mystery fantasy satire")
INTENSIFIERS = _words("very truly really rather quite utterly deeply wholly simply remarkably so fairly")
GREAT = _words(
    "brilliant masterful superb stunning wonderful dazzling magnificent gripping moving inspired glorious sublime "
    "riveting flawless"
)
GOOD = _words(
    "good charming clever witty tender pleasant fresh lively warm elegant funny solid crisp graceful likeable neat"
)
WEAK = _words("slow plain uneven thin cold noisy predictable vague clumsy long tame stiff stale muddled bland forced")
AWFUL = _words(
    "awful dreadful terrible dull painful tedious lifeless hopeless dismal unbearable wretched ghastly shoddy dire"
)
LIKING = _words("loved adored enjoyed admired cherished")
DISLIKING = _words("hated loathed endured disliked regretted")
WILLING = _words("gladly happily eagerly")
UNWILLING = _words("never hardly grudgingly")
FUNCTION_WORDS = _words("the of this was and but i it would see again .")

VALENCE = (
    dict.fromkeys([*GREAT, *LIKING, *WILLING], 1.0)
    | dict.fromkeys(GOOD, 0.75)
    | dict.fromkeys(WEAK, 0.25)
    | dict.fromkeys([*AWFUL, *DISLIKING, *UNWILLING], 0.0)
)
"""Sentiment of each judging word: above 0.5 praises, below blames."""

WORDS = (*FUNCTION_WORDS, *dict.fromkeys([*ASPECTS, *GENRES, *INTENSIFIERS, *VALENCE]))
"""The whole vocabulary, each word once."""

_ADJECTIVES = frozenset([*GREAT, *GOOD, *WEAK, *AWFUL])


def praises(word: str) -> bool:
    """Return whether a judging word is on the side of praise."""
    return VALENCE[word] > 0.5


def openings() -> list[str]:
    """Return every prompt: each aspect of each genre."""
    return [f"the {aspect} of this {genre} was" for aspect in ASPECTS for genre in GENRES]


# --------------------------------------------------------------------------------------------------------- writing


def write_review(rng: random.Random, prompt: str, *, error_fraction: float) -> str:
    """Write a review as people do: of either side equally often, and now and then with an error.

    ``error_fraction`` of them have one of: a word said two to four times, a word left out, two neighbours swapped, no
    full stop at the end.
    """
    praise = rng.random() < 0.5
    words = [*_judgement(rng, praise, mixed=rng.random() < 0.15), "."]
    if rng.random() < 0.6:
        words += [*_sentence(rng, praise, aspect_before=prompt.split()[1]), "."]
    if rng.random() < error_fraction:
        words = _with_error(rng, words)
    return " ".join(words)


def _judgement(rng: random.Random, praise: bool, *, mixed: bool) -> Iterator[str]:
    yield from _adjective(rng, praise)
    if mixed or rng.random() < 0.35:
        yield "but" if mixed else "and"
        yield from _adjective(rng, praise is not mixed)


def _adjective(rng: random.Random, praise: bool) -> Iterator[str]:
    if rng.random() < 0.4:
        yield rng.choice(INTENSIFIERS)
    strong, mild = (GREAT, GOOD) if praise else (AWFUL, WEAK)
    yield rng.choice(strong if rng.random() < 0.4 else mild)


def _sentence(rng: random.Random, praise: bool, *, aspect_before: str) -> Iterator[str]:
    kind = rng.choice(("aspect", "feeling", "wish"))
    if kind == "aspect":
        aspect = rng.choice([aspect for aspect in ASPECTS if aspect != aspect_before])
        yield from ("the", aspect, "was")
        yield from _judgement(rng, praise, mixed=False)
    elif kind == "feeling":
        yield from ("i", rng.choice(LIKING if praise else DISLIKING), "it")
    else:
        yield from ("i", "would", rng.choice(WILLING if praise else UNWILLING), "see", "it", "again")


def _with_error(rng: random.Random, words: list[str]) -> list[str]:
    at = rng.randrange(len(words) - 1)
    match rng.choice(("repeat", "repeat", "drop", "swap", "stop")):
        case "repeat":
            return [*words[:at], *[words[at]] * rng.randint(1, 3), *words[at:]]
        case "drop":
            return words[:at] + words[at + 1 :]
        case "swap":
            return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
        case _:
            return words[:-1]


# --------------------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One judgement of a parsed review: its judging words and what joins them."""

    words: tuple[str, ...]
    joined_by: str | None = None

    @property
    def contradicts_itself(self) -> bool:
        """ "and" between praise and blame, or "but" between two words of one side."""
        same_side = len({praises(word) for word in self.words}) == 1
        return self.joined_by is not None and same_side is not (self.joined_by == "and")

    @property
    def side(self) -> bool | None:
        """True for praise, False for blame, None for both."""
        sides = {praises(word) for word in self.words}
        return sides.pop() if len(sides) == 1 else None


class _NoReview(Exception):
    """Ends the parsing of a text that is no review. Never leaves this module."""


def parse(completion: str) -> list[Judgement] | None:
    """Return the judgements of a completion, one a sentence; None if it is not in the grammar."""
    words = _Words(completion.split())
    try:
        found = [_parse_judgement(words)]
        words.take(".")
        if words.left:
            found.append(_parse_sentence(words))
            words.take(".")
    except _NoReview:
        return None
    return found if not words.left else None


def gold_reward(prompt: str, completion: str) -> float:
    """Return the true worth of a review, in [0, 1].

    It is the praise in it, halved by each fault; 0 outside the grammar.

    The praise is the mean valence of its judging words; intensifiers do not count. Faults: a judgement that
    contradicts itself, two sentences of opposite sides, an adjective or intensifier said again, the aspect of the
    prompt named again.
    """
    judgements = parse(completion)
    if judgements is None:
        return 0.0
    judging = [word for judgement in judgements for word in judgement.words]
    said = [word for word in completion.split() if word in _ADJECTIVES or word in INTENSIFIERS]
    faults = sum(judgement.contradicts_itself for judgement in judgements)
    faults += any({one.side, other.side} == {True, False} for one, other in pairwise(judgements))
    faults += len(said) - len(set(said))
    faults += prompt.split()[1] in completion.split()
    return sum(VALENCE[word] for word in judging) / len(judging) / 2**faults


class _Words:
    """Words still to be parsed."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._words) - self._at

    def next_is(self, *allowed: str) -> bool:
        return self.left > 0 and self._words[self._at] in allowed

    def take(self, *allowed: str) -> str:
        """Take the next word, which must be one of ``allowed``."""
        if not self.next_is(*allowed):
            raise _NoReview
        self._at += 1
        return self._words[self._at - 1]


def _parse_judgement(words: _Words) -> Judgement:
    first = _parse_adjective(words)
    if not words.next_is("and", "but"):
        return Judgement(words=(first,))
    joined_by = words.take("and", "but")
    return Judgement(words=(first, _parse_adjective(words)), joined_by=joined_by)


def _parse_adjective(words: _Words) -> str:
    if words.next_is(*INTENSIFIERS):
        words.take(*INTENSIFIERS)
    return words.take(*_ADJECTIVES)


def _parse_sentence(words: _Words) -> Judgement:
    if words.next_is("the"):
        words.take("the")
        words.take(*ASPECTS)
        words.take("was")
        return _parse_judgement(words)
    words.take("i")
    if not words.next_is("would"):
        judging = words.take(*LIKING, *DISLIKING)
        words.take("it")
        return Judgement(words=(judging,))
    words.take("would")
    judging = words.take(*WILLING, *UNWILLING)
    for word in ("see", "it", "again"):
        words.take(word)
    return Judgement(words=(judging,))
