"""The Ray that a run starts for itself."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rlkl.actors.cluster import connect
from rlkl.recipe import ClusterSection
from tests.listening import descendants, listening_of


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_worker_niceness", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        assert connect(ClusterSection(), cpus=1)
        yield
        ray.shutdown()


def test_actors_run_at_the_priority_of_the_run(own_ray: None):
    """At Ray's default of 15, another busy program takes nearly all of their CPU time."""

    @ray.remote
    def niceness() -> int:
        return os.nice(0)

    assert ray.get(niceness.remote()) == os.nice(0)


def test_its_ports_are_on_the_loopback(own_ray: None):
    ports = listening_of(descendants())
    assert len(ports) >= 3, "those of Ray's control store, its raylet and its object manager"
    assert {address for address, _ in ports} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_client_without_the_token_is_refused(own_ray: None, tmp_path: Path):
    """Other users of this machine can reach the loopback, and who can talk to Ray can run code."""
    code = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    none = {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    for given in (wrong, none):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment | given, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0
        assert "token" in done.stderr.lower(), done.stderr[-3000:]


def test_its_folder_and_its_token_are_closed_to_others(own_ray: None):
    socket = Path(ray.nodes()[0]["ObjectStoreSocketName"])
    assert stat.S_IMODE(socket.parents[3].stat().st_mode) == 0o700
    if not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        assert stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode) == 0o600
