"""Sentiment by counting words: quick, transparent, and easily fooled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reward_models.settings import check_choice, check_flags, is_text_list, refuse, takes, text_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


POSITIVE = _words(
    """
    admirable adorable amazing amusing appealing astonishing awesome beautiful beautifully beloved best better
    brilliant brilliantly captivating charm charming cheerful clever comfortable compelling cool delicious
    delight delighted delightful easy effective elegant engaging enjoy enjoyable enjoyed enjoying enjoys
    entertaining enthralling excellent exceptional excited exciting exquisite fabulous fantastic fascinating
    favorite favourite fine flawless fresh friendly fun funny generous gentle genuine glad good gorgeous
    graceful gracious grateful great greatest gripping happily happy helpful hilarious honest hopeful impressed
    impressive incredible inspired inspiring inventive joy joyful kind kindly laughed likable liked lovable love
    loved lovely loves loving magnificent marvellous marvelous masterful masterpiece memorable moving neat nice
    nicely original outstanding peaceful perfect perfection perfectly phenomenal playful pleasant pleased
    pleasing pleasure polished powerful praise precious recommend recommended refreshing reliable remarkable
    rewarding rich satisfied satisfying sincere smart smooth solid sparkling spectacular splendid strong
    stunning stylish sublime succeeds success successful superb superior surprising sweet talented tender
    terrific thankful thoughtful thrilled thrilling touching treasure triumph vivid warm warmth welcome wise
    witty wonderful wonderfully worth worthwhile worthy
    """
)
NEGATIVE = _words(
    """
    abysmal afraid aggressive agony angry annoyed annoying appalling arrogant ashamed atrocious awful awfully
    awkward bad badly bland bored boredom boring broken careless cheap cheesy cliche cliched clumsy cold
    confused confusing contrived crude cruel cynical damaged dead depressing derivative despicable dirty
    disappoint disappointed disappointing disappointment disappoints disaster disgusting dislike disliked dismal
    dreadful dreary dull dumb embarrassing empty error evil exhausting fail failed fails failure fake fear flat
    flawed foolish forced forgettable fraud frustrated frustrating generic grim gross harsh hate hated hateful
    hates hideous hollow hopeless horrible horribly horrid horror hostile hurt idiotic ignorant inane incoherent
    inept inferior insipid insult insulting irritating lame lazy lifeless lose loses losing lost ludicrous
    mediocre mess messy mindless miserable misery monotonous nasty negative nonsense offensive overlong
    overrated pain painful painfully pathetic pointless poor poorly predictable pretentious problem problems
    regret repetitive repulsive ridiculous rotten rude ruin ruined ruins sad sadly shallow shameful shoddy silly
    sloppy slow sorry stale stupid suck sucked sucks tasteless tedious terrible terribly tired tiresome trash
    trite ugly unbearable unconvincing uneven unfunny unhappy uninspired unnecessary unpleasant unwatchable
    upset useless vile violent waste wasted weak weird worse worst worthless wreck wrong
    """
)
NEGATIONS = _words(
    "not no never none nobody nothing neither nor without hardly barely cannot can't don't doesn't didn't isn't aren't "
    "wasn't weren't won't wouldn't couldn't shouldn't ain't"
)
STRENGTHENING = _words("very really extremely absolutely incredibly truly so too utterly totally highly deeply")
REACH = 3
"""Number of words before a word of sentiment that may turn it around or strengthen it."""
STRENGTHENED = 1.5

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_CLAUSE_END = re.compile(r"[.,;:!?()\n]")


@dataclass(kw_only=True, eq=False)
class SentimentLexicon:
    """Scores how positive the English words of a completion are, in [-1, 1]; 0 if none is in the lexicon.

    A word of the lists counts 1 (1.5 after "very" and its like); within three words after a negation of the same clause
    it counts for the other side. ``balance`` is (positive - negative) / (positive + negative + 1), ``density`` is
    (positive - negative) / words, not below -1 nor above 1. A policy maximises either by repeating praise: use it to
    try things out, or as a monitor, and read it beside the length and similarity curves.
    """

    score: str = "balance"
    distinct: bool = False
    """Whether each word counts once, however often it comes."""
    positive: Sequence[str] = ()
    """Further positive words, in lower case."""
    negative: Sequence[str] = ()
    """Further negative words; those of either list leave the other."""
    _values: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice(self, "score", ("balance", "density"))
        check_flags(self, "distinct")
        for setting in ("positive", "negative"):
            words = getattr(self, setting)
            if not is_text_list(words) or not all(_WORD.fullmatch(word) for word in words):
                raise refuse(self, setting, "a list of words in lower case letters")
        if set(self.positive) & set(self.negative):
            raise refuse(self, "positive", "no word that is in 'negative' too")
        known = {**dict.fromkeys(POSITIVE, 1), **dict.fromkeys(NEGATIVE, -1)}
        self._values = {**known, **dict.fromkeys(self.positive, 1), **dict.fromkeys(self.negative, -1)}
        self.__signature__ = takes("completion")

    def __call__(self, *, completion: str) -> float:
        text = text_of(self, "completion", completion).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        clauses = [_WORD.findall(clause) for clause in _CLAUSE_END.split(text)]
        values = self._distinct(clauses) if self.distinct else [value for _, value in self._valued(clauses)]
        positive = sum(value for value in values if value > 0)
        negative = -sum(value for value in values if value < 0)
        if self.score == "balance":
            return (positive - negative) / (positive + negative + 1)
        words = sum(len(clause) for clause in clauses)
        return max(-1.0, min(1.0, (positive - negative) / words)) if words else 0.0

    def _distinct(self, clauses: Iterable[list[str]]) -> list[float]:
        """Return the first value of each word."""
        first: dict[str, float] = {}
        for word, value in self._valued(clauses):
            first.setdefault(word, value)
        return list(first.values())

    def _valued(self, clauses: Iterable[list[str]]) -> Iterable[tuple[str, float]]:
        for words in clauses:
            for place, word in enumerate(words):
                if word not in self._values:
                    continue
                before = words[max(0, place - REACH) : place]
                value = self._values[word] * (STRENGTHENED if STRENGTHENING.intersection(before) else 1.0)
                yield word, -value if NEGATIONS.intersection(before) else value
