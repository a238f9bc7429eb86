"""Rewards that return what torch makes."""

import torch


def tensor(completion):
    return torch.tensor(float(len(completion)), requires_grad=True) * 2


def tensor_of_all(completions):
    return torch.tensor([len(text) for text in completions], dtype=torch.bfloat16)
