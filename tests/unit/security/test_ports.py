"""Ports listen at one address, and on one machine that is the loopback. Ray's: tests/integration/test_own_ray.py."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

from rlkl.errors import EnvironmentProblem
from rlkl.learner.ranks import LOOPBACK, open_store
from tests.listening import listening_at


def test_the_store_of_the_ranks_listens_on_the_loopback_only():
    store = open_store(LOOPBACK, size=2, timeout_s=30)
    assert listening_at(store.port) == {LOOPBACK}
    other = TCPStore(LOOPBACK, store.port, 2, is_master=False, timeout=timedelta(seconds=30))
    other.set("key", "value")
    assert store.get("key") == b"value"


def test_the_search_of_this_file_finds_a_port_that_is_open_to_all():
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert listening_at(server.getsockname()[1]) == {"0.0.0.0"}


def test_an_address_that_the_machine_does_not_have_is_refused():
    with pytest.raises(EnvironmentProblem, match=r"cannot meet at 203\.0\.113\.9: no network interface"):
        open_store("203.0.113.9", size=2, timeout_s=30)


def test_nothing_in_rlkl_listens_at_all_addresses():
    root = Path(__file__).resolve().parents[3]
    files = [*(root / "rlkl").rglob("*.py"), *(root / "reward_models").rglob("*.py"), *(root / "launch").glob("*.sh")]
    assert [file.name for file in files if "0.0.0.0" in file.read_text()] == []
