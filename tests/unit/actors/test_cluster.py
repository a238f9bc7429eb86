import socket
from typing import Any

import pytest
from ray._private import services

from rlkl.actors.cluster import connect
from rlkl.errors import EnvironmentProblem
from rlkl.recipe import ClusterSection


def test_an_address_where_nothing_listens_is_refused():
    with socket.socket() as held:  # bound but not listening: nobody else gets the port, and it refuses
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"

        with pytest.raises(EnvironmentProblem, match=rf"no Ray cluster answers at '{address}'.*refused"):
            connect(ClusterSection(address=address), cpus=1)


def test_an_address_of_the_dashboard_is_refused():
    refused = r"no Ray cluster answers at 'http://localhost:8265' \(Invalid Ray address"
    with pytest.raises(EnvironmentProblem, match=refused):
        connect(ClusterSection(address="http://localhost:8265"), cpus=1)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_ray_that_misses_its_own_limit_is_started_again(failures: int, monkeypatch: pytest.MonkeyPatch):
    started: list[str] = []
    children: list[Any] = []

    def init(**options: Any) -> None:
        started.append(options["address"])
        if len(started) <= failures:
            children.append(services.ConsolePopen(["sleep", "3600"]))
            raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    if failures == 2:
        assert connect(ClusterSection(), cpus=1)
    else:
        with pytest.raises(EnvironmentProblem, match="Ray does not start on this machine: The current node timed out"):
            connect(ClusterSection(), cpus=1)
    assert started == ["local"] * 3
    assert [child.poll() for child in children] == [-9] * failures, "what a failed start leaves is ended"
