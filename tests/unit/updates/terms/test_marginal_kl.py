"""The KL of the mean answer to a prior: by hand, against the whole batch at once, and in a learner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkl.batch import Batch
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.signals import Signals
from rlkl.updates.terms.marginal_kl.settings import MarginalKlSettings
from rlkl.updates.terms.marginal_kl.term import MarginalKl
from tests.builders import make_batch, prepared_batch
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import examples, recipe_for

IDS = [7, 9]


def batch_of() -> Batch:
    """Four sequences. The last of the tokens 7 and 9 is the second token of the first, and the first of two others."""
    batch = make_batch(lengths=[3, 1, 2, 2], rewards=[0.0] * 4, groups=[0, 1, 2, 3])
    ids_BT = torch.ones_like(batch.token_ids_BT)
    ids_BT[0, 2:5] = torch.tensor([7, 9, 1])
    ids_BT[1, 2] = 7
    ids_BT[2, 0] = 7  # of the prompt
    ids_BT[3, 2:4] = torch.tensor([9, 2])
    return replace(batch, token_ids_BT=ids_BT)


def term_of(**settings: object) -> MarginalKl:
    return MarginalKl(MarginalKlSettings.model_validate({"token_ids": IDS, "coef": 1.0, **settings}))


def signals_of(term: MarginalKl, batch: Batch, p_A: Tensor) -> Signals:
    """p: the probability of token 7 at the three answers; 0.5 at all other places, which must not count."""
    p_BT = torch.full(batch.response_BT.shape, 0.5)
    p_BT = p_BT.index_put((torch.tensor([0, 1, 3]), torch.tensor([3, 2, 2])), p_A)
    (signal,) = term.needs
    return Signals({signal: torch.stack([p_BT, 1 - p_BT], dim=-1).log()})


def test_by_hand():
    term, batch, p_A = term_of(), batch_of(), torch.tensor([0.9, 0.8, 0.7], requires_grad=True)
    signals = signals_of(term, batch, p_A)
    assert term.loss(batch, signals).item() == 0.0, "nothing is known before the first step"
    found = {key: value.item() for key, value in term.metrics(batch, signals).items()}
    assert found == pytest.approx({"answers": 3 / 4, "token_7": 2.4 / 4, "token_9": 0.6 / 4})

    term.observe({**found, "sequences": 4})
    assert term.state() == pytest.approx({"mean_7": 0.8, "mean_9": 0.2})
    loss = term.loss(batch, signals)
    loss.backward()

    def kl(p_A: Tensor) -> Tensor:
        m = p_A.mean()
        return m * (m / 0.5).log() + (1 - m) * ((1 - m) / 0.5).log()

    assert loss.item() == pytest.approx(3 / 4 * kl(p_A).item())
    (whole_A,) = torch.autograd.grad(kl(p_A), p_A)
    assert p_A.grad is not None
    assert p_A.grad.tolist() == pytest.approx((3 / 4 * whole_A).tolist()), "the gradient of the KL of the mean"


def test_a_prior_is_reached_and_the_mean_remembers_and_is_restored():
    term, resumed = (term_of(prior=[3.0, 1.0], memory=0.5) for _ in range(2))
    assert term.state() == {}
    resumed.load_state({})
    term.observe({"answers": 0.5, "token_7": 0.45, "token_9": 0.05})
    term.observe({"answers": 1.0, "token_7": 0.6, "token_9": 0.4})
    term.observe({"answers": 0.0, "token_7": 0.0, "token_9": 0.0})  # a step without an answer
    assert term.state() == pytest.approx({"mean_7": 0.75, "mean_9": 0.25})
    batch, p_A = batch_of(), torch.tensor([0.9, 0.8, 0.7], requires_grad=True)
    term.loss(batch, signals_of(term, batch, p_A)).backward()
    assert p_A.grad is not None
    assert p_A.grad.tolist() == pytest.approx([0.0] * 3, abs=1e-6), "the mean is the prior: no pull"
    resumed.load_state(term.state())
    assert resumed.state() == term.state()


def test_in_a_learner_answers_move_towards_the_prior_however_the_step_is_cut(tmp_path: Path):
    path = str(tiny_qwen3(tmp_path / "policy", tied=False, seed=0))
    tokens = sorted({token for e in examples() for token in e.rollout.completion.token_ids})[:3]
    term = {"term": "marginal_kl", "token_ids": tokens, "coef": 1.0, "prior": [8, 1, 1], "memory": 0.5}
    records = []
    for size in (4096, 8):
        recipe = recipe_for(
            path,
            update={"rule": "grpo", "terms": [term]},
            learner={"lr": 3e-3, "micro_batch_tokens": size, "track_reference_kl": False},
        )
        learner = Learner(LearnerSpec(recipe=recipe, model_path=path))
        found = []
        for step in range(6):
            found.append(learner.prepare(examples(reward_scale=0.0), step=step))
            batch = prepared_batch(learner)
            found[-1] |= learner.step(step)
        records.append(found)
    whole, cut = records
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    shares = [record[f"term/marginal_kl_token_{tokens[0]}"] / record["term/marginal_kl_answers"] for record in whole]
    assert shares[-1] > shares[0] + 0.02
    last_BT = batch.response_BT & torch.isin(batch.token_ids_BT, torch.tensor(tokens))
    last_BT &= last_BT.flip(1).cumsum(1).flip(1) == 1
    with torch.no_grad():
        logits_BTV = AutoModelForCausalLM.from_pretrained(path)(input_ids=batch.token_ids_BT).logits
    p_NK = logits_BTV[:, :-1][last_BT[:, 1:]][:, tokens].softmax(-1)
    assert shares[0] == pytest.approx(float(p_NK[:, 0].mean()), rel=1e-3)
