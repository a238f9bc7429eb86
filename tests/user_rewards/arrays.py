"""Rewards that return what numpy makes."""

import numpy as np


def numpy_scalar(completion):
    return np.float32(len(completion)) / np.float32(3)


def numpy_bool(completion, answer):
    return np.bool_(completion == answer)


def array_of_one(completion):
    return np.array([len(completion)])


def array_of_all(completions):
    return np.array([len(text) for text in completions])
