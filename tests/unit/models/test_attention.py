"""Packed rows give the hidden states and gradients of padded ones: every architecture, windows, caps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlkl.functional.packing import Packing, shared_prefixes
from rlkl.models.attention import NotPackable, attend, packed_attention
from rlkl.models.language_model import LanguageModel
from tests.models import tiny_qwen3
from tests.realistic.models import ARCHITECTURES, ModelChoice, build

CPU = torch.device("cpu")
LENGTHS_B = torch.tensor([40, 33, 21, 9, 30])
GROUPS_B = torch.tensor([0, 0, 0, 1, 1])
WINDOW = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def rows() -> Tensor:
    """Five rows of two groups, that share 20 and 5 first tokens."""
    ids_BT = torch.randint(300, 900, (5, 40), generator=torch.Generator().manual_seed(0))
    ids_BT[1:3, :20] = ids_BT[0, :20]
    ids_BT[4, :5] = ids_BT[3, :5]
    return ids_BT


def states_and_gradients(model: LanguageModel, **how: Any) -> tuple[Tensor, dict[str, Tensor]]:
    real_BT = torch.arange(40) < LENGTHS_B.unsqueeze(1)
    hidden_BTH = model.hidden(rows(), **how)
    weight_BTH = torch.randn(hidden_BTH.shape, generator=torch.Generator().manual_seed(1))
    (hidden_BTH * weight_BTH)[real_BT].sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return hidden_BTH.detach()[real_BT], gradients


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_packed_rows_are_as_padded_ones(folder: Path, architecture: str, checkpointing: bool):
    choice = ModelChoice(architecture=architecture, layers=2, vocabulary=1024, sliding_window=WINDOW)
    path = str(build(choice, folder))
    padded = LanguageModel(path, dtype=torch.float32, device=CPU)
    packed = LanguageModel(path, dtype=torch.float32, device=CPU, packed=True)
    assert packed.packs
    assert not padded.packs
    if checkpointing:
        packed.model.gradient_checkpointing_enable({"use_reentrant": False})
    packing = Packing(LENGTHS_B, 40, shared_prefixes(rows(), LENGTHS_B, GROUPS_B))
    assert packing.count == 88, "20 and 5 tokens are shared"

    expected, expected_gradients = states_and_gradients(padded)
    found, gradients = states_and_gradients(packed, packing=packing)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-6 * largest)


def test_rows_without_a_packing_run_whole(folder: Path):
    path = str(tiny_qwen3(folder / "whole", tied=False, seed=0))
    padded = LanguageModel(path, dtype=torch.float32, device=CPU)
    packed = LanguageModel(path, dtype=torch.float32, device=CPU, packed=True)
    ids_BT = torch.tensor([[3, 4, 5], [6, 7, 8]])
    torch.testing.assert_close(packed.hidden(ids_BT), padded.hidden(ids_BT))
    torch.testing.assert_close(packed.layers(ids_BT), padded.layers(ids_BT))


def test_a_model_that_does_more_in_attention_stays_padded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = str(tiny_qwen3(folder / "refused", tied=False, seed=0))
    ids_BT = torch.tensor([[3, 4, 5, 0], [6, 7, 8, 9]])
    expected = LanguageModel(path, dtype=torch.float32, device=CPU).hidden(ids_BT)
    monkeypatch.setattr("rlkl.models.attention._UNKNOWN", ("scaling",))
    model = LanguageModel(path, dtype=torch.float32, device=CPU, packed=True)
    assert not model.packs
    assert torch.equal(model.hidden(ids_BT, packing=Packing(torch.tensor([3, 4]), 4)), expected)


def test_a_model_that_mixes_tokens_outside_attention_stays_padded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A convolution over the packed row would see the neighbour's tokens."""
    path = str(tiny_qwen3(folder / "mixing", tied=False, seed=0))
    original = nn.Embedding.forward

    def mixing(self: nn.Embedding, ids: Tensor) -> Tensor:
        embedded = original(self, ids)
        return embedded + 0.5 * embedded.roll(1, dims=-2)

    monkeypatch.setattr(nn.Embedding, "forward", mixing)
    assert not LanguageModel(path, dtype=torch.float32, device=CPU, packed=True).packs


def test_arguments_that_are_not_known_are_refused():
    x = torch.zeros(1, 2, 5, 4)
    packing = Packing(torch.tensor([5]), 5)
    with pytest.raises(NotPackable, match="s_aux"):
        packed_attention(nn.Identity(), x, x, x, None, packing=packing, s_aux=torch.ones(2))
    with pytest.raises(NotPackable, match="does not pass `packing`"):
        packed_attention(nn.Identity(), x, x, x, None)


@pytest.mark.parametrize("window", [None, 3, 50])
def test_a_capped_attention_without_effect_is_the_plain_one(window: int | None):
    query = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    key, value = torch.randn(2, 2, 2, 7, 8, generator=torch.Generator().manual_seed(1))
    plain = attend(query, key, value, scaling=0.3, window=window, softcap=None)
    capped = attend(query, key, value, scaling=0.3, window=window, softcap=1e6)
    torch.testing.assert_close(capped, plain, rtol=1e-3, atol=1e-4)
