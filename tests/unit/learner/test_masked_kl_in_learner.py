"""The term ``masked_kl`` in the real learner, against numbers computed without it; beside a plain KL to one model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkl.learner.learner import Learner, LearnerSpec
from tests.builders import prepared_batch
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import examples, recipe_for

IDS = [4, 7, 9]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: str(tiny_qwen3(folder / name, tied=False, seed=seed)) for seed, name in enumerate(("policy", "teacher"))
    }


def learner_with(paths: dict[str, str], terms: list[dict]) -> Learner:
    recipe = recipe_for(
        paths["policy"], update={"rule": "grpo", "terms": terms}, models={"teacher": {"path": paths["teacher"]}}
    )
    return Learner(LearnerSpec(recipe=recipe, model_path=paths["policy"], frozen_paths={"teacher": paths["teacher"]}))


@torch.no_grad()
def next_token_logprobs(path: str, batch_ids: Tensor) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(path)(input_ids=batch_ids).logits.log_softmax(-1)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("direction", ["policy_to_model", "model_to_policy"])
def test_both_masks_at_once_and_a_full_kl_beside(paths: dict[str, str], renormalise: bool, direction: str):
    both = {"to": "teacher", "direction": direction, "coef": 0.5}
    learner = learner_with(paths, [{"term": "kl", **both}])
    learner.prepare(examples(), step=0)
    batch = prepared_batch(learner)
    response_BT = batch.response_BT[:, 1:]
    named = sorted({int(one) for one in batch.token_ids_BT[:, 1:][response_BT]})[:2]
    masked = {"term": "masked_kl", "token_ids": named, "vocabulary_ids": IDS, "renormalise": renormalise}
    learner = learner_with(paths, [{"term": "kl", **both}, {**masked, **both}])
    record = learner.prepare(examples(), step=0) | learner.step(0)

    sides = [next_token_logprobs(paths[name], batch.token_ids_BT)[:, :-1] for name in ("policy", "teacher")]
    left, right = sides if direction == "policy_to_model" else sides[::-1]
    full = (left.exp() * (left - right)).sum(-1)[response_BT].mean().item()
    left, right = (torch.cat([x[..., :4], x[..., 5:7], x[..., 8:9], x[..., 10:]], dim=-1) for x in (left, right))
    if renormalise:
        left, right = (x - x.logsumexp(-1, keepdim=True) for x in (left, right))
    kept_BT = response_BT & ~torch.isin(batch.token_ids_BT[:, 1:], torch.tensor(named))
    wanted = ((left.exp() * (left - right)).sum(-1) * kept_BT).sum().item() / int(response_BT.sum())
    assert record["term/kl_teacher_nats"] == pytest.approx(full, rel=1e-3)
    assert record["term/masked_kl_teacher_nats"] == pytest.approx(wanted, rel=1e-3)
    assert record["loss/masked_kl_teacher"] == pytest.approx(0.5 * wanted, rel=1e-3)
    assert record["term/masked_kl_teacher_kept"] == pytest.approx(kept_BT.sum().item() / int(response_BT.sum()))
