"""`rlkl compare`: compare the arms of a sweep, or of the folders of runs."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from pathlib import Path

from rlkl.commands.outputs import check_out
from rlkl.errors import InputError


def run(options: Namespace) -> int:
    """Print the tables of a comparison and write the files asked for; return 0.

    Raises `InputError` if there is nothing to compare, or if an optional package is missing.
    """
    from rlkl.analysis.compare import compare
    from rlkl.analysis.compare_text import markdown

    check_out("--html", options.html)
    check_out("--pdf", options.pdf)
    at_steps = _numbers("--at-steps", options.at_steps)
    if at_steps and options.over != "steps":
        raise InputError(f"--at-steps {options.at_steps} needs --over steps")
    folders = [Path(folder) for folder in options.folders]
    comparison = compare(
        folders,
        y=options.y,
        x=options.x,
        at_kl=_numbers("--at-kl", options.at_kl),
        baseline=options.baseline,
        is_paired=options.paired,
    )
    text = markdown(comparison)
    if options.watch is not None:
        from rlkl.analysis.lead_times import watch_tables

        text += "\n" + watch_tables(folders, hacked=options.watch, gold=comparison.study.y)
    if options.over == "steps":
        from rlkl.analysis.over_steps import step_tables

        text += "\n" + step_tables(comparison.study, at_steps)
    sys.stdout.write(text)
    if options.html is not None or options.pdf is not None:
        from rlkl.analysis.frontier_chart import write_html, write_picture

        if options.html is not None:
            write_html(comparison, text, options.html)
        if options.pdf is not None:
            write_picture(comparison, options.pdf)
    if options.wandb is not None:
        from rlkl.tracking.wandb.comparison import save_report

        study = comparison.study
        url = save_report(f"{study.name}: {study.y}", (study.y, study.x), text, options.wandb)
        sys.stdout.write(f"\nW&B report: {url}\n")
    return 0


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        found = [float(word) for word in (text or "").split(",") if word.strip()]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers with commas between them, such as 1,2,4") from None
    if any(not (0 < number < math.inf) for number in found):
        raise InputError(f"{option} {text}: expected numbers above 0")
    return list(dict.fromkeys(found))
