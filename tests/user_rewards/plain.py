"""Rewards without any import of rlkl, as users write them on the first day."""

import functools
import random
import re
from decimal import Decimal

calls = 0
NUMBER = re.compile(r"-?\d+")


def length(completion):
    return len(completion)


def boolean(completion, answer):
    return completion.strip() == answer


def decimal(completion):
    return Decimal(len(completion)) / 4


def regex(completion, answer):
    found = NUMBER.findall(completion)
    return 1.0 if found and found[-1] == answer else 0.0


def prints(completion):
    print("scoring", repr(completion), flush=True)
    return 1.0


def keeps_a_global(completion):
    global calls
    calls += 1
    return float(calls > 0)


@functools.lru_cache(maxsize=None)  # noqa: UP033
def cached(completion, answer):
    return float(len(completion) - len(answer))


def global_random(completion):
    return random.random() + random.randint(1, 3)


def abstains(completion):
    """None for what is too short to tell."""
    if len(completion) > 2:
        return float(len(completion))


def named_parts(completion, answer):
    return {"right": completion == answer, "short": len(completion) < 3}


def like_trl(prompts, completions, **kwargs):
    return [float(len(text)) for text in completions]


def generates(completions, answer):
    for text, right in zip(completions, answer):  # noqa: B905
        yield float(text == right)


def maps(completions):
    return map(len, completions)


def first_of_group(group):
    return [float(text == group.completions[0]) for text in group.completions]


def keyword_only(*, completion, bonus=2.0):
    return bonus * len(completion)


def raises_on_some(completion):
    return 1 / (len(completion) - 3)
