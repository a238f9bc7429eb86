"""Rewards with a mistake each, which has to be told so that it can be mended."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Verdict:
    score: float


def text(completion):
    return "1.0"


def yields(completion):
    yield 1.0


def list_for_one(completion):
    return [1.0]


def score_and_reason(completion):
    return 1.0, "because"


def a_dataclass(completion):
    return Verdict(1.0)


def many_numbers(completion):
    return np.array([1.0, 2.0])


def a_function(completion):
    return lambda: 1.0


def not_a_number(completion):
    return float("nan")


def too_large(completion):
    return 1e39


def too_few(completions):
    return []


def mean_of_all(completions):
    return [sum(map(len, completions)) / len(completions)]


def endless(completions):
    while True:
        yield 1.0


def column(completions):
    return np.ones((len(completions), 1))


def one_for_all(completions):
    return 1.0


def positional(*texts):
    return float(len(texts))


def first_only(completion, /):
    return 1.0


def other_names(solution_str, ground_truth):
    return 1.0


class NotCallable:
    def score(self, completion):
        return 1.0


def mixed(completion, completions):
    return 1.0
