from pathlib import Path

import pytest
import torch

from rlkl.errors import RecipeError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.ranks import Ranks
from rlkl.recipe import Recipe
from tests.models import tiny_qwen2_5_vl
from tests.ranks import join, run_processes


def test_one_rank_has_no_process_group_and_its_sums_are_its_numbers():
    ranks = Ranks()
    values = torch.tensor([1.0, 2.0])

    assert ranks.sum_(values) is values
    assert ranks.sum_named({"loss": values[0]}) == {"loss": values[0]}
    ranks.barrier()
    ranks.leave()
    assert not torch.distributed.is_initialized()


def add_up(number: int, folder: Path) -> None:
    ranks = join(folder, "three", number, 3)
    assert (ranks.rank, ranks.size) == (number, 3)
    own = torch.tensor([float(number), 1.0])
    assert ranks.sum_(own).tolist() == [3.0, 3.0]
    named = {"all": torch.tensor(1.0)} | ({"second": torch.tensor(5.0)} if number == 1 else {})
    assert {name: float(x) for name, x in ranks.sum_named(named).items()} == {"all": 3.0, "second": 5.0}
    ranks.barrier()
    ranks.leave()
    assert not torch.distributed.is_initialized()


def test_three_processes_meet_at_a_free_port_and_add_up(tmp_path: Path):
    run_processes(add_up, 3, tmp_path)


def test_adapters_of_a_model_that_sees_are_refused_on_several_ranks(tmp_path: Path):
    path = str(tiny_qwen2_5_vl(tmp_path / "vl", seed=0))
    recipe = Recipe.model_validate({"model": {"path": path, "lora": {"rank": 2}}, "data": {"source": "unused.jsonl"}})
    spec = LearnerSpec(recipe=recipe, model_path=path)

    with pytest.raises(RecipeError, match=r"learner\.ranks = 2 with model\.lora, .*Set learner\.ranks=1"):
        Learner(spec, Ranks(rank=0, size=2))
    assert Learner(spec).ranks.size == 1


def fail(number: int, folder: Path) -> None:
    assert number == 0, "the second process fails"


def test_a_failing_process_fails_the_test_with_its_traceback(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"process 1:.*\n.*(.|\n)*the second process fails"):
        run_processes(fail, 2, tmp_path)
