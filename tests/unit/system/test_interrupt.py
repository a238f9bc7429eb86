import os
import signal

import pytest

from rlkl.system.interrupt import StopRequest, Terminated, signal_of, sigterm_raises


def test_the_first_signal_is_noted_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)

    with StopRequest() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_interrupts_a_block_that_has_nothing_to_save():
    with StopRequest() as stop:
        with pytest.raises(Terminated), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM


def test_a_request_that_is_entered_again_keeps_its_signal():
    stop = StopRequest()
    with stop:
        os.kill(os.getpid(), signal.SIGINT)
    with stop, pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal_number == signal.SIGINT


def test_sigterm_raises_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(Terminated), sigterm_raises():
        os.kill(os.getpid(), signal.SIGTERM)

    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_known_where_a_library_replaces_its_error():
    """Ray catches the error of a signal while it waits, and raises a KeyboardInterrupt of its own."""
    with sigterm_raises():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal_of(KeyboardInterrupt()) == signal.SIGTERM
    with sigterm_raises():
        assert signal_of(KeyboardInterrupt()) == signal.SIGINT
