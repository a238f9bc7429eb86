"""The judgement of `rlkl doctor --cluster` on nodes that differ, as data. Real nodes: tests/integration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlkl.actors.cluster_probe import Offset, Site, Speed
from rlkl.actors.node_probe import Timing
from rlkl.cli import main
from rlkl.commands.doctor_cluster import check_clocks, check_resources, check_versions, speed_checks
from rlkl.system.node import NodeReport, code_digest

HEAD = Site(name="10.0.0.1 (aaaaaa)", node_id="a", address="10.0.0.1", is_head=True, cpus=64, gpus=2)
OTHER = replace(HEAD, name="10.0.0.2 (bbbbbb)", node_id="b", address="10.0.0.2", is_head=False)
VERSIONS = {"python": "3.12.4", "torch": "2.13.0", "vllm": "0.32.0", "rlkl": "0.1.0"}
REPORT = NodeReport(
    host="gpu-1",
    versions=VERSIONS,
    cpus=64,
    memory_gib=512.0,
    gpus=("NVIDIA H100 80GB HBM3, 81559 MiB",) * 2,
    torch_gpus=2,
    shm_gib=256.0,
    disk_gib=900.0,
)


def test_a_version_that_differs_from_the_heads_is_named() -> None:
    nodes = {"10.0.0.1": VERSIONS, "10.0.0.2": VERSIONS | {"torch": "2.12.1", "vllm": "0.31.0"}, "10.0.0.3": VERSIONS}
    (check,) = check_versions(nodes, VERSIONS)
    assert (check.name, check.blocks) == ("versions of node 10.0.0.2", True)
    assert check.detail == "torch 2.12.1, the head has 2.13.0; vllm 0.31.0, the head has 0.32.0"
    (check,) = check_versions({"10.0.0.1": VERSIONS}, {"python": "3.11.7"} | {**VERSIONS, "python": "3.11.7"})
    assert (check.name, check.detail) == ("versions of this command", "python 3.11.7, the head has 3.12.4")
    (check,) = check_versions({"10.0.0.1": VERSIONS, "10.0.0.2": {"python": "3.12.4"}}, VERSIONS)
    assert check.detail.startswith("torch not installed, the head has 2.13.0; ")


def test_equal_versions_are_listed() -> None:
    (check,) = check_versions({"10.0.0.1": VERSIONS, "10.0.0.2": dict(VERSIONS)}, VERSIONS)
    assert (check.name, check.status) == ("versions", "ok")
    assert "torch 2.13.0, vllm 0.32.0" in check.detail


def test_two_checkouts_of_one_version_differ(tmp_path: Path) -> None:
    for name, text in (("one", "x = 1\n"), ("two", "x = 2\n"), ("three", "x = 1\n")):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "module.py").write_text(text)
    one, two, three = (code_digest(tmp_path / name) for name in ("one", "two", "three"))
    assert one == three != two


def test_resources_that_suffice_take_one_line() -> None:
    (check,) = check_resources({HEAD: REPORT, OTHER: REPORT})
    assert (check.status, check.detail) == ("ok", "4 on 2 node(s)")


def test_what_a_node_lacks_is_named() -> None:
    poor = replace(REPORT, torch_gpus=0, shm_gib=0.06, disk_gib=3.0)
    checks = {check.name: check for check in check_resources({HEAD: REPORT, OTHER: poor})}
    assert checks["GPUs of node 10.0.0.2 (bbbbbb)"].detail == "nvidia-smi lists 2, torch uses 0, Ray gives out 2"
    assert checks["/dev/shm of node 10.0.0.2 (bbbbbb)"].detail == "0.1 GiB, expected 16 GiB or more"
    assert "3.0 GiB free" in checks["disk of node 10.0.0.2 (bbbbbb)"].detail
    without = replace(REPORT, gpus=(), torch_gpus=0, shm_gib=8.0)
    assert len(check_resources({replace(HEAD, gpus=0): without})) == 1  # 1 GiB is enough without GPUs


def test_a_clock_is_late_only_beyond_what_the_network_explains() -> None:
    (fine,) = check_clocks({HEAD: Offset(seconds=0.001, error_s=0.001), OTHER: Offset(seconds=1.4, error_s=0.5)})
    assert (fine.name, fine.status) == ("clocks", "ok")
    (late,) = check_clocks({HEAD: Offset(seconds=0.0, error_s=0.01), OTHER: Offset(seconds=-7.25, error_s=0.01)})
    assert (late.name, late.detail) == ("clock of node 10.0.0.2 (bbbbbb)", "7.2 s behind this machine's")


def test_speeds_are_the_size_by_the_time() -> None:
    speed = Speed(backend="nccl", processes=2, mib=64, timing=Timing(all_reduce_s=0.002, broadcast_s=0.001))
    details = [check.detail for check in speed_checks(speed, nodes=2)]
    assert details == ["64 MiB between 2 nodes: 2.0 ms, 33.55 GB/s", "64 MiB between 2 nodes: 1.0 ms, 67.11 GB/s"]
    assert "2 processes of the only node" in speed_checks(speed, nodes=1)[0].detail


@pytest.mark.parametrize(
    "words", [["--run-dir", "x"], ["--address", "a:1"], ["--mib", "4"], ["--cluster", "--mib", "0"]]
)
def test_options_that_cannot_be_meant_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert f"error: {' '.join(words).replace('--cluster ', '')[:5]}" in capsys.readouterr().err
