"""The KL to a noisy picture: by hand, and in a learner of a model that sees."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkl.data.images import open_image
from rlkl.errors import RecipeError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.signals import Signal, Signals
from rlkl.updates import build_update
from rlkl.updates.base import PictureContext
from rlkl.updates.settings import GrpoSettings
from rlkl.updates.terms.consistency.settings import ConsistencySettings
from rlkl.updates.terms.consistency.term import Consistency
from tests.builders import FACTS, make_batch
from tests.models import tiny_qwen2_5_vl
from tests.pictures import example, picture, processor_of, prompt_with
from tests.unit.learner.test_learner import recipe_for

NOISY = Signal("logprobs", view="noisy_0_1")


def test_by_hand():
    """Two sequences, of which the second has a picture; its tokens are 0.5 and 0.1 nats less likely with noise."""
    batch = make_batch(lengths=[1, 2], rewards=[0.0, 0.0], groups=[0, 1], corrupted=[1])
    term = Consistency(ConsistencySettings(coef=2.0))
    assert term.needs == {Signal.POLICY_LOGPROBS, NOISY}
    clean_BT = torch.full(batch.response_BT.shape, -1.0, requires_grad=True)
    noisy_BT = torch.full(batch.response_BT.shape, -9.0)
    noisy_BT[1, 2:] = torch.tensor([-1.5, -1.1])
    noisy_BT.requires_grad_()
    loss = term.loss(batch, Signals({Signal.POLICY_LOGPROBS: clean_BT, NOISY: noisy_BT}))
    loss.backward()
    wanted = [math.exp(-0.5) - 1 + 0.5, math.exp(-0.1) - 1 + 0.1]
    assert loss.item() == pytest.approx(2 * sum(wanted) / 2, rel=1e-4)
    assert clean_BT.grad is None
    assert noisy_BT.grad is not None
    assert noisy_BT.grad[1, 2:].tolist() == pytest.approx([math.exp(-0.5) - 1, math.exp(-0.1) - 1], rel=1e-4)
    assert noisy_BT.grad[0].abs().sum() == 0


def test_noise_follows_its_seed_and_std():
    original = open_image(picture(64, 64, 3))
    changed = {
        (std, seed): Consistency(ConsistencySettings(noise_std=std)).change_picture(original, seed=seed)
        for std in (0.0, 0.1)
        for seed in (1, 2)
    }
    assert changed[0.0, 1].tobytes() == original.tobytes()
    assert changed[0.1, 1].tobytes() != changed[0.1, 2].tobytes()
    again = Consistency(ConsistencySettings(noise_std=0.1)).change_picture(original, seed=1)
    assert again.tobytes() == changed[0.1, 1].tobytes()


@pytest.mark.parametrize("dro", [None, {"temperature": 1.0}])
def test_the_noise_follows_the_seed_of_the_recipe_behind_every_wrapper(dro: dict | None):
    never: Any = None  # noise needs no attention
    context = PictureContext(key=(0, "row-1", 0), attention=never)
    original = open_image(picture(64, 64, 3))
    settings = GrpoSettings.model_validate({"dro": dro, "terms": [{"term": "consistency"}]})
    noisy = [
        build_update(settings, seed=seed).change_picture("noisy_0_1", original, context).tobytes() for seed in (1, 2, 1)
    ]
    assert noisy[0] != noisy[1]
    assert noisy[0] == noisy[2]


def test_in_a_learner_that_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "rlkl.learner.preparation.frozen_view_logprobs",
        lambda *_, **__: pytest.fail("a forward pass at the step's start whose result nothing reads"),
    )
    path = str(tiny_qwen2_5_vl(tmp_path / "seeing", seed=0))
    pictures = processor_of(path)
    seen = [(picture(56, 56, 1),), ()]
    prompts = [prompt_with(pictures, images, name=f"row-{n}") for n, images in enumerate(seen)]
    rows = [example(prompt, group=group, sample=sample) for group, prompt in enumerate(prompts) for sample in range(2)]
    found = []
    for std, size in ((0.0, 4096), (0.3, 4096), (0.3, 8)):
        term = {"term": "consistency", "noise_std": std, "coef": 0.5}
        recipe = recipe_for(
            path,
            update={"rule": "grpo", "terms": [term]},
            learner={"micro_batch_tokens": size, "track_reference_kl": False},
        )
        learner = Learner(LearnerSpec(recipe=recipe, model_path=path))
        found.append(learner.prepare(rows, step=0) | learner.step(0))
    assert found[0]["loss/consistency"] == pytest.approx(0.0, abs=1e-6)
    assert found[1]["loss/consistency"] > 1e-5
    assert found[1]["loss/consistency"] == pytest.approx(0.5 * found[1]["term/consistency_nats"])
    for key in ("loss/consistency", "loss/total", "optim/grad_norm"):
        assert found[2][key] == pytest.approx(found[1][key], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "facts", "starts"),
    [
        ({}, {}, []),
        ({"noise_std": 0.0}, {}, ["noise_std = 0: both pictures are equal"]),
        ({"coef": 0.0}, {}, ["coef = 0: the term costs"]),
        ({}, {"has_pairs": True}, ["the term estimates a KL from tokens that the policy sampled"]),
        ({}, {"samples_ahead": True}, ["the term estimates a KL from tokens that the policy sampled"]),
    ],
)
def test_its_warnings(settings: dict, facts: dict, starts: list[str]):
    found = list(ConsistencySettings(**settings).warnings(replace(FACTS, **facts), GrpoSettings()))
    assert len(found) == len(starts)
    assert all(text.startswith(start) for text, start in zip(found, starts, strict=True))


def test_a_model_without_eyes_is_refused():
    update = build_update(recipe_for("m", update={"rule": "grpo", "terms": [{"term": "consistency"}]}).update)
    update.check_model(is_multimodal=True)
    with pytest.raises(RecipeError, match="term consistency compares views of a picture"):
        update.check_model(is_multimodal=False)
