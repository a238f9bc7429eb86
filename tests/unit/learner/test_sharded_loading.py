"""Two ranks, in real processes with gloo: rank 0 loads the models, and the other one receives its part of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_processes
from tests.unit.learner.loading_cases import LOADED, REFUSED, make_models, process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The findings of both ranks."""
    made = tmp_path_factory.mktemp("loading")
    make_models(made)
    run_processes(process, 2, made)
    return made


def result(folder: Path, name: str, rank: int) -> Any:
    return torch.load(folder / f"{name} {rank}.pt", weights_only=False)


@pytest.mark.parametrize("name", LOADED)
def test_only_rank_0_holds_a_model_before_it_is_divided(folder: Path, name: str):
    first, second = (result(folder, name, rank)["held"] for rank in range(2))

    assert all(count > 0 for count in first)
    assert second == [0] * len(first)


@pytest.mark.parametrize("name", LOADED)
def test_rank_1_makes_no_tensor_larger_than_its_largest_part(folder: Path, name: str):
    found = result(folder, name, 1)
    for (most, own), whole in zip(found["made"], found["wholes"], strict=True):
        assert most <= own < 0.6 * whole


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", LOADED)
def test_each_rank_has_the_parameters_and_buffers_of_the_whole_model_bit_for_bit(folder: Path, name: str, rank: int):
    found = result(folder, name, rank)["differing"]

    assert {"policy"} <= found.keys()
    assert ("critic" in found) == (name == "critic")
    assert ("reference" in found) == (name != "adapters")
    assert all(names == [] for names in found.values()), found


def test_the_ranks_agree_whether_the_model_packs(folder: Path):
    for name in LOADED:
        packs = [result(folder, name, rank)["packs"] for rank in range(2)]
        assert packs == [name != "not packed"] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_all_ranks_raise_the_error_that_rank_0_finds(folder: Path, name: str):
    first, second = (result(folder, name, rank) for rank in range(2))

    kind, problem = REFUSED[name]
    assert first[0] == kind
    assert problem in first[1]
    assert second == first


def test_heads_whose_backbone_would_stay_empty_are_refused_on_all_ranks(folder: Path):
    for rank in range(2):
        kind, message = result(folder, "misplaced", rank)
        assert kind == "InputError"
        assert "make the model, or its base_model, an attribute of the heads" in message
