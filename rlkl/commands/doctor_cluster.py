"""`rlkl doctor --cluster`: compare the nodes of a Ray cluster, time its network, and check the shared folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlkl.actors.cluster_probe import ClusterProbe, Offset, Site, Speed
from rlkl.commands.doctor import Check, table_of
from rlkl.errors import EnvironmentProblem, InputError, RlklError
from rlkl.system.node import ABSENT, NodeReport, installed_versions

DEADLINE_S = 120.0
"""For each step of each node: start a Python with torch, join the others, exchange a tensor."""
DEFAULT_MIB = 64
_WANTED_SHM_GIB = {True: 16, False: 1}
"""With and without GPUs: NCCL and Ray's object store use /dev/shm."""
_WANTED_DISK_GIB = 10
_MOST_SKEW_S = 1.0
_REINSTALL = "install the head's versions on that node, and start its Ray again"
_ENLARGE = "container: --shm-size=16g; Kubernetes: an emptyDir with medium: Memory at /dev/shm"
_REMEDY_NETWORK = (
    "open all ports between the nodes; start Ray with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME set to the network "
    "interface of the node's address"
)


def run(options: Namespace) -> int:
    """Print the report; return 1 if something blocks a run on the cluster, else 0."""
    mib = DEFAULT_MIB if options.mib is None else options.mib
    if mib < 1:
        raise InputError(f"--mib {mib}: expected a size of 1 MiB or more")
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        probe = ClusterProbe(options.address, timeout_s=DEADLINE_S)
    except EnvironmentProblem as error:
        checks = [Check(name="cluster", status="missing", detail=str(error))]
    else:
        try:
            checks = examine(probe, console, run_dir=options.run_dir, mib=mib)
        finally:
            probe.close()
    console.print(table_of(checks))
    blocking = list(dict.fromkeys(check.name for check in checks if check.blocks))
    console.print(f"\nA run on this cluster is blocked by: {', '.join(blocking)}" if blocking else "\nAll is well")
    return 1 if blocking else 0


def examine(probe: ClusterProbe, console: Console, *, run_dir: Path | None, mib: int) -> list[Check]:
    """Ask all nodes; print their table, and return the checks."""
    answers = probe.reports()
    reports = {site: one for site, one in answers.items() if isinstance(one, NodeReport)}
    checks = [
        Check(name=f"node {site.name}", status="wrong", detail=str(one), remedy="look at Ray's logs on that node")
        for site, one in answers.items()
        if isinstance(one, RlklError)
    ]
    for name in probe.gone:
        checks.append(Check(name=f"node {name}", status="note", detail="has left the cluster"))
    console.print(nodes_table(reports))
    console.print()
    if not reports:
        return checks
    return [
        *checks,
        *check_versions({site.name: report.versions for site, report in reports.items()}, installed_versions()),
        *check_resources(reports),
        *check_clocks(probe.offsets(list(reports))),
        *_check_shared(probe, list(reports), run_dir),
        *_check_network(probe, reports, mib),
    ]


def nodes_table(reports: Mapping[Site, NodeReport]) -> Table:
    """Return a table with a line for each node that answered."""
    table = Table("node", "host", "CPUs", "memory", "GPUs", "/dev/shm", "free disk", box=None, pad_edge=False)
    for site, report in reports.items():
        table.add_row(
            f"{site.name}{' head' if site.is_head else ''}",
            report.host,
            str(report.cpus),
            f"{report.memory_gib:,.0f} GiB",
            ", ".join(f"{count} x {gpu}" for gpu, count in Counter(report.gpus).items()) or "none",
            f"{report.shm_gib:,.1f} GiB",
            f"{report.disk_gib:,.0f} GiB",
        )
    return table


def check_versions(nodes: Mapping[str, Mapping[str, str]], here: Mapping[str, str]) -> list[Check]:
    """Compare all nodes, and this command, with the first node, which is the head; name each difference."""
    head, wanted = next(iter(nodes.items()))
    others = {f"node {name}": versions for name, versions in nodes.items() if name != head} | {"this command": here}
    checks = [
        Check(
            name=f"versions of {name}",
            status="wrong",
            detail="; ".join(f"{one} {versions.get(one, ABSENT)}, the head has {wanted[one]}" for one in different),
            remedy=_REINSTALL if name != "this command" else "start it with the Python of the nodes",
        )
        for name, versions in others.items()
        if (different := [one for one in wanted if versions.get(one, ABSENT) != wanted[one]])
    ]
    everywhere = ", ".join(f"{one} {version}" for one, version in wanted.items())
    return checks or [Check(name="versions", status="ok", detail=f"the same on all nodes: {everywhere}")]


def check_resources(reports: Mapping[Site, NodeReport]) -> list[Check]:
    """Check the GPUs, the shared memory and the disk of each node."""
    checks = [check for site, report in reports.items() for check in _shortages(site, report)]
    gpus = sum(len(report.gpus) for report in reports.values())
    return [Check(name="GPUs", status="ok", detail=f"{gpus} on {len(reports)} node(s)"), *checks]


def _shortages(site: Site, report: NodeReport) -> Iterator[Check]:
    where = f"of node {site.name}"
    if not report.torch_gpus == len(report.gpus) == site.gpus:
        counts = f"nvidia-smi lists {len(report.gpus)}, torch uses {report.torch_gpus}, Ray gives out {site.gpus:g}"
        remedy = "rlkl[cuda] if torch sees too few; --num-gpus of ray start if Ray does"
        yield Check(name=f"GPUs {where}", status="note", detail=counts, remedy=remedy)
    wanted = _WANTED_SHM_GIB[bool(report.gpus)]
    if report.shm_gib < wanted:
        detail = f"{report.shm_gib:.1f} GiB, expected {wanted} GiB or more"
        yield Check(name=f"/dev/shm {where}", status="note", detail=detail, remedy=_ENLARGE)
    if report.disk_gib < _WANTED_DISK_GIB:
        detail = f"{report.disk_gib:.1f} GiB free for temporary files, expected {_WANTED_DISK_GIB} GiB or more"
        yield Check(
            name=f"disk {where}", status="note", detail=detail, remedy="free some, or set --temp-dir of ray start"
        )


def check_clocks(offsets: Mapping[Site, Offset]) -> list[Check]:
    """Compare the clocks of all nodes with this machine's."""
    late = {site: offset for site, offset in offsets.items() if abs(offset.seconds) - offset.error_s > _MOST_SKEW_S}
    if not late:
        most = max(abs(offset.seconds) + offset.error_s for offset in offsets.values())
        return [Check(name="clocks", status="ok", detail=f"within {most:.3f} s of this machine's")]
    return [
        Check(
            name=f"clock of node {site.name}",
            status="note",
            detail=f"{abs(offset.seconds):.1f} s {'ahead of' if offset.seconds > 0 else 'behind'} this machine's",
            remedy="synchronise it (NTP): records and file times are compared",
        )
        for site, offset in late.items()
    ]


def _check_shared(probe: ClusterProbe, sites: Sequence[Site], run_dir: Path | None) -> list[Check]:
    """Check that a file in the run folder travels between this machine and every node."""
    folder = (run_dir or Path.cwd()).absolute()
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problems = {site: problem for site, problem in probe.check_shared(folder, sites).items() if problem}
        if made:
            folder.rmdir()
    except OSError as error:
        problem = f"{folder} cannot be written to here ({error})"
        return [Check(name="run.dir", status="wrong" if run_dir else "note", detail=problem, remedy="--run-dir DIR")]
    if not problems:
        return [Check(name="run.dir", status="ok", detail=f"all nodes share {folder}")]
    return [
        Check(
            name=f"run.dir on node {site.name}",
            status="wrong" if run_dir else "note",  # without --run-dir, nobody has said that runs go there
            detail=problem,
            remedy="" if run_dir else "name the folder for runs: --run-dir DIR",
        )
        for site, problem in problems.items()
    ]


def _check_network(probe: ClusterProbe, reports: Mapping[Site, NodeReport], mib: int) -> list[Check]:
    """Time an all-reduce and a broadcast, and check on the way that all nodes reach each other."""
    gpus = min(min(report.torch_gpus, len(report.gpus)) for report in reports.values())
    try:
        speeds = probe.speeds(list(reports), gpus=gpus, mib=mib)
    except RlklError as error:
        return [Check(name="network", status="wrong", detail=str(error), remedy=_REMEDY_NETWORK)]
    return [check for speed in speeds for check in speed_checks(speed, nodes=len(reports))]


def speed_checks(speed: Speed, *, nodes: int) -> list[Check]:
    """Return a line for each collective; GB/s is the size of the tensor by the time of the slowest process."""
    between = f"{nodes} nodes" if nodes > 1 else f"{speed.processes} processes of the only node"
    return [
        Check(
            name=f"{name}, {speed.backend}",
            status="ok",
            detail=f"{speed.mib} MiB between {between}: {seconds * 1e3:.1f} ms, {speed.gb_per_s(seconds):.2f} GB/s",
        )
        for name, seconds in (("all-reduce", speed.timing.all_reduce_s), ("broadcast", speed.timing.broadcast_s))
    ]
