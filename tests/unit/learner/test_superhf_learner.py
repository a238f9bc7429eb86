"""SuperHF and exact KLs on a real model: against transformers, under LoRA, with and without a reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rlkl.learner.learner import Learner
from rlkl.models.policy import AdapterOff
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, examples, train, weights

LORA = {"lora": {"rank": 2}}
SUPERHF = {"rule": "superhf", "kl_coef": 0.5}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0))


def superhf(model_path: str, *, update: dict | None = None, model: dict | None = None, **learner: object) -> Learner:
    return build(model_path, update=SUPERHF | (update or {}), model=model or {}, learner=learner)


def kl_of_next(learner: Learner) -> float:
    """Mean exact KL(reference || policy) over the response tokens of a further batch; nothing is learned."""
    learner.prepare(examples(5), step=0)
    return learner.step(5)["kl/exact_reference_to_policy"]


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("compat", [False, True])
def test_at_the_start_the_kl_is_zero_and_the_loss_is_the_cross_entropy(model_path: str, model: dict, compat: bool):
    record = train(superhf(model_path, model=model, update={"compat": compat}))[0]

    assert record["kl/exact_reference_to_policy"] == record["loss/kl"] == 0.0
    assert record["loss/total"] == record["loss/cross_entropy"] > 1.0


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "LoRA"])
def test_at_the_start_the_gradient_is_that_without_a_kl(model_path: str, model: dict):
    gradients = []
    for coef in (0.5, 0.0):
        learner = superhf(model_path, model=model, update={"kl_coef": coef}, lr=0.0, max_grad_norm=1e6)
        train(learner)
        gradients.append({name: p.grad for name, p in learner.policy.named_parameters() if p.grad is not None})

    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "LoRA"])
def test_loss_and_kl_are_what_transformers_computes(model_path: str, tmp_path: Path, model: dict):
    """Prompts and completions of many lengths, so padding that leaked into either term would show."""
    from transformers import AutoModelForCausalLM

    learner = superhf(model_path, model=model)
    train(learner, steps=3)
    learner.save(tmp_path)
    learner.prepare(examples(9), step=0)
    record = learner.step(3)

    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "policy", model_path))
    nll, kls = [], []
    for example in examples(9):
        prompt, completion = example.prompt.token_ids, example.rollout.completion.token_ids
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            p, r = (side(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for side in (policy, reference))
        nll.append(F.nll_loss(p, torch.tensor(completion), reduction="none"))
        kls.append(F.kl_div(p, r, log_target=True, reduction="none").sum(-1))

    kl = torch.stack([kl_T.mean() for kl_T in kls]).mean().item()
    assert kl > 1e-3
    assert record["loss/cross_entropy"] == pytest.approx(torch.cat(nll).mean().item(), rel=1e-4)
    assert record["loss/kl"] == pytest.approx(0.5 * kl, rel=1e-3)
    assert record["kl/exact_reference_to_policy"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-3)


def test_a_stronger_kl_holds_the_policy_nearer(model_path: str):
    found = []
    for coef in (0.01, 1.0, 100.0):
        learner = superhf(model_path, update={"kl_coef": coef})
        train(learner, steps=4)
        found.append(kl_of_next(learner))

    assert found[0] > found[1] > found[2] > 0


def test_without_a_kl_there_is_no_reference(model_path: str):
    learner = superhf(model_path, update={"kl_coef": 0.0}, track_reference_kl=False)
    record = train(learner)[0]

    assert learner._models.reference is None
    assert record["loss/total"] == record["loss/cross_entropy"]
    assert not [key for key in record if key.startswith("kl/")]


def test_a_kl_that_is_only_logged_changes_no_weight(model_path: str):
    logging, silent = (superhf(model_path, update={"kl_coef": 0.0}, track_reference_kl=logs) for logs in (True, False))
    records = [train(learner, steps=3)[-1] for learner in (logging, silent)]

    assert records[0]["kl/policy_to_reference"] != 0.0
    assert records[0]["loss/total"] == records[1]["loss/total"]
    after = weights(silent)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(logging).items())


def test_two_learners_of_one_seed_end_in_the_same_weights(model_path: str):
    one, other = superhf(model_path, model=LORA), superhf(model_path, model=LORA)

    assert train(one, steps=3) == train(other, steps=3)
    after = weights(other)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(one).items())


def test_lora_trains_its_adapters_against_the_base_and_leaves_it_as_it_is(model_path: str):
    learner = superhf(model_path, model=LORA)
    base = {n: p.clone() for n, p in learner.policy.named_parameters() if "lora" not in n}
    train(learner, steps=3)

    assert kl_of_next(learner) > 0
    after = dict(learner.policy.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in base.items())
    assert all(after[name].grad is None for name in base)


def test_adapters_come_back_on_after_the_reference_failed(model_path: str):
    learner = superhf(model_path, model=LORA)
    train(learner, steps=2)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = learner.policy.hidden(ids)
        reference = AdapterOff(learner.policy)
        with pytest.raises(IndexError):
            reference.hidden(torch.tensor([[10**6]]))

        assert torch.equal(learner.policy.hidden(ids), before)
        assert not torch.equal(reference.hidden(ids), before)


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "LoRA"])
def test_gradient_checkpointing_changes_memory_not_numbers(model_path: str, model: dict):
    plain = superhf(model_path, model=model)
    saving = superhf(model_path, model=model | {"gradient_checkpointing": True})

    assert train(plain, steps=2) == train(saving, steps=2)
    after = weights(saving)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(plain).items())


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(
    "changed", [{"micro_batch_tokens": 20}, {"logits_chunk_tokens": 2}], ids=["micro-batches", "logit chunks"]
)
def test_the_cut_into_passes_and_chunks_does_not_matter(model_path: str, compat: bool, changed: dict):
    records, gradients = [], []
    for extra in ({}, changed):
        learner = superhf(model_path, update={"compat": compat}, max_grad_norm=1e6, **extra)
        records.append(train(learner, steps=2)[-1])
        gradients.append([p.grad for p in learner.policy.parameters()])

    assert records[0]["loss/kl"] > 0
    assert records[1] == pytest.approx(records[0], rel=1e-3, abs=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_top_k_logs_a_lower_bound(model_path: str):
    learners = [superhf(model_path, update={"kl_top_k": k}, lr=0.0) for k in (1, 4, None)]
    moved = superhf(model_path)
    train(moved, steps=3)
    for learner in learners:
        learner.policy.load_state_dict(moved.policy.state_dict())
    one, four, whole = (kl_of_next(learner) for learner in learners)

    assert 0 < one < four < whole
