"""`rlkl doctor --cluster` on two real raylets of this machine, and where a node cannot do what it is asked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from rlkl.actors.cluster_probe import ClusterProbe
from rlkl.cli import main
from rlkl.errors import EnvironmentProblem, RlklError
from rlkl.system.node import NodeReport, installed_versions

DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setattr(
            ray_constants, "ENABLE_RAY_CLUSTER", False
        )  # this process may have read the variable before
        head = {"num_cpus": 2, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            made.add_node(num_cpus=1, node_ip_address="127.0.0.1")
            made.wait_for_nodes()
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def probe(cluster: Cluster) -> Iterator[ClusterProbe]:
    made = ClusterProbe(cluster.address, timeout_s=DEADLINE_S)
    yield made
    made.close()


def test_the_command_looks_at_both_nodes(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shared = tmp_path / "new" / "runs"
    try:
        code = main(["doctor", "--cluster", "--address", str(cluster.address), "--run-dir", str(shared), "--mib", "2"])
    finally:
        ray.shutdown()
    printed = capsys.readouterr().out
    assert code == 0, printed
    nodes = [line for line in printed.splitlines() if line.startswith("127.0.0.1 (")]
    assert len(nodes) == 2
    assert ") head" in nodes[0]
    assert "the same on all nodes: python" in printed
    assert "2 MiB between 2 nodes" in printed
    assert "all-reduce, gloo" in printed
    assert "broadcast, gloo" in printed
    assert "within 0." in printed
    assert "all nodes share" in printed
    assert printed.splitlines()[-1] == "All is well"
    assert not shared.exists()


def test_no_cluster_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cluster", "--address", "127.0.0.1:1"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "no Ray cluster answers at" in printed
    assert printed.endswith("A run on this cluster is blocked by: cluster")


def test_both_nodes_describe_this_machine(probe: ClusterProbe) -> None:
    assert [site.is_head for site in probe.sites] == [True, False]
    for report in probe.reports().values():
        assert isinstance(report, NodeReport)
        assert report.versions == installed_versions()
        assert report.cpus == len(os.sched_getaffinity(0))
    offsets = probe.offsets(probe.sites)
    assert max(abs(offset.seconds) - offset.error_s for offset in offsets.values()) < 0.01  # one clock


def test_a_folder_that_a_node_cannot_see_is_named(probe: ClusterProbe, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/self is another folder for each process."""
    where = Path("/proc/self/cwd")
    monkeypatch.chdir("/dev/shm")
    problems = probe.check_shared(where, probe.sites)
    assert all("is not shared with node 127.0.0.1 (" in problem for problem in problems.values()), problems
    assert list(Path("/dev/shm").glob(".shared-*")) == []


def test_a_node_that_ends_while_nodes_exchange_is_named_in_time(probe: ClusterProbe) -> None:
    other = probe.sites[1]
    ray.kill(probe._actors[other])
    started = time.monotonic()
    with pytest.raises(EnvironmentProblem, match=r"127\.0\.0\.1 \(\w{6}\) ended while it was asked to connect"):
        probe.speeds(probe.sites, gpus=0, mib=1)
    assert time.monotonic() - started < DEADLINE_S
    answer = probe.reports()[other]
    assert isinstance(answer, RlklError)
    assert other.name in str(answer)


def test_a_late_node_is_named(cluster: Cluster) -> None:
    probe = ClusterProbe(cluster.address, timeout_s=0.01)
    try:
        with pytest.raises(RlklError, match=r"127\.0\.0\.1 \(\w{6}\) did not open a port within 0.01 s"):
            probe.speeds(probe.sites, gpus=0, mib=1)
    finally:
        probe.close()
