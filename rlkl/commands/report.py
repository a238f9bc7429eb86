"""`rlkl report`: write one HTML file about runs."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlkl.commands.outputs import check_out
from rlkl.errors import InputError
from rlkl.recipe.owner import other_owner
from rlkl.recipe.run_dir import RECIPE_FILE, recipe_path
from rlkl.sweeps.state import is_moved_aside

REPORT_FILE = "report.html"
_DEPTH = 3
"""Levels of folders below one that holds several runs, as a sweep leaves them."""


def run(options: Namespace) -> int:
    """Write the report and print where it is; return 0. With ``--watch`` write it again until the user stops it."""
    for name, value in (("--samples", options.samples), ("--watch", options.watch)):
        if value is not None and value < (1 if name == "--watch" else 0):
            raise InputError(f"{name} {value}: expected a whole number, {'1' if name == '--watch' else '0'} or more")
    folders = run_folders(options.runs)
    out: Path = options.out or (folders[0] if len(folders) == 1 else Path()) / REPORT_FILE
    check_out("--out", out)
    from rlkl.analysis.report.report import write_report

    write_report(folders, out, samples=options.samples, refresh_s=options.watch)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"report  {out} ({out.stat().st_size / 2**20:.1f} MiB, {len(folders)} run(s)); open it in a browser")
    if options.watch is not None:
        console.print(f"written again every {options.watch} s; Ctrl-C stops")
        try:
            while True:
                time.sleep(options.watch)
                write_report(run_folders(options.runs), out, samples=options.samples, refresh_s=options.watch)
        except KeyboardInterrupt:
            # the last page does not load itself again
            write_report(run_folders(options.runs), out, samples=options.samples)
    return 0


def run_folders(given: Sequence[Path]) -> list[Path]:
    """Return the folders of runs: those given, and all runs below a folder that holds runs, such as a sweep's.

    An attempt that a sweep moved aside to start the run again is left out, unless it is given itself. Below a given
    folder, those of other commands, such as `rlkl sft`, are left out too.

    Raises `CheckpointError` if a folder neither is a run of `rlkl train` nor holds some.
    """
    found: dict[Path, None] = {}
    for folder in given:
        below = [] if (folder / RECIPE_FILE).is_file() else _runs_below(folder)
        if not below:
            recipe_path(folder)  # raises if this is not the folder of a run
        found |= dict.fromkeys(below or [folder])
    return list(found)


def _runs_below(folder: Path) -> list[Path]:
    patterns = ["/".join(["*"] * depth + [RECIPE_FILE]) for depth in range(1, _DEPTH + 1)]
    found = {path.parent for pattern in patterns for path in folder.glob(pattern)}
    outermost = (path for path in found if not found & set(path.parents))
    return sorted(path for path in outermost if not is_moved_aside(path) and not other_owner(path / RECIPE_FILE))
