from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rlkl.errors import LearnerError, RewardError
from rlkl.recipe import Recipe
from rlkl.tracking import tracker as tracker_module
from rlkl.tracking.hacking.signals import Reading
from rlkl.tracking.hacking.watch import HackingWatch, Sighting
from rlkl.tracking.records.reading import eval_sample_files, read_metrics, sample_files
from rlkl.tracking.sinks import opening as sinks_opening
from rlkl.tracking.sinks import recorder as sinks_recorder
from rlkl.tracking.tracker import RunSummary, Tracker
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup


def _recipe(steps: int, **tracking: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "steps": steps,
            "model": {"path": "task:arithmetic"},
            "data": {"source": "task:arithmetic"},
            "tracking": {"wandb": "off", "console": "plain", "samples_every": 4, **tracking},
        }
    )


def _groups(step: int) -> list[RolloutGroup]:
    rollout = Rollout(
        sample_index=0,
        completion=Completion(token_ids=(5, 1), logprobs=(-0.5, -0.1), finish_reason="stop", text=str(step)),
        reward=1.0,
        components={"gold": 1.0},
        weights_version=step,
    )
    return [RolloutGroup(prompt=Prompt(id="p", text="1+1=", token_ids=(3,)), rollouts=(rollout,))]


def _metrics(step: int) -> dict[str, float]:
    return {
        "reward/mean": step / 7,
        "kl/policy_to_reference": 0.25,
        "rollout/tokens_per_s": 0.5,
        "time/rollout_s": 4.0,
        "time/step_s": STEP_S,
    }


STEP_S = 6.0


def _steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last):
        tracker.log(step, _metrics(step), _groups(step))


def test_sample_files_are_in_the_order_of_their_steps(tmp_path: Path):
    (tmp_path / "samples").mkdir()
    for kind in ("step", "eval"):
        for step in (1_000_000, 999_999):
            (tmp_path / "samples" / f"{kind}_{step:06d}.parquet").touch()
    assert [step for step, _ in sample_files(tmp_path)] == [999_999, 1_000_000]
    assert [step for step, _ in eval_sample_files(tmp_path)] == [999_999, 1_000_000]


def _sample_names(run_dir: Path) -> list[str]:
    return sorted(file.name for file in (run_dir / "samples").iterdir())


def test_samples_come_at_the_first_each_nth_and_the_last_step(tmp_path: Path):
    tracker = Tracker(tmp_path, _recipe(10), run_id=None, first_step=0)
    _steps(tracker, 0, 10)
    tracker.flush()
    assert _sample_names(tmp_path) == [f"step_{finished:06d}.parquet" for finished in (1, 4, 8, 10)]
    assert pq.read_table(tmp_path / "samples" / "step_000008.parquet")["completion"].to_pylist() == ["7"]
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 11))
    tracker.finish(RunSummary(interrupted=False, policy_dir=None))


def test_a_killed_and_resumed_run_leaves_the_records_of_one_that_never_stopped(tmp_path: Path):
    whole = Tracker(tmp_path / "whole", _recipe(10), run_id=None, first_step=0)
    _steps(whole, 0, 10)
    whole.finish(RunSummary(interrupted=False, policy_dir=None))
    killed = Tracker(tmp_path / "cut", _recipe(10), run_id=None, first_step=0)
    _steps(killed, 0, 9)
    killed.flush()
    resumed = Tracker(tmp_path / "cut", _recipe(10), run_id=killed.run_id, first_step=6)
    assert resumed.run_id == killed.run_id
    assert _sample_names(tmp_path / "cut") == ["step_000001.parquet", "step_000004.parquet"]
    _steps(resumed, 6, 10)
    resumed.finish(RunSummary(interrupted=False, policy_dir=None))
    for name in ("metrics.jsonl", *(f"samples/{name}" for name in _sample_names(tmp_path / "whole"))):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_new_runs_get_ids_of_their_own(tmp_path: Path):
    ids = {Tracker(tmp_path / name, _recipe(1), run_id=None, first_step=0).run_id for name in ("a", "b")}
    assert len(ids) == 2


def test_a_metric_without_a_definition_is_refused(tmp_path: Path):
    tracker = Tracker(tmp_path, _recipe(3), run_id=None, first_step=0)
    with pytest.raises(AssertionError, match="reward/per/token/value"):
        tracker.log(0, {"reward/per/token/value": 1.0}, [])


def test_steps_come_in_order(tmp_path: Path):
    tracker = Tracker(tmp_path, _recipe(3), run_id=None, first_step=1)
    with pytest.raises(AssertionError, match="step 2 logged where step 1 is due"):
        tracker.log(2, _metrics(2), [])


def test_a_nan_is_refused_before_anything_shows_it(tmp_path: Path):
    tracker = Tracker(tmp_path, _recipe(3), run_id=None, first_step=0)
    with pytest.raises(LearnerError, match="step 1 produced loss/total = nan"):
        tracker.log(0, {"loss/total": math.nan}, _groups(0))
    tracker.flush()
    assert not (tmp_path / "samples").exists()


def test_an_error_in_writing_samples_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_space(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tracker_module, "write_samples", no_space)
    tracker = Tracker(tmp_path, _recipe(3), run_id=None, first_step=0)
    _steps(tracker, 0, 1)
    with pytest.raises(OSError, match="no space left"):
        tracker.flush()


def test_a_step_is_recorded_before_an_earlier_error_in_writing_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_space(*_: object) -> None:
        raise OSError("no space left")

    def sets_in(*_: object) -> Sighting:
        return Sighting(metrics={}, set_in={"length": Reading(level=2.0, finding="longer")}, suspects={"length": []})

    monkeypatch.setattr(tracker_module, "write_samples", no_space)
    monkeypatch.setattr(tracker_module, "warn", lambda *_: {})
    tracker = Tracker(tmp_path, _recipe(3), run_id=None, first_step=0)
    monkeypatch.setattr(HackingWatch, "look", lambda *_: Sighting(metrics={}, set_in={}, suspects={}))
    _steps(tracker, 0, 1)
    monkeypatch.setattr(HackingWatch, "look", sets_in)
    end = time.monotonic() + 30
    while not tracker._writer._errors and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(OSError, match="no space left"):
        tracker.log(1, _metrics(1), _groups(1))

    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_the_end_says_what_was_reached_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracker = Tracker(tmp_path, _recipe(8), run_id=None, first_step=0)
    tracker.note("starting rollout workers")
    _steps(tracker, 0, 8)
    tracker.finish(RunSummary(interrupted=False, policy_dir=tmp_path / "policy"))
    out = capsys.readouterr().out
    assert out.startswith("starting rollout workers\n")
    summary = out[out.index("finished 8 of 8 steps in 0:00:") :]
    for part in ("0.000 -> 1.000", "0.250 nats per sequence", "16 tokens", "policy", "metrics.jsonl", "samples"):
        assert part in summary
    assert f"{tmp_path / 'policy'}\n" in summary
    assert "--resume" not in summary


def test_the_end_names_only_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracker = Tracker(tmp_path, _recipe(8), run_id=None, first_step=0)
    tracker.fail(RewardError("no reward"))
    summary = capsys.readouterr().out
    assert "metrics.jsonl" in summary
    assert "samples" not in summary


def test_the_summary_of_a_resumed_run_is_of_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = Tracker(tmp_path, _recipe(8), run_id=None, first_step=0)
    _steps(first, 0, 5)
    first.finish(RunSummary(interrupted=True, policy_dir=None))
    out = capsys.readouterr().out
    assert re.search(r"interrupted after 5 of 8 steps in 0:00:\d\d\n", out)
    assert re.search(r"sampled +10 tokens\n", out)
    second = Tracker(tmp_path, _recipe(8), run_id=first.run_id, first_step=4)
    _steps(second, 4, 8)
    second.finish(RunSummary(interrupted=False, policy_dir=None))
    out = capsys.readouterr().out
    took = re.search(r"finished 8 of 8 steps in 0:0(\d):(\d\d); resumed after step 4\n", out)
    assert took
    assert 60 * int(took[1]) + int(took[2]) >= 4 * STEP_S, "the steps before the resume count"
    assert re.search(r"reward +0\.000 -> 1\.000 +\(best 1\.000\)\n", out)
    assert re.search(r"sampled +16 tokens\n", out)


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracker = Tracker(tmp_path, _recipe(8), run_id=None, first_step=0)
    _steps(tracker, 0, 3)
    tracker.finish(RunSummary(interrupted=True, policy_dir=None))
    out = capsys.readouterr().out
    assert "interrupted after 3 of 8 steps" in out
    assert f"rlkl train --resume {tmp_path}\n" in out


def test_a_failed_run_closes_wandb_as_failed_and_shows_its_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    closed: list[bool] = []

    class FakeWandbRun:
        run_id = "x"

        def __init__(self, *_: object, **__: object) -> None: ...

        def log(self, *_: object) -> None: ...

        def log_samples(self, *_: object) -> None:
            raise OSError("service gone")

        def finish(self, *, failed: bool) -> None:
            closed.append(failed)

        def alert(self, title: str, text: str, *, level: str) -> None:
            raise AssertionError("records nothing after a failure")

        def flush(self) -> None: ...

        def places(self) -> dict[str, str]:
            return {"W&B": "wandb sync here"}

    monkeypatch.setattr(sinks_opening, "WandbRun", FakeWandbRun)
    tracker = Tracker(tmp_path, _recipe(8, wandb="offline"), run_id=None, first_step=0)
    (tmp_path / "checkpoints" / "step_000001").mkdir(parents=True)
    _steps(tracker, 0, 1)
    tracker.fail(RewardError("reward 'gold' raised"))
    out = capsys.readouterr().out
    assert closed == [True]
    assert "RewardError after 1 of 8 steps" in out
    assert "wandb sync here" in out
    assert f"rlkl train --resume {tmp_path}\n" in out


class UnsteadyWandb:
    """W&B as the tracker uses it, with one method that fails or hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, does: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self.run_id = "x"
        self._bad, self._does = method, does
        monkeypatch.setattr(sinks_opening, "WandbRun", lambda *_, **__: self)

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method == self._bad:
            self._does()

    def log(self, *_: object) -> None:
        self._call("log")

    def log_samples(self, *_: object) -> None:
        self._call("log_samples")

    def finish(self, *, failed: bool) -> None:
        self._call("finish")

    def flush(self) -> None: ...

    def places(self) -> dict[str, str]:
        return {"W&B": "wandb sync here"}


def _picture_does_not_fit() -> None:
    raise ValueError("the picture is too large")


@pytest.mark.parametrize(
    ("method", "before"), [("log", ["log"]), ("log_samples", ["log", "log_samples"]), ("finish", [])]
)
def test_an_error_of_wandb_is_warned_of_once_and_ends_its_record_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str, before: list[str]
):
    wandb = UnsteadyWandb(monkeypatch, method, _picture_does_not_fit)
    tracker = Tracker(tmp_path, _recipe(8, wandb="offline"), run_id=None, first_step=0)
    for step in range(8):
        tracker.log(step, _metrics(step), _groups(step))
        tracker.flush()
    tracker.finish(RunSummary(interrupted=False, policy_dir=None))

    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 8
    assert len(_sample_names(tmp_path)) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "W&B failed (ValueError: the picture is too large)" in caplog.text
    assert wandb.calls[: len(before)] == before
    assert wandb.calls[-1] == "finish", "what W&B has is closed properly"
    assert method == "finish" or "log" not in wandb.calls[len(before) :]


def test_a_wandb_that_hangs_costs_its_patience_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(sinks_recorder, "PATIENCE_S", 0.2)
    gate = threading.Event()

    def hangs() -> None:
        gate.wait(120)

    UnsteadyWandb(monkeypatch, "log", hangs)
    tracker = Tracker(tmp_path, _recipe(8, wandb="offline"), run_id=None, first_step=0)
    started = time.monotonic()
    for step in range(8):
        tracker.log(step, _metrics(step), _groups(step))
        tracker.flush()
    tracker.finish(RunSummary(interrupted=False, policy_dir=None))
    took = time.monotonic() - started
    gate.set()

    assert took < 60
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 8
    assert caplog.text.count("W&B failed (DeadlineError") == 1


def test_a_drain_logs_what_could_not_be_written_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def no_space(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tracker_module, "write_samples", no_space)
    tracker = Tracker(tmp_path, _recipe(3), run_id=None, first_step=0)
    _steps(tracker, 0, 1)
    assert [str(error) for error in tracker.drain()] == ["no space left"]
    assert "records of the run are incomplete: OSError: no space left" in caplog.text
    tracker.flush()
