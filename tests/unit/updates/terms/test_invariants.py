"""Invariants of every built-in term: padding, the cut into micro-batches and ranks, the order of rows, NaN outside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.recipe.io import recipe_from
from rlkl.signals import Signal, Signals
from rlkl.updates.terms import build_terms
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.marginal_kl.term import MarginalKl
from tests.builders import make_batch

TERMS: dict[str, dict[str, Any]] = {
    "exact": {"term": "kl", "to": "teacher"},
    "reverse": {"term": "kl", "to": "teacher", "direction": "model_to_policy", "top_k": 4},
    "k1": {"term": "kl", "estimator": "k1"},
    "k2": {"term": "kl", "estimator": "k2"},
    "k3": {"term": "kl", "estimator": "k3"},
    "cauchy_schwarz": {"term": "kl", "estimator": "cauchy_schwarz"},
    "free nats": {"term": "kl", "free_nats": 1.2},
    "free nats of a sequence": {"term": "kl", "free_nats_per_sequence": 4.0},
    "masked": {"term": "masked_kl", "token_ids": [3, 5, 8]},
    "masked twice": {"term": "masked_kl", "token_ids": [3, 5, 8], "vocabulary_ids": [4, 6], "renormalise": False},
    "entropy": {"term": "entropy"},
    "consistency": {"term": "consistency"},
    "span": {"term": "span", "to": "teacher", "break_ids": [3, 8]},
    "rewording": {"term": "rewording", "column": "other"},
    "marginal": {"term": "marginal_kl", "token_ids": [3, 5, 8], "prior": [0.5, 0.25, 0.25]},
}
LENGTHS = (3, 1, 4, 2, 5)


def term_of(name: str) -> Term:
    recipe = recipe_from(
        {
            "model": {"path": "m"},
            "data": {"source": "d"},
            "models": {"teacher": {"path": "t"}},
            "update": {"rule": "grpo", "terms": [{**TERMS[name], "coef": 0.7}]},
        }
    )
    (term,) = build_terms(recipe.update.terms).values()
    if isinstance(term, MarginalKl):
        term.load_state({"mean_3": 0.1, "mean_5": 0.3, "mean_8": 0.6})
    return term


def batch_of(padding: int = 0) -> Batch:
    batch = make_batch(lengths=LENGTHS, rewards=[0.0] * 5, groups=[0, 0, 1, 1, 2], corrupted=[1, 4], padding=padding)
    ids_BT = torch.randint(1, 10, (5, 7), generator=torch.Generator().manual_seed(4))
    ids_BT = torch.nn.functional.pad(ids_BT, (0, padding))
    return replace(batch, token_ids_BT=ids_BT, weight_B=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0]))


def inputs(term: Term, batch: Batch) -> dict[Signal, Tensor]:
    """Random numbers between 1 and 2 for each signal at response tokens, NaN elsewhere."""
    found = {}
    for number, signal in enumerate(sorted(term.needs, key=lambda one: one.name)):
        x_BT = 1 + torch.rand((5, 7), generator=torch.Generator().manual_seed(number))
        x_BT = torch.nn.functional.pad(x_BT, (0, batch.token_ids_BT.shape[1] - 7))
        x_BT = torch.where(batch.response_BT, x_BT, torch.nan)
        if signal.tokens:
            x_BT = torch.stack([-x_BT * (1 + number) for number in range(len(signal.tokens))], dim=-1)
        found[signal] = x_BT.requires_grad_()
    return found


def run(term: Term, batch: Batch, values: dict[Signal, Tensor], parts: list[list[int]]) -> dict[str, Tensor]:
    """Sum loss, metrics and gradients over parts of the rows, as micro-batches and ranks do."""
    total: dict[str, Tensor] = {}
    for rows in parts:
        rows_B = torch.tensor(rows)
        part = batch.rows(rows_B)
        signals = Signals({s: x_BT[rows_B, : part.token_ids_BT.shape[1]] for s, x_BT in values.items()})
        loss = term.loss(part, part.signals.merged(signals))
        loss.backward()
        for key, value in {"loss": loss.detach(), **term.metrics(part, part.signals.merged(signals))}.items():
            total[key] = total.get(key, torch.zeros(())) + value
    for signal, x_BT in values.items():
        total[signal.name] = torch.zeros_like(x_BT) if x_BT.grad is None else x_BT.grad
    return total


@pytest.mark.parametrize("name", TERMS)
def test_a_term_depends_on_no_cut_no_padding_and_no_order(name: str):
    term, batch = term_of(name), batch_of()
    whole = run(term, batch, inputs(term, batch), [[0, 1, 2, 3, 4]])
    assert whole["loss"].isfinite()
    assert whole["loss"] != 0
    for parts in ([[0], [1], [2], [3], [4]], [[4, 1], [3, 0, 2]]):
        found = run(term, batch, inputs(term, batch), parts)
        for key, value in whole.items():
            torch.testing.assert_close(found[key], value, msg=f"{key} of {parts}")
    padded = run(term, batch_of(padding=3), inputs(term, batch_of(padding=3)), [[0, 1, 2, 3, 4]])
    for key, value in whole.items():
        torch.testing.assert_close(padded[key][:, :7] if value.ndim else padded[key], value)


@pytest.mark.parametrize("name", TERMS)
def test_nothing_outside_the_response_gets_a_gradient_and_sequences_of_no_weight_neither(name: str):
    term, batch = term_of(name), batch_of()
    values = inputs(term, batch)
    run(term, batch, values, [[0, 1, 2, 3, 4]])
    slopes = [x_BT.grad for x_BT in values.values() if x_BT.grad is not None]
    assert any(slope.abs().sum() > 0 for slope in slopes)
    for slope in slopes:
        assert slope[~batch.response_BT].abs().sum() == 0
        assert slope[4].abs().sum() == 0
