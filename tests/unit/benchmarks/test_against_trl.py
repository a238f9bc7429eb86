"""The comparison with TRL: both sides do the same work, and unequal work is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.against import rlkl_side, side
from benchmarks.against.measured import Measured
from benchmarks.against.rate import matrix_rate
from benchmarks.against.report import HEADER, Compared, page, row
from benchmarks.against.workload import CASES, TINY, Case, Workload, read_workload, tiny, write_workload

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def measured(**changes: float) -> Measured:
    values = {"tokens": 100.0, "peak_mib": 900.0, "imports_mib": 400.0, "loss": 0.02, "grad_norm": 1.5}
    return Measured(seconds=(2.0, 4.0), **{**values, **changes})


def compared(ours: Measured, theirs: Measured) -> Compared:
    return Compared(
        name="float32",
        description="a case",
        dtype="float32",
        useful_flops=6e9,
        rate=8e9,
        rounds={"rlkl": [ours], "trl": [theirs]},
    )


def test_both_sides_do_the_same_work(tmp_path: Path) -> None:
    """With a reference and long-tailed lengths: the same loss and gradient norm in the first step."""
    from benchmarks.against import trl_side

    workload = write_workload(tiny(CASES["long_tail"]), tmp_path)
    lengths = set(map(len, workload.completions))
    ours, theirs = rlkl_side.run(workload, steps=1), trl_side.run(workload, steps=1)
    found = compared(ours, theirs)

    assert len(lengths) > 2
    assert ours.loss > 1e-4
    assert ours.grad_norm > 0.1
    assert found.differences()["loss"] < 2e-5
    assert found.differences()["grad_norm"] < 2e-5
    found.check()
    assert len(ours.seconds) == len(theirs.seconds) == 1


@pytest.mark.parametrize("changes", [{"loss": 0.0201}, {"grad_norm": 1.51}, {"grad_norm": float("nan")}])
def test_unequal_work_is_refused(changes: dict[str, float]) -> None:
    compared(measured(), measured(loss=0.0200001)).check()
    with pytest.raises(SystemExit, match="compare different work"):
        compared(measured(**changes), measured()).check()


def test_whole_steps_are_compared_by_their_tokens() -> None:
    theirs = Measured(seconds=(4.0,), tokens=105.0)
    found = replace(compared(Measured(seconds=(2.0,), tokens=100.0), theirs), whole=True)
    found.check()
    assert row(found)[3:] == ["0.50", *["-"] * 7, "tokens 5e-02"]

    with pytest.raises(SystemExit, match="compare different work"):
        replace(found, rounds={**found.rounds, "trl": [replace(theirs, tokens=130.0)]}).check()


def test_a_row_has_ratios_and_the_share_of_the_matrix_rate() -> None:
    ours, theirs = measured(), replace(measured(peak_mib=1200.0, imports_mib=600.0), seconds=(6.0,))
    cells = dict(zip(HEADER[:7], row(compared(ours, theirs)), strict=False))

    assert cells["seconds rlkl"] == "3.00 (3.00 to 3.00)"
    assert row(compared(ours, theirs))[3:11] == ["0.50", "25%", "12%", "900", "1,200", "0.75", "500", "600"]


def test_the_page_has_a_row_a_case_and_warns_of_a_busy_machine() -> None:
    text = page([compared(measured(), measured())], load=99.0, threads=2)

    assert text.count("\n| float32 |") == 1
    assert "The machine was busy (load 99.00" in text
    assert "busy" not in page([], load=0.0, threads=2)


def test_useful_operations_by_hand() -> None:
    workload = Workload(
        case=Case(prompts=1, samples=2, prompt_tokens=3),
        folder=Path(),
        parameters=10,
        prompts=((5, 6, 7),),
        completions=((8, 9), (8,)),
        rewards=(0.0, 1.0),
    )
    assert workload.tokens == 9
    assert workload.useful_flops == (2 + 4 + 2) * 10 * 9
    assert replace(workload, case=replace(workload.case, kl_coef=0.0)).useful_flops == (2 + 4) * 10 * 9


def test_a_side_reads_the_work_from_its_files_and_prints_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = write_workload(tiny(CASES["no_reference"]), tmp_path)
    assert read_workload(tmp_path) == workload
    assert workload.case.shape == TINY

    side.main("rlkl", str(tmp_path), "2", "1")
    printed = Measured.load(capsys.readouterr().out.rpartition(side.MARK)[2])

    assert len(printed.seconds) == 2
    assert printed.loss == pytest.approx(0.0, abs=1e-6)
    assert printed.grad_norm > 0.1
    assert printed.peak_mib >= printed.imports_mib > 100


def test_the_matrix_rate_is_that_of_a_computer() -> None:
    assert 1e8 < matrix_rate(torch.float32, size=256, turns=2) < 1e15
