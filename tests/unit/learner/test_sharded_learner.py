"""Learners of two, three and four ranks, in real processes with gloo, against a learner of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_processes
from tests.unit.learner.sharded_cases import CASES, EXPORTED, OLD, SAVED, STEPS, TWICE, make_models, process

REPEATED = [(name, size) for name, case in CASES.items() for size in case.sizes]
RESUMED = [(name, size) for name in SAVED for size in (1, 2, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all processes."""
    made = tmp_path_factory.mktemp("ranks")
    make_models(made)
    run_processes(process, 4, made)
    return made


def result(folder: Path, name: str, size: int, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name} {size} {rank}.pt", weights_only=False)


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("name", "size"), REPEATED)
def test_losses_gradients_and_kls_are_those_of_one_rank(folder: Path, name: str, size: int):
    alone, sharded = result(folder, name, 1), result(folder, name, size)
    rel, absolute = (0.1, 0.03) if CASES[name].model.get("dtype") == "bfloat16" else (1e-5, 5e-6)
    if name == "eight bits":  # another rounding of a sum can give a moment the next code
        rel, absolute = 0.02, 1e-3

    for one, other in zip(alone["records"], sharded["records"], strict=True):
        assert other == pytest.approx(one, rel=rel, abs=absolute)
    for name_of, tensor in alone["weights"].items():
        torch.testing.assert_close(sharded["weights"][name_of], tensor, rtol=0.0, atol=2e-5 if rel < 0.01 else 2e-3)
    for one, other in zip(alone["probes"], sharded["probes"], strict=True):
        assert other == pytest.approx(one, abs=2e-5 if rel < 0.01 else 0.03)


@pytest.mark.parametrize(("name", "size"), REPEATED)
def test_all_ranks_have_the_same_numbers_bit_for_bit(folder: Path, name: str, size: int):
    first = result(folder, name, size)
    assert first["whole gathers"]
    for rank in range(1, size):
        other = result(folder, name, size, rank)
        assert other["records"] == first["records"]
        assert other["probes"] == first["probes"]
        assert same_bits(other["weights"], first["weights"])


def test_one_micro_batch_on_each_of_two_ranks_is_two_on_one_bit_for_bit(folder: Path):
    alone, sharded = result(folder, "halves", 1), result(folder, "halves", 2)

    assert same_bits(alone["weights"], sharded["weights"])
    assert [one["loss/total"] for one in alone["records"]] == [one["loss/total"] for one in sharded["records"]]


def test_two_runs_on_two_ranks_are_bit_equal(folder: Path):
    found = result(folder, TWICE, 2)

    assert found["again"]["records"] == found["records"]
    assert same_bits(found["again"]["weights"], found["weights"])


@pytest.mark.parametrize(("name", "size"), RESUMED)
def test_any_number_of_ranks_resumes_with_the_same_bits(folder: Path, name: str, size: int):
    saved, resumed = result(folder, name, SAVED[name]), result(folder, f"resumed {name}", size)

    assert any(key.endswith(".absmax2" if name == "eight bits" else ".exp_avg_sq") for key in saved["state"])
    assert same_bits(saved["state"], resumed["state"])
    assert same_bits(saved["weights"], resumed["weights"])
    one = result(folder, f"resumed {name}", 1)["next"]
    assert {n: x for n, x in resumed["next"].items() if n[:5] != "time/"} == pytest.approx(one, rel=1e-5, abs=5e-6)
    for before, after in zip(saved["probes"], resumed["probes"], strict=True):
        assert after == pytest.approx(before, abs=1e-5), "gathered weights of before the restore would be stale"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_file_of_an_earlier_version_is_read_by_any_number_of_ranks(folder: Path, size: int):
    saved, resumed = result(folder, OLD, 1), result(folder, "old", size)

    assert same_bits(saved["state"], resumed["state"])
    assert resumed["numbers"] == {"steps": STEPS, "finished": STEPS, "kl_coef": 0.25, "kl_error": 0.5}


@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_is_compared_with_the_learner_of_all_ranks(folder: Path, name: str):
    found = result(folder, name, EXPORTED[name])
    damaged, export = found["damaged"], found["export"]

    assert "tensors that are not the learner's" in damaged.problem
    assert export.problem is None
    bound = 0.05 if name == "bfloat16" else 1e-5
    for before, after in zip(export.learner, export.exported, strict=True):
        assert after == pytest.approx(before, abs=bound)
    assert (export.rounding > 0) == (name == "bfloat16")
    assert export.dtype == ("bfloat16" if name == "bfloat16" else "float32")
    assert (export.before is not None) == (name != "bfloat16")
    if export.before is not None:
        gaps = (torch.tensor(one) - torch.tensor(two) for one, two in zip(export.before, export.learner, strict=True))
        assert max(float(gap_T.abs().max()) for gap_T in gaps) > 1e-5


def test_every_rank_writes_its_own_shards_and_the_first_one_the_policy(folder: Path):
    files = result(folder, "grpo", 3)["files"]

    assert [name for name in files if name.endswith(".distcp")] == [f"learner/__{rank}_0.distcp" for rank in range(3)]
    assert {"learner.json", "learner/.metadata", "policy/model.safetensors"} <= set(files)
    assert result(folder, "grpo", 3, 1)["files"] == []


def test_a_rank_holds_its_part_of_the_weights_only(folder: Path):
    held, alone = result(folder, "grpo", 3)["held"], result(folder, "grpo", 1)["held"]

    assert held < alone * 0.4
