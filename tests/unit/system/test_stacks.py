"""Stacks of real processes that wait, hang, or cannot answer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rlkl.system.stacks import ask, own_stacks, stacks_of

HANGS = """
import os, sys, threading, time
from rlkl.system.stacks import answer_signal

reads, writes = os.pipe()

def waits_for_ever():
    os.write(writes, b".")
    time.sleep(600)

def is_stuck():
    for _ in range(2 if child else 1):
        os.read(reads, 1)  # one is there
    print(child, flush=True)
    threading.Event().wait()

if sys.argv[1] == "answers":
    answer_signal()
child = os.fork() if sys.argv[2] == "forks" else 0
if sys.argv[2] == "forks" and child == 0:
    waits_for_ever()
threading.Thread(target=waits_for_ever, daemon=True).start()
is_stuck()
"""


@contextmanager
def hanging(answers: str = "answers", forks: str = "alone") -> Iterator[tuple[int, int]]:
    """Start a process that hangs; yield its id and that of its child, 0 without one."""
    process = subprocess.Popen([sys.executable, "-c", HANGS, answers, forks], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process.pid, child
    finally:
        for one in filter(None, (child, process.pid)):
            os.kill(one, signal.SIGKILL)
        process.wait()


def test_all_threads_of_a_hanging_process_are_shown_each_time():
    with hanging() as (process, _):
        for _ in range(2):
            written = stacks_of(process, timeout_s=60.0)
            assert written.count("in is_stuck") == 1
            assert written.count("in waits_for_ever") == 1
            assert written.index("in is_stuck") < written.index("in waits_for_ever")


def test_processes_that_it_forked_are_asked_too():
    with hanging(forks="forks") as (process, child):
        written = stacks_of(process, timeout_s=60.0)
    of_parent, _, of_child = written.partition(f"Process {child}:")
    assert "in is_stuck" in of_parent
    assert "in waits_for_ever" in of_child
    assert "in is_stuck" not in of_child


def test_stacks_that_come_in_parts_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "kill", lambda *_: None)
    sizes = [0, 10, 10, 20, 30]
    assert ask(1, lambda: sizes.pop(0) if len(sizes) > 1 else sizes[0], timeout_s=60.0) == 0
    assert sizes == [30]


def test_a_process_that_did_not_agree_gets_no_signal():
    with hanging("is silent") as (process, _):
        written = stacks_of(process)
        assert re.fullmatch(rf"Process {process} cannot write its stacks\. Its state is [RS]\.\n", written)
        os.kill(process, 0)


def test_a_stopped_process_is_called_stopped():
    with hanging() as (process, _):
        os.kill(process, signal.SIGSTOP)
        os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOWAIT)
        written = stacks_of(process, timeout_s=0.2)
    assert written.endswith("It has written nothing within 0.2 s. It is stopped, as by SIGSTOP.\n")


def test_a_process_that_has_ended_is_called_so():
    with hanging() as (process, _):
        pass
    assert stacks_of(process) == f"Process {process} cannot write its stacks. It has ended.\n"


def test_the_own_stacks_have_this_test():
    assert "in test_the_own_stacks_have_this_test" in own_stacks()
