"""A vision-language model as the learner runs it: what transformers itself would say of each sequence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlkl.batch import Batch
from rlkl.data.images import open_image
from rlkl.data.packing import pack
from rlkl.data.vision import PictureProcessor
from rlkl.models.language_model import LanguageModel
from rlkl.models.saliency import received_attention
from rlkl.types import Example, Image
from tests.models import IMAGE, tiny_qwen2_5_vl
from tests.pictures import example, picture, processor_of, prompt_with

SMALL, WIDE, TALL = picture(56, 56, 0), picture(140, 56, 1), picture(84, 112, 2)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("model") / "vl", seed=0)


@pytest.fixture(scope="module")
def pictures(model_path: Path) -> PictureProcessor:
    return processor_of(model_path)


@pytest.fixture(scope="module")
def model(model_path: Path) -> LanguageModel:
    return LanguageModel(str(model_path), dtype=torch.float32, device=torch.device("cpu"))


def examples(pictures: PictureProcessor) -> list[Example]:
    """One picture, none, two of different sizes, the first again, and three."""
    seen: list[tuple[Image, ...]] = [(SMALL,), (), (WIDE, TALL), (SMALL,), (TALL, SMALL, TALL)]
    return [
        example(prompt_with(pictures, images, "12+34=" * (n % 2 + 1)), group=n, length=2 + n)
        for n, images in enumerate(seen)
    ]


@torch.no_grad()
def logprobs(model: LanguageModel, batch: Batch) -> Tensor:
    hidden_BTH = model.hidden(batch.token_ids_BT, batch.images)
    logits_BTV = model.head(hidden_BTH[:, :-1])
    return logits_BTV.log_softmax(-1).gather(-1, batch.token_ids_BT[:, 1:, None])[..., 0]


@torch.no_grad()
def test_log_probs_are_those_of_transformers_on_each_sequence_alone(
    model: LanguageModel, pictures: PictureProcessor, model_path: Path
):
    batch = pack(examples(pictures), completion_limit=8, pictures=pictures)
    mine_BT = logprobs(model, batch)

    processor: Any = AutoProcessor.from_pretrained(model_path)
    theirs = AutoModelForImageTextToText.from_pretrained(model_path)
    for row, item in enumerate(examples(pictures)):
        text = IMAGE * len(item.prompt.images) + item.prompt.text
        shown = [open_image(image) for image in item.prompt.images] or None
        inputs = processor(text=[text], images=shown, return_tensors="pt", return_mm_token_type_ids=True)
        assert tuple(inputs["input_ids"][0].tolist()) == item.prompt.token_ids
        completion = torch.tensor([item.rollout.completion.token_ids])
        ids = torch.cat([inputs["input_ids"], completion], dim=1)
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completion)], dim=1)
        theirs.model.rope_deltas = None
        logits = theirs(
            **{**inputs, "input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)}
        ).logits
        wanted = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(mine_BT[row, : len(wanted)], wanted, rtol=1e-4, atol=1e-4)


def test_a_sequence_does_not_depend_on_what_shares_its_micro_batch(model: LanguageModel, pictures: PictureProcessor):
    batch = pack(examples(pictures), completion_limit=8, pictures=pictures)
    together_BT = logprobs(model, batch)
    for rows in ([0], [1], [2], [3], [4], [0, 1], [4, 2], [3, 1, 0], [1, 3]):
        part = batch.rows(torch.tensor(rows))
        alone_BT = logprobs(model, part)
        for place, row in enumerate(rows):
            length = int(batch.attention_BT[row].sum()) - 1
            torch.testing.assert_close(alone_BT[place, :length], together_BT[row, :length], rtol=1e-5, atol=1e-5)


def test_what_is_seen_matters_and_so_does_the_order_of_pictures(model: LanguageModel, pictures: PictureProcessor):
    other = picture(56, 56, 9)
    seen = [(SMALL,), (other,), (SMALL, other), (other, SMALL)]
    batch = pack(
        [example(prompt_with(pictures, images), group=0) for images in seen], completion_limit=8, pictures=pictures
    )
    rows = [logprobs(model, batch)[n][batch.response_BT[n, 1:]] for n in range(4)]
    for one, another in ((0, 1), (2, 3)):
        assert (rows[one] - rows[another]).abs().max() > 1e-3


def test_each_different_picture_is_cut_once(pictures: PictureProcessor):
    inputs = pack(examples(pictures), completion_limit=8, pictures=pictures).images
    assert inputs is not None
    assert inputs.images_B == ((0,), (), (1, 2), (0,), (2, 0, 2))
    assert len(inputs.grids_I3) == 3
    assert len(inputs.patches_PD) == int(inputs.grids_I3.prod(dim=1).sum())

    part = inputs.rows([4, 1])
    assert part is not None
    assert part.images_B == ((1, 0, 1), ())
    assert torch.equal(part.grids_I3, inputs.grids_I3[[0, 2]])
    assert inputs.rows([1]) is None


def test_a_placeholder_that_the_policy_sampled_is_an_ordinary_token(model: LanguageModel, pictures: PictureProcessor):
    """The log-probs before it do not change, and the forward does not die for want of one more picture."""
    plain = example(prompt_with(pictures, (SMALL,)), group=0, length=4)
    ids = plain.rollout.completion.token_ids
    sampled = (*ids[:2], pictures.image_token_id, ids[3])
    batch = pack([plain], completion_limit=8, pictures=pictures)
    odd = batch.token_ids_BT.clone()
    odd[0, -4:] = torch.tensor(sampled)
    with torch.no_grad():
        hidden = model.hidden(odd, batch.images)
    wanted = model.hidden(batch.token_ids_BT, batch.images)
    torch.testing.assert_close(hidden[:, :-2], wanted[:, :-2], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("seen", [SMALL, WIDE, TALL, picture(252, 224, 5)], ids=["small", "wide", "tall", "windows"])
def test_received_attention_is_what_the_towers_own_attention_gives(
    model_path: Path, pictures: PictureProcessor, seen: Image, monkeypatch: pytest.MonkeyPatch
):
    """Against the weights that transformers' eager attention computes, put back into the picture's own order."""
    weights: list[Tensor] = []

    def eager(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float, **__: Any) -> Any:
        attention = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1)
        weights.append(attention[0])
        return (attention @ value).transpose(1, 2), attention

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "watched", eager)
    theirs = AutoModelForImageTextToText.from_pretrained(model_path)
    tower: Any = theirs.base_model.visual
    patches_PD, grid_3 = pictures.patches(seen)

    received = received_attention(tower, patches_PD, grid_3)

    tower.config._attn_implementation = "watched"
    with torch.no_grad():
        tower(patches_PD, grid_thw=grid_3[None])
    whole = weights[-1].mean(dim=0)  # the last block attends to the whole picture; the others to windows
    assert len(whole) == len(patches_PD)
    by_patch = (whole - whole.diag().diag()).mean(dim=0)
    rows, columns = int(grid_3[1]) // 2, int(grid_3[2]) // 2
    window = tower.window_size // 2 // tower.patch_size
    order = [
        row * columns + column
        for top in range(0, rows, window)
        for left in range(0, columns, window)
        for row in range(top, min(top + window, rows))
        for column in range(left, min(left + window, columns))
    ]
    wanted = np.zeros(rows * columns)
    for place, cell in enumerate(order):
        wanted[cell] = float(by_patch[4 * place : 4 * place + 4].sum())
    np.testing.assert_allclose(received, wanted.reshape(rows, columns), rtol=1e-4, atol=1e-7)
