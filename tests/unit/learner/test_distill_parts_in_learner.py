"""The learned gate and the term ``span`` in the real learner, against numbers computed without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.errors import MissingSignalError, RecipeError
from rlkl.learner.learner import Learner
from rlkl.learner.signals import check_heads
from rlkl.signals import Signal
from rlkl.updates.base import ModelShape
from rlkl.updates.distill.gate import OPEN_AT_START, Gate
from rlkl.updates.distill.rule import Distill
from rlkl.updates.settings import DistillSettings
from tests.builders import prepared_batch
from tests.models import tiny_qwen3
from tests.unit.learner.test_distill_in_learner import assert_goes_on_alike, learner_with, logprobs
from tests.unit.learner.test_learner import examples

GATE = {"kept_mass": 0.4, "gate_tokens": 3, "gate_temperature": 0.2}
SPAN = {"terms": [{"term": "span", "to": "teacher", "coef": 2.0}]}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: str(tiny_qwen3(folder / name, tied=False, seed=seed)) for seed, name in enumerate(("policy", "teacher"))
    }


def gate_of(learner: Learner) -> Gate:
    gate = learner._models.heads
    assert isinstance(gate, Gate)
    return gate


def with_random_gate(learner: Learner) -> Gate:
    gate = gate_of(learner)
    with torch.no_grad():
        gate.outer.weight.copy_(torch.randn(gate.outer.weight.shape, generator=torch.Generator().manual_seed(7)))
    return gate


@pytest.mark.parametrize("tokens", [8192, 20, 1])
def test_the_gate_reads_both_models_and_sets_the_window_however_the_step_is_cut(paths: dict[str, str], tokens: int):
    learner = learner_with(paths, GATE, micro_batch_tokens=tokens)
    gate = with_random_gate(learner)
    weights = {name: p.detach().clone() for name, p in gate.named_parameters()}
    record = learner.prepare(examples(), step=0)
    batch = prepared_batch(learner)
    record |= learner.step(0)
    at_BT, targets = batch.response_BT[:, 1:], batch.token_ids_BT[:, 1:]
    policy_NV, teacher_NV = (logprobs(paths[name], batch.token_ids_BT, 1.0)[at_BT] for name in ("policy", "teacher"))
    rows = [by_hand(weights, *row) for row in zip(policy_NV, teacher_NV, targets[at_BT].tolist(), strict=True)]
    for name, column in zip(("kl", "coverage", "window_tokens", "gate"), zip(*rows, strict=True), strict=True):
        assert record[f"distill/{name}"] == pytest.approx(sum(column) / len(column), rel=1e-3), name
    assert record["loss/distill"] == pytest.approx(record["distill/kl"])
    assert record["distill/coverage"] >= 0.4
    assert len({round(row[3], 3) for row in rows}) > 1, "one width for every token tests little"


def by_hand(weights: Mapping[str, Tensor], policy_V: Tensor, teacher_V: Tensor, target: int) -> tuple[float, ...]:
    """KL(policy || teacher), coverage, tokens and width at one token, one vocabulary entry after the other."""
    read = torch.cat([x_V.sort(descending=True).values[:3] for x_V in (teacher_V, policy_V)]).clamp(min=-20) / 10
    inner = torch.tanh(weights["inner.weight"] @ read + weights["inner.bias"])
    width = float(weights["outer.weight"][0] @ inner + weights["outer.bias"][0])
    p, q = policy_V.exp().tolist(), teacher_V.exp().tolist()
    before, gates = 0.0, {}
    for token in sorted(range(len(q)), key=lambda one: -q[one]):
        gates[token] = 1.0
        if before >= 0.4 and token != target:
            gates[token] = float(torch.sigmoid(torch.tensor((width - (before - 0.4) / 0.6) / 0.2)))
        before += q[token]
    parts = [(p[token] * gate, q[token] * gate) for token, gate in gates.items()]
    inside = [sum(part[number] for part in parts) for number in range(2)]
    parts.append((sum(p) - inside[0], sum(q) - inside[1]))
    nats = sum(a * float(torch.tensor(a / b).log()) for a, b in parts if a > 0)
    return nats, sum(b for _, b in parts[:-1]), sum(gates.values()), width


def test_gradients_of_policy_and_gate_do_not_depend_on_the_cut(paths: dict[str, str]):
    found = []
    for tokens in (8192, 20, 1):
        learner = learner_with(paths, {**GATE, **SPAN}, micro_batch_tokens=tokens, max_grad_norm=1e9)
        with_random_gate(learner)
        learner.prepare(examples(), step=0)
        learner.try_rows(torch.arange(prepared_batch(learner).size))
        found.append({n: p.grad.clone() for n, p in learner._optimization.trained.items() if p.grad is not None})
    assert any(name.startswith("heads.") and bool(slope.abs().sum() > 0) for name, slope in found[0].items())
    for other in found[1:]:
        for name, slope in found[0].items():
            torch.testing.assert_close(other[name], slope, rtol=1e-3, atol=1e-5, msg=name)


def test_the_gate_starts_half_open_learns_at_its_own_rate_and_narrows(paths: dict[str, str]):
    learner = learner_with(paths, {**GATE, "gate_lr_scale": 20.0}, lr=1e-3)
    groups = learner._optimization.optimizer.param_groups
    assert {group["lr_scale"] for group in groups} == {1.0, 20.0}
    records = [learner.prepare(examples(), step=step) | learner.step(step) for step in range(12)]
    assert records[0]["distill/gate"] == pytest.approx(OPEN_AT_START)
    assert records[-1]["distill/gate"] < OPEN_AT_START - 0.1
    assert records[-1]["distill/coverage"] >= 0.4


def test_a_gate_that_is_shut_is_kept_mass_alone(paths: dict[str, str]):
    learner, fixed = learner_with(paths, GATE), learner_with(paths, {"kept_mass": 0.4})
    with torch.no_grad():
        gate_of(learner).outer.bias.fill_(-1e3)
    ours, theirs = (one.prepare(examples(), step=0) | one.step(0) for one in (learner, fixed))
    for key in ("loss/distill", "distill/outside", "distill/coverage", "distill/window_tokens", "optim/grad_norm"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key


def test_a_gate_starts_alike_for_one_seed_alone(paths: dict[str, str]):
    settings = DistillSettings.model_validate(GATE)
    gates = [
        Gate(ModelShape(path=paths["policy"], hidden_size=64, layers=2, seed=seed), settings) for seed in (0, 0, 1)
    ]
    assert torch.equal(gates[0].inner.weight, gates[1].inner.weight)
    assert not torch.equal(gates[0].inner.weight, gates[2].inner.weight)
    with pytest.raises(MissingSignalError, match="run in the training pass only"):
        check_heads(NeedsTheStart(settings), gates[0])


class NeedsTheStart(Distill):
    @property
    def needs(self) -> frozenset[Signal]:
        return super().needs | {Signal.PROXIMAL_HEADS}


@pytest.mark.parametrize("update", [GATE, SPAN], ids=["gate", "span"])
def test_a_restored_learner_goes_on_alike(paths: dict[str, str], tmp_path: Path, update: dict[str, Any]):
    assert_goes_on_alike(paths, update, tmp_path)


@pytest.mark.parametrize("tokens", [8192, 20, 1])
@pytest.mark.parametrize("break_ids", [[], [3, 5, 8]], ids=["words", "breaks"])
def test_the_span_term_compares_neighbours_of_one_span(paths: dict[str, str], tokens: int, break_ids: list[int]):
    terms = [{"term": "span", "to": "teacher", "coef": 2.0, "break_ids": break_ids}]
    learner = learner_with(paths, {"terms": terms}, micro_batch_tokens=tokens, logits_chunk_tokens=6)
    record = learner.prepare(examples(), step=0)
    batch = prepared_batch(learner)
    record |= learner.step(0)
    p, q = (logprobs(paths[name], batch.token_ids_BT, 1.0).exp() for name in ("policy", "teacher"))
    # Ids 3 to 12 are digits and 13 to 64 letters in the tokenizer of the tiny models.
    inside = [i for i in range(p.shape[-1]) if (i not in break_ids if break_ids else 3 <= i <= 64)]
    total, pairs = 0.0, 0
    for row, ids in enumerate(batch.token_ids_BT.tolist()):
        for t in range(1, len(ids) - 1):
            if batch.response_BT[row, t : t + 2].all() and ids[t] in inside and ids[t + 1] in inside:
                difference_V = p[row, t - 1] * p[row, t] - q[row, t - 1] * q[row, t]
                total, pairs = total + float(difference_V.square().sum()), pairs + 1
    count = int(batch.response_BT.sum())
    assert 0 < pairs < count
    assert record["term/span_pairs"] == pytest.approx(pairs / count)
    assert record["term/span_distance"] == pytest.approx(total / count, rel=1e-3)
    assert record["loss/span"] == pytest.approx(2 * total / count, rel=1e-3)


def test_a_teacher_like_the_policy_gives_no_span_loss_and_no_gradient(paths: dict[str, str]):
    learner = learner_with({**paths, "teacher": paths["policy"]}, SPAN)
    record = learner.prepare(examples(), step=0) | learner.step(0)
    assert record["loss/span"] == pytest.approx(0.0, abs=1e-9)
    assert record["optim/grad_norm"] < 1e-5


def test_the_span_term_alone_brings_the_policy_nearer(paths: dict[str, str]):
    update = {"terms": [{"term": "span", "to": "teacher", "coef": 50.0}], "rule": "grpo", "kl_coef": 0.0}
    learner = learner_with(paths, update, lr=3e-3)
    records = [learner.prepare(examples(), step=step) | learner.step(step) for step in range(12)]
    assert records[-1]["term/span_distance"] < 0.7 * records[0]["term/span_distance"]


def test_a_frozen_model_runs_once_for_all_that_compare_with_it(paths: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """The gate, its divergence, the span term, and two KLs over other tokens each read the teacher."""
    terms = [
        *SPAN["terms"],
        {"term": "kl", "to": "teacher", "coef": 0.1},
        {"term": "kl", "to": "teacher", "top_k": 4, "coef": 0.1},
    ]
    learner = learner_with(paths, {**GATE, "terms": terms})
    teacher, passes = learner._models.frozen["teacher"], []
    hidden = teacher.hidden
    monkeypatch.setattr(teacher, "hidden", lambda *words: passes.append(1) or hidden(*words))
    learner.prepare(examples(), step=0)
    assert not passes
    learner.step(0)
    assert len(passes) == 1


def test_a_policy_without_a_tokenizer_needs_break_ids(paths: dict[str, str], tmp_path: Path):
    folder = tiny_qwen3(tmp_path / "bare", tied=False, seed=0)
    for file in folder.glob("*token*"):
        file.unlink()
    bare = {**paths, "policy": str(folder)}
    with pytest.raises(RecipeError, match="the term span finds words by the policy's tokenizer, and that of"):
        learner_with(bare, SPAN)
    learner_with(bare, {"terms": [{"term": "span", "to": "teacher", "break_ids": [3]}]})
