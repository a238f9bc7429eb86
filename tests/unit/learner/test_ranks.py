from pathlib import Path

import pytest
import torch

from rlkl.learner.ranks import Ranks
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


def fail(number: int, folder: Path) -> None:
    assert number == 0, "the second process fails"


def test_a_failing_process_fails_the_test_with_its_traceback(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"process 1:.*\n.*(.|\n)*the second process fails"):
        run_processes(fail, 2, tmp_path)
