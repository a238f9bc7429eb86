"""Write the report of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkl import __version__
from rlkl.analysis.report.charts import PALETTE, chart_templates
from rlkl.analysis.report.curves import curves, evaluation_curves, families, frontiers, headlines, rule_metrics
from rlkl.analysis.report.events import Event, events_of, read_lines
from rlkl.analysis.report.labels import short_labels
from rlkl.analysis.report.overview import arms_table, common_facts
from rlkl.analysis.report.page import render_page
from rlkl.analysis.report.pictures import PictureStore
from rlkl.analysis.report.recipes import recipe_differences, recipe_texts
from rlkl.analysis.report.samples import SAMPLES, SampleBook, sample_files
from rlkl.analysis.runs import Arm, RunFolder, arms_of, read_run

FAILURES = 200
"""Failures of a run that the page shows with their texts."""
_CHARACTERS = 4000
"""Characters of a traceback or a text of a failure."""


def write_report(folders: Sequence[Path], out: Path, *, samples: int = SAMPLES, refresh_s: int | None = None) -> Path:
    """Write one HTML file about the runs in ``folders`` and return its path; the file is whole or absent.

    At most ``samples`` samples are in it. ``refresh_s``: seconds after which the browser loads the file again. Raises
    `InputError` if a folder is not that of a run, or if a package is missing.
    """
    arms = arms_of([read_run(folder) for folder in folders])
    runs = [run for arm in arms for run in arm.runs]
    names = ", ".join(dict.fromkeys(run.name for run in runs[:3])) + (" …" if len(runs) > 3 else "")
    page = render_page(
        f"{names} · rlkl",
        report_content(arms),
        sample_content(runs, out.parent, samples=samples),
        refresh_s=refresh_s,
    )
    aside = out.with_name(f".{out.name}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside.write_text(page, encoding="utf-8")
    aside.replace(out)
    return out


def report_content(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return all that the page shows but samples, as plain values."""
    runs = [run for arm in arms for run in arm.runs]
    arm_of = [number for number, arm in enumerate(arms) for _ in arm.runs]
    events = [events_of(run) for run in runs]
    drawn = curves(runs)
    keys = list(drawn["metrics"])
    watch = {str(run.path): sum(e.kind == "watch" for e in found) for run, found in zip(runs, events, strict=True)}
    return {
        "version": __version__,
        "palette": PALETTE,
        "charts": chart_templates(),
        "arms": [{"name": name, "label": arm.label} for name, arm in zip(short_labels(arms), arms, strict=True)],
        "runs": [
            {"name": name, "path": str(run.path), "arm": arm}
            for run, name, arm in zip(runs, run_names(runs), arm_of, strict=True)
        ],
        "facts": common_facts(runs),
        "table": arms_table(arms, watch),
        "curves": drawn,
        "headlines": headlines(keys),
        "families": families(keys),
        "rules": rule_metrics(runs, keys),
        "frontiers": frontiers(runs),
        "evaluations": evaluation_curves(runs),
        "events": sorted(
            (_event(number, event) for number, found in enumerate(events) for event in found),
            key=lambda event: event["step"],
        ),
        "failures": [
            _failure(n, one) for n, run in enumerate(runs) for one in list(read_lines(run.path / "failures"))[:FAILURES]
        ],
        "recipes": recipe_texts(arms),
        "differences": recipe_differences(runs),
    }


def sample_content(runs: Sequence[RunFolder], page_folder: Path, *, samples: int = SAMPLES) -> dict[str, Any]:
    """Return the samples that the page shows, as plain values."""
    book = SampleBook(PictureStore(page_folder), samples=samples)
    book.add_files(
        [file for number, run in enumerate(runs) for file in sample_files(run.path, number)], [run.path for run in runs]
    )
    for number, run in enumerate(runs):
        book.add_suspects(number, read_lines(run.path / "suspicious"))
    return book.content()


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """Return the names of the runs' folders, with the folders above them if that is needed to tell runs apart."""
    paths = [run.path.absolute() for run in runs]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _event(run: int, event: Event) -> dict[str, Any]:
    return {"run": run, "step": event.step, "kind": event.kind, "name": event.name, "text": event.text}


def _failure(run: int, failure: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: str(failure.get(key, ""))[:_CHARACTERS] for key in ("error", "prompt", "completion", "traceback")}
    return {"run": run, "step": failure["step"], "reward": failure.get("reward"), "kind": failure.get("kind"), **texts}
