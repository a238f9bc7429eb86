"""The learner with pictures: corruption, PAPO end to end, frozen and trained vision towers, adapters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pil

from rlkl.data.images import open_image
from rlkl.data.packing import pack
from rlkl.data.vision import PictureProcessor
from rlkl.errors import DataError, MissingSignalError
from rlkl.learner.learner import Learner
from rlkl.learner.signals import packing_of
from rlkl.learner.views import ViewMaker
from rlkl.signals import Signal
from rlkl.types import Example, Probe
from rlkl.updates.base import PictureContext
from rlkl.updates.grpo.rule import Grpo
from rlkl.updates.papo.rule import Papo
from rlkl.updates.settings import PapoSettings
from tests.builders import prepared_batch
from tests.models import tiny_qwen2_5_vl, tiny_qwen3
from tests.pictures import example, picture, processor_of, prompt_with
from tests.unit.learner.test_learner import build

LIMIT = 8


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen2_5_vl(tmp_path_factory.mktemp("model") / "vl", seed=0))


@pytest.fixture(scope="module")
def pictures(model_path: str) -> PictureProcessor:
    return processor_of(model_path)


def examples(pictures: PictureProcessor, *, draw: int = 0) -> list[Example]:
    """Three prompts, of one, two and no pictures, two completions each."""
    seen = [(picture(84, 84, 0),), (picture(56, 112, 1), picture(70, 61, 2)), ()]
    prompts = [prompt_with(pictures, images, name=f"row-{n}") for n, images in enumerate(seen)]
    return [
        example(prompt, group=group, sample=sample, length=2 + group + sample, draw=draw)
        for group, prompt in enumerate(prompts)
        for sample in range(2)
    ]


def papo(**update: Any) -> dict[str, Any]:
    return {"update": {"rule": "papo", **update}}


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    named = learner.policy.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def one_step(learner: Learner, batch: Sequence[Example], step: int = 0) -> dict[str, float]:
    return {**learner.prepare(batch, step=step), **learner.step(step)}


def corrupted_of(learner: Learner, group: int) -> list[bytes]:
    return [open_image(image).tobytes() for image in learner.changed_pictures()["corrupted"][group]]


# Corruption (papers/papo.md section 9, properties 11 to 13)


def test_siblings_share_their_corrupted_pictures_and_a_new_draw_has_new_ones(model_path: str, pictures):
    learner = build(model_path, **papo())
    learner.prepare(examples(pictures), step=0)
    first = {group: corrupted_of(learner, group) for group in (0, 1)}
    assert learner.changed_pictures()["corrupted"].keys() == {0, 1}, "the third prompt has no picture"
    batch = prepared_batch(learner)
    assert batch.views["corrupted"].images_B == ((0,), (0,), (1, 2), (1, 2), (), ())

    learner.prepare(examples(pictures, draw=7), step=1)
    assert all(corrupted_of(learner, group) != first[group] for group in (0, 1))
    learner.prepare(examples(pictures), step=2)
    assert {group: corrupted_of(learner, group) for group in (0, 1)} == first, "the draw and the seed alone decide"


def test_a_step_that_trains_on_nothing_has_no_corrupted_pictures(model_path: str, pictures):
    learner = build(model_path, **papo())
    learner.prepare(examples(pictures), step=0)
    assert learner.changed_pictures()
    learner.prepare([], step=1)
    assert learner.changed_pictures() == {}


def test_pictures_of_one_prompt_are_corrupted_independently(pictures):
    twice = picture(112, 112, 3)
    item = example(prompt_with(pictures, (twice, twice)), group=0)
    maker = ViewMaker(rule=Papo(PapoSettings()), pictures=pictures, attention=lambda picture: np.ones((1, 1)))
    _, made = maker.add(pack([item], completion_limit=LIMIT, pictures=pictures), [item])
    one, other = (open_image(image).tobytes() for image in made["corrupted"][0])
    assert one != other


@pytest.mark.parametrize("kind", ["patches", "black", "noise", "saliency"])
def test_corruption_leaves_grids_and_token_counts_as_they_are(model_path: str, pictures, kind: str):
    learner = build(model_path, **papo(corruption={"kind": kind}))
    learner.prepare(examples(pictures), step=0)
    batch = prepared_batch(learner)
    clean, corrupted = batch.images, batch.views["corrupted"]
    assert clean is not None
    for row in range(batch.size):
        grids = [[inputs.grids_I3[image].tolist() for image in inputs.images_B[row]] for inputs in (clean, corrupted)]
        assert grids[0] == grids[1]
    assert not torch.equal(clean.patches_PD, corrupted.patches_PD)


def test_salient_cells_follow_the_policy(model_path: str, pictures):
    """Another vision tower looks elsewhere, so other cells turn black."""
    learner = build(model_path, **papo(corruption={"kind": "saliency", "fraction": 0.5}))
    batch = [example(prompt_with(pictures, (picture(252, 252, 5),)), group=0, sample=s) for s in range(2)]
    learner.prepare(batch, step=0)
    (before,) = learner.changed_pictures()["corrupted"][0]
    black = ~np.asarray(open_image(before)).any(axis=2)
    assert black.mean() == pytest.approx(40 / 81, abs=0.01), "9 x 9 cells, half of them rounded down"
    with torch.no_grad():
        for name, weights in learner.policy.model.base_model.visual.named_parameters():
            if "qkv" in name:
                weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    learner.prepare(batch, step=1)
    (after,) = learner.changed_pictures()["corrupted"][0]
    assert after.data != before.data


def test_nothing_is_sampled_under_corruption_and_the_reference_never_sees_it(model_path: str, pictures, monkeypatch):
    """Property 13: the corrupted pictures reach the policy's own forward and no other model."""
    learner = build(model_path, **papo(kl_coef=0.1))
    reference = learner._models.reference
    assert reference is not None
    seen: list[Any] = []
    hidden = reference.hidden
    monkeypatch.setattr(
        reference, "hidden", lambda ids, images=None, packing=None: seen.append(images) or hidden(ids, images, packing)
    )

    learner.prepare(examples(pictures), step=0)

    batch = prepared_batch(learner)
    assert batch.images is not None
    clean = {patch.numpy().tobytes() for patch in batch.images.patches_PD}
    shown = {patch.numpy().tobytes() for images in seen if images is not None for patch in images.patches_PD}
    assert shown == clean
    assert {patch.numpy().tobytes() for patch in batch.views["corrupted"].patches_PD} - clean


# PAPO


def test_an_untouched_picture_has_no_perception_kl(model_path: str, pictures):
    """Property 2: with p = 0 both forwards see the same, so K is 0 but for rounding, and so is its gradient."""
    record = one_step(build(model_path, **papo(corruption={"fraction": 0.0})), examples(pictures))
    assert record["perception/kl"] == pytest.approx(0.0, abs=1e-9)
    assert record["loss/perception"] == pytest.approx(0.0, abs=1e-9)
    assert record["perception/entropy_clean"] == pytest.approx(record["perception/entropy_corrupted"], rel=1e-5)

    corrupted = one_step(build(model_path, **papo()), examples(pictures))
    assert corrupted["perception/kl"] > 1e-4
    assert corrupted["time/corrupted_s"] > 0


def test_text_only_sequences_are_left_out_of_every_perception_term(model_path: str, pictures):
    """Property 18: the same figures with and without them, and no corrupted forward for them alone."""
    items = examples(pictures)
    with_text = one_step(build(model_path, **papo()), items)
    without = one_step(build(model_path, **papo()), items[:4])
    for key in ("perception/kl", "perception/entropy_clean", "perception/entropy_corrupted", "perception/kl_variance"):
        assert with_text[key] == pytest.approx(without[key], rel=1e-4)

    alone = one_step(build(model_path, **papo()), items[4:])
    assert alone["perception/kl"] == alone["loss/perception"] == 0.0
    assert alone["optim/grad_norm"] > 0, "the policy gradient is still there"


def test_corrupted_log_probs_are_of_the_start_of_the_step_unless_recomputed(model_path: str, pictures, monkeypatch):
    """Property 10: over two optimizer steps the default keeps one tensor; recompute has new ones, with gradient."""
    seen: dict[bool, list[tuple[torch.Tensor, bool, torch.Tensor]]] = {}
    for recompute in (False, True):
        learner = build(model_path, **papo(recompute=recompute), learner={"epochs": 2})
        update, found = learner._update, seen.setdefault(recompute, [])
        loss = update.loss

        def watched(batch, signals, loss=loss, found=found, recompute=recompute):
            moment = "live" if recompute else "step_start"
            corrupted_BT = signals[replace(Signal.CORRUPTED_LOGPROBS, moment=moment)]
            policy_BT = signals[Signal.POLICY_LOGPROBS].detach().clone()
            found.append((corrupted_BT.detach().clone(), corrupted_BT.requires_grad, policy_BT))
            return loss(batch, signals)

        monkeypatch.setattr(update, "loss", watched)
        one_step(learner, examples(pictures))
    for recompute, ((first, *_), (second, *_)) in {r: (f[0], f[1]) for r, f in seen.items()}.items():
        assert torch.equal(first, second) is not recompute
    assert [grad for _, grad, _ in seen[False]] == [False, False]
    assert [grad for _, grad, _ in seen[True]] == [True, True]
    for found in seen.values():
        assert not torch.equal(found[0][2], found[1][2]), "the policy moved in between"
    torch.testing.assert_close(seen[True][0][0], seen[False][0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_cut_into_micro_batches_does_not_matter(model_path: str, pictures, recompute: bool):
    update = papo(recompute=recompute, perception_coef=0.5, entropy_coef=0.1, corrupted_entropy_coef=0.1)
    records, grads = [], []
    for tokens in (4096, 40, 1):
        settings = {"lr": 0.0, "max_grad_norm": 1e6, "micro_batch_tokens": tokens}
        learner = build(model_path, **update, learner=settings)
        records.append(one_step(learner, examples(pictures)))
        grads.append(gradients(learner))
    for record, grad in zip(records[1:], grads[1:], strict=True):
        untimed = {key: value for key, value in record.items() if not key.startswith("time/")}
        assert untimed == pytest.approx({key: records[0][key] for key in untimed}, rel=1e-4, abs=1e-6)
        for name, tensor in grads[0].items():
            torch.testing.assert_close(grad[name], tensor, rtol=1e-3, atol=2e-6)


def test_token_columns_are_the_perception_kl_of_each_token(model_path: str, pictures):
    learner = build(model_path, **papo())
    record = one_step(learner, examples(pictures))
    rows = learner.token_columns()["perception_kl"]
    assert [len(row) for row in rows] == [2, 3, 3, 4, 4, 5]
    tokens = [value for row in rows[:4] for value in row]
    assert all(value >= 0 for value in tokens)
    assert sum(tokens) / len(tokens) == pytest.approx(record["perception/kl"], rel=1e-3)
    assert all(value == 0 for row in rows[4:] for value in row), "text-only"


def test_responses_masked_for_their_truncation_keep_their_token_columns(model_path: str, pictures):
    """The samples of a step have a number for each of their tokens, trained on or not."""
    found = examples(pictures)
    cut = replace(found[2].rollout.completion, finish_reason="length")
    found[2] = replace(found[2], rollout=replace(found[2].rollout, completion=cut))
    rows = []
    for mask_truncated in (False, True):
        learner = build(model_path, **papo(mask_truncated=mask_truncated))
        one_step(learner, found)
        rows.append(learner.token_columns()["perception_kl"])

    assert [len(row) for row in rows[1]] == [2, 3, 3, 4, 4, 5]
    for masked, whole in zip(rows[1], rows[0], strict=True):
        assert masked == pytest.approx(whole, rel=1e-4, abs=1e-6), "a pass over fewer sequences rounds otherwise"


def test_a_text_model_is_refused_with_the_signal_that_it_lacks(tmp_path: Path):
    text_model = str(tiny_qwen3(tmp_path / "text", tied=False, seed=0))
    with pytest.raises(MissingSignalError, match=r"CORRUPTED_LOGPROBS.*no vision tower"):
        build(text_model, **papo())


# The vision tower


@pytest.mark.parametrize("frozen", [False, True])
def test_the_vision_tower_trains_unless_it_is_frozen(model_path: str, pictures, frozen: bool):
    learner = build(model_path, model={"freeze_vision": frozen}, learner={"lr": 1e-2})
    before = {name: tensor.clone() for name, tensor in learner.policy.published()}
    one_step(learner, examples(pictures))
    moved = {name for name, tensor in learner.policy.published() if not torch.equal(tensor, before[name])}
    tower = {name for name in before if "visual" in name}
    assert any("merger" in name for name in tower), "the projector is part of the tower"
    assert (moved & tower == set()) if frozen else (tower <= moved)
    assert moved - tower, "the language model moves either way"


def test_adapters_reach_the_tower_and_their_merge_is_published_under_checkpoint_names(model_path: str, pictures):
    learner = build(model_path, model={"lora": {"rank": 2}}, learner={"lr": 1e-2, "track_reference_kl": True})
    before = {name: tensor.clone() for name, tensor in learner.policy.published()}
    record = one_step(learner, examples(pictures))
    assert record["kl/policy_to_reference"] == 0.0, "the policy with its adapters off is the policy as it began"
    after = dict(learner.policy.published())
    assert after.keys() == before.keys() == dict(build(model_path).policy.published()).keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any("visual" in name for name in moved)
    assert any("language_model" in name for name in moved)


def test_adapters_in_the_tower_alone_learn_from_micro_batches_of_which_some_have_no_picture(model_path: str, pictures):
    adapters = {"lora": {"rank": 2, "target_modules": ["qkv", "proj"]}}
    items = examples(pictures)
    together, apart = (
        build(model_path, model=adapters, learner={"lr": 1e-2, "micro_batch_tokens": tokens}) for tokens in (10_000, 1)
    )
    before = {name: tensor.clone() for name, tensor in together.policy.published()}

    records = [one_step(learner, items) for learner in (together, apart)]

    assert records[1]["optim/grad_norm"] == pytest.approx(records[0]["optim/grad_norm"], rel=1e-4)
    for learner in (together, apart):
        moved = {name for name, tensor in learner.policy.published() if not torch.equal(tensor, before[name])}
        assert moved
        assert all("visual" in name for name in moved)
    blind = build(model_path, model=adapters)
    assert one_step(blind, items[-2:])["optim/grad_norm"] == 0.0, "a batch without any picture has nothing to teach"


# Token counts


def test_a_picture_of_another_token_count_is_named_before_a_step(model_path: str, pictures, monkeypatch):
    items = examples(pictures)
    fresh = processor_of(model_path)
    monkeypatch.setattr(fresh, "token_count", lambda image: 5)
    with pytest.raises(DataError, match=r"row-0: picture 1 \(84 x 84 pixels\) is 9 tokens .* announced 5"):
        pack(items, completion_limit=LIMIT, pictures=fresh)


def test_pictures_are_cut_once_however_often_they_come(model_path: str, monkeypatch):
    fresh = processor_of(model_path)
    cuts: list[Any] = []
    process = fresh.process
    monkeypatch.setattr(fresh, "process", lambda shown: cuts.append(shown) or process(shown))
    for _ in range(3):
        pack(examples(fresh), completion_limit=LIMIT, pictures=fresh)
    assert len(cuts) == 3, "three different pictures in three batches of six sequences"
    buffer = io.BytesIO()
    open_image(picture(84, 84, 0)).save(buffer, format="PNG")
    assert cuts[0].tobytes() == pil.open(buffer).tobytes()


class Dark(Grpo):
    """A rule with a view of its own, as docs/your_own_rule.md shows it."""

    signal = Signal("logprobs", view="dark", moment="step_start")

    @property
    def needs(self) -> frozenset[Signal]:
        return super().needs | {self.signal}

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"dark"})

    def change_picture(self, view: str, picture: pil.Image, context: PictureContext) -> pil.Image:
        assert view == "dark"
        return pil.fromarray(np.asarray(picture) // 2)


def test_a_rule_brings_a_view_of_its_own(model_path: str, pictures, monkeypatch):
    monkeypatch.setattr("rlkl.updates.grpo.rule.Grpo", Dark)
    learner = build(model_path, update={"rule": "grpo"})
    record = one_step(learner, examples(pictures))
    batch = prepared_batch(learner)
    dark_BT, clean_BT = batch.signals[Dark.signal], batch.signals[Signal.PROXIMAL_LOGPROBS]
    assert batch.pictured_B.tolist() == [True] * 4 + [False] * 2
    assert ((dark_BT - clean_BT)[batch.pictured_B].abs() > 1e-6).any(dim=1).all()
    assert dark_BT[~batch.pictured_B].abs().sum() == 0
    assert record["time/dark_s"] > 0
    assert np.asarray(open_image(learner.changed_pictures()["dark"][0][0])).max() <= 127


def test_a_view_that_the_rule_does_not_make_is_refused_at_set_up(model_path: str, monkeypatch):
    monkeypatch.setattr(Dark, "views", frozenset())
    monkeypatch.setattr("rlkl.updates.grpo.rule.Grpo", Dark)
    with pytest.raises(MissingSignalError, match="makes no view dark"):
        build(model_path, update={"rule": "grpo"})


def test_a_rule_of_an_earlier_version_is_told_the_new_names():
    with pytest.raises(TypeError, match=r"Old\.corruption is no part of a rule any more: define views"):
        type("Old", (Grpo,), {"corruption": None})


def test_probes_with_other_pictures_of_one_size_are_scored_with_their_own(model_path: str, pictures):
    """Their token ids are equal: the placeholders do not tell the pictures apart."""
    learner = build(model_path, **papo())
    prompts = [prompt_with(pictures, (picture(56, 56, number),), name=f"row-{number}") for number in range(3)]
    probes = [Probe(token_ids=(*prompt.token_ids, 3, 4), images=prompt.images) for prompt in prompts]
    alone = [learner.probe([probe])[0] for probe in probes]
    together = learner.probe(probes)
    assert alone[0] != pytest.approx(alone[1], abs=1e-3)
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_rows_of_one_group_with_other_pictures_share_no_beginning(model_path: str, pictures):
    learner = build(model_path, **papo())
    prompts = [prompt_with(pictures, (picture(56, 56, number),), name=f"row-{number}") for number in range(2)]
    batch = pack([example(prompt, group=0) for prompt in prompts], completion_limit=LIMIT, pictures=pictures)
    assert batch.sharing_B.tolist() == [0, 1]
    packing = packing_of(batch)
    assert packing.count == int(batch.attention_BT.sum())
    assert learner.policy.packs
