from __future__ import annotations

import threading
import time

import pytest

from rlkl.errors import DeadlineError
from rlkl.tracking.records import writer
from rlkl.tracking.records.writer import BackgroundWriter


def _fail(gate: threading.Event | None = None) -> None:
    if gate is not None:
        gate.wait(60)
    raise OSError("disk full")


def test_jobs_run_in_order_and_flush_waits_for_them():
    done: list[int] = []
    gate = threading.Event()
    background = BackgroundWriter()
    background.submit(lambda: done.append(int(gate.wait(60))))
    background.submit(lambda: done.append(2))
    assert done == []
    gate.set()
    background.flush()
    assert done == [1, 2]
    background.close()


def test_an_error_comes_out_at_flush_and_only_once():
    background = BackgroundWriter()
    background.submit(_fail)
    with pytest.raises(OSError, match="disk full"):
        background.flush()
    background.flush()
    background.close()


def test_a_job_after_a_failed_one_says_so():
    background = BackgroundWriter()
    gate = threading.Event()
    background.submit(lambda: _fail(gate))
    gate.set()
    with pytest.raises(OSError, match="disk full"):
        _submit_for_a_while(background)
    background.close()


def _submit_for_a_while(background: BackgroundWriter) -> None:
    for _ in range(500):
        background.submit(lambda: None)
        time.sleep(0.01)


def test_a_stuck_job_ends_in_a_deadline_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "FLUSH_TIMEOUT_S", 0.05)
    gate, done = threading.Event(), []
    background = BackgroundWriter()
    background.submit(lambda: done.append(gate.wait(60)))
    with pytest.raises(DeadlineError, match=r"1 records unwritten after 0\.05 s"):
        background.flush()
    gate.set()
    background.close()
