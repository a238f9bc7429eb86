"""`rlkl report`, and the report at the end of a run."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reward_models.training.recipe import SftRecipe
from rlkl.analysis.report.at_end import report_at_end
from rlkl.cli import main
from rlkl.commands.report import run_folders
from rlkl.errors import CheckpointError
from rlkl.recipe.io import dump_recipe, load_section
from rlkl.sweeps.state import move_aside
from tests.run_folders import record_of, write_metrics, write_run


def test_a_report_of_one_run_is_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run", steps=2)
    assert main(["report", str(run)]) == 0
    assert f"report  {run / 'report.html'} (0.9 MiB, 1 run(s))" in capsys.readouterr().out
    assert (run / "report.html").stat().st_size < 2_000_000


def test_a_report_of_several_runs_is_here_or_at_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = [str(write_run(tmp_path / name, f"seed={name}", steps=2)) for name in "12"]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *runs]) == 0
    assert main(["report", *runs, "--out", "other.html", "--samples", "0"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["other.html", "report.html"]


def test_a_folder_of_runs_stands_for_all_runs_below_it(tmp_path: Path):
    runs = [write_run(tmp_path / "sweep" / arm / "kl-0.1" / f"seed-{seed}") for arm in ("a", "b") for seed in (1, 2)]
    write_run(runs[0] / "nested")
    alone = write_run(tmp_path / "alone")
    assert run_folders([tmp_path / "sweep", alone, runs[0]]) == [*runs, alone]
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        run_folders([runs[0] / "samples"])


def test_a_warm_start_among_runs_has_no_page(tmp_path: Path):
    run = write_run(tmp_path / "grpo", steps=2)
    warm = tmp_path / "warm"
    warm.mkdir()
    (warm / "recipe.yaml").write_text(dump_recipe(load_section(SftRecipe, "reviews_sft")))
    assert run_folders([tmp_path]) == [run]
    with pytest.raises(CheckpointError, match="is the folder of `rlkl sft`"):
        run_folders([warm])


def test_an_attempt_that_a_sweep_moved_aside_is_not_another_run(tmp_path: Path):
    run = write_run(tmp_path / "arm" / "point" / "seed-1", "seed=1", steps=2)
    aside = move_aside(run)
    write_run(aside / "nested", "seed=1", steps=2)
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        run_folders([tmp_path])
    write_run(run, "seed=1", steps=2)
    assert run_folders([tmp_path]) == [run]
    assert run_folders([aside]) == [aside], "given itself"


def test_the_last_page_of_a_watch_has_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = [write_run(tmp_path / "sweep" / "1", steps=2)]
    pages: list[tuple[list[Path], int | None]] = []

    def write(folders: list[Path], out: Path, *, samples: int, refresh_s: int | None = None) -> None:
        pages.append((folders, refresh_s))
        out.touch()

    def sleep(_: float) -> None:
        runs.append(write_run(tmp_path / "sweep" / "2", steps=2))
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkl.analysis.report.report.write_report", write)
    monkeypatch.setattr("rlkl.commands.report.time.sleep", sleep)
    assert main(["report", str(tmp_path / "sweep"), "--watch", "1", "--out", str(tmp_path / "page.html")]) == 0
    assert pages == [(runs[:1], 1), (runs, None)]


@pytest.mark.parametrize(("option", "value"), [("--samples", "-1"), ("--watch", "0")])
def test_numbers_that_mean_nothing_are_refused(
    tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["report", str(write_run(tmp_path / "run")), option, value]) == 2
    assert f"{option} {value}: expected a whole number" in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path: Path):
    code = "import sys; sys.modules['altair'] = None; from rlkl.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", str(write_run(tmp_path / "run"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'rlkl[report]'" in done.stderr


def test_watch_writes_the_file_again_until_it_is_stopped(tmp_path: Path):
    run = write_run(tmp_path / "run", steps=2)
    page = run / "report.html"
    watching = subprocess.Popen(
        [sys.executable, "-m", "rlkl", "report", str(run), "--watch", "1"],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if the tests run in the background
    )
    try:
        first = _wait(page, "")
        assert 'http-equiv="refresh" content="1"' in first
        write_metrics(tmp_path, [record_of(step, 0, 1.0) for step in range(1, 5)])
        (tmp_path / "metrics.jsonl").rename(run / "metrics.jsonl")  # at once: the command may be reading it
        _wait(page, first)
    finally:
        watching.send_signal(signal.SIGINT)
        watching.wait(120)
    assert watching.returncode == 0
    assert 'http-equiv="refresh" content' not in page.read_text()


def _wait(page: Path, before: str) -> str:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if page.is_file() and (text := page.read_text()) != before:
            return text
        time.sleep(0.1)
    raise AssertionError(f"{page} was not written again")


def test_the_report_at_the_end_of_a_run_is_written_or_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = write_run(tmp_path / "run", steps=2)
    with caplog.at_level(logging.INFO):
        report_at_end(run)
        assert (run / "report.html").is_file()
        (run / "metrics.jsonl").write_text('{"step":\n{"step": 2}\n')
        report_at_end(run)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "WARNING"]
    assert "line 1 is not JSON" in caplog.records[1].getMessage()
