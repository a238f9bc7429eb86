"""The frontier of a comparison as a chart: the figure over the KL, with every run, its training, and the fits."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from rlkl.analysis.compare import Comparison
from rlkl.errors import InputError

try:
    import altair as alt
    import vl_convert
except ImportError as error:
    raise InputError(f"the chart of rlkl compare needs altair ({error}): pip install 'rlkl[report]'") from error

_FIT_POINTS = 60
_WIDTH = 640
_PICTURES = (".pdf", ".svg", ".png")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3em .8em; text-align: left } th { background: #f6f6f6 }"""


def frontier_chart(comparison: Comparison) -> alt.LayerChart | alt.FacetChart | alt.VConcatChart:
    """Return the chart; colours are arms. Large marks are reported runs, small ones are other points of the grid.

    Dotted lines are the untrained policy, with an own one for the lines if these show another figure than the marks.
    Under it are the residuals of the fits, if there are any: the figure of each fitted point minus the arm's fit at the
    same KL.
    """
    chart = _frontier(comparison)
    rows = list(_residuals(comparison))
    return alt.vconcat(chart, _residual_chart(comparison, rows)) if rows else chart


def _frontier(comparison: Comparison) -> alt.LayerChart | alt.FacetChart:
    study, colour = comparison.study, _colour(comparison)
    names = [(study.y, study.x)]
    if any(_trajectories(comparison)):
        names.append((study.course_figure, study.course_kl))
    x = _kl_axis(_both([kl for _, kl in names]))
    title = _both([figure for figure, _ in names])
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    tips = [alt.Tooltip(f"{name}:N") for name in ("arm", "point", "seed")]
    tips += [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("kl", "value")]
    layers: list[Any] = []
    if rows := list(_trajectories(comparison)):
        lines = alt.Chart(alt.Data(values=rows)).mark_line(opacity=0.25, strokeWidth=1)
        layers.append(lines.encode(x=x, y=y, color=colour, detail="run:N", order="step:Q"))
    if rows := list(_fits(comparison)):
        lines = alt.Chart(alt.Data(values=rows)).mark_line(strokeDash=[6, 3], strokeWidth=2)
        layers.append(lines.encode(x=x, y=y, color=colour, detail="arm:N"))
    points = alt.Chart(alt.Data(values=list(_ends(comparison)))).mark_point(filled=True)
    layers.append(
        points.encode(
            x=x,
            y=y,
            color=colour,
            tooltip=tips,
            size=alt.condition("datum.reported", alt.value(90), alt.value(30)),
            opacity=alt.condition("datum.reported", alt.value(0.9), alt.value(0.5)),
        )
    )
    for start in _starts(comparison):
        base = alt.Chart(alt.Data(values=[start])).encode(y=y)
        layers.append(base.mark_rule(strokeDash=[2, 2], color="#888"))
        named = base.mark_text(align="right", baseline="bottom", dx=-3, dy=start["dy"], fontSize=10, color="#666")
        layers.append(named.encode(x=alt.value(_WIDTH), text="label:N"))
    return alt.layer(*layers).properties(width=_WIDTH, height=400, title=f"{study.name}: {study.y} over the KL")


def _starts(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the figure of the untrained policy, for a dotted line; none if the arms do not start from one figure.

    If marks and lines show different figures, there is a second one for the lines: the mean of their first steps.
    """
    study = comparison.study
    found = sorted(set(study.untrained.values()))
    if len(found) != 1:
        return []
    runs = [run for entry in study.entries for run in entry.runs]
    first = [run.course.start for run in runs if run.course.raw and run.course.start is not None]
    if not first or study.course_figure == study.y:
        return [{"value": found[0], "label": f"untrained, {study.y}", "dy": 0}]
    values = {f"untrained, {study.y} (marks)": found[0], f"untrained, {study.course_figure} (lines)": fmean(first)}
    upper = max(values.values())
    return [
        {"value": value, "label": label, "dy": 0 if value == upper else 13}  # the lower one's name is below it
        for label, value in values.items()
    ]


def _colour(comparison: Comparison) -> alt.Color:
    arms = list(comparison.study.frontier)
    legend = alt.Legend(orient="bottom", columns=3, labelLimit=0, symbolOpacity=1)
    return alt.Color("arm:N", title=None, sort=arms, legend=legend)


def _both(names: list[str]) -> str:
    """Name what an axis shows: of the marks, the ends of runs, and of the lines, their courses."""
    marks, lines = names[0], names[-1]
    return marks if marks == lines else f"{marks} (marks), {lines} (lines)"


def _kl_axis(name: str) -> alt.X:
    return alt.X("kl:Q", title=f"KL to the reference, nats: {name}", scale=alt.Scale(type="sqrt"))


def _residual_chart(comparison: Comparison, rows: list[dict[str, Any]]) -> alt.LayerChart | alt.FacetChart:
    study = comparison.study
    fits = [found for found in comparison.fits.values() if found is not None]
    figures = dict.fromkeys(found.figure for found in fits)
    kls = dict.fromkeys(study.x if found.source == "points" else study.course_kl for found in fits)
    y = alt.Y("residual:Q", title="minus the fit")
    zero = alt.Chart(alt.Data(values=[{"residual": 0}])).mark_rule(color="#888").encode(y=y)
    points = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=30)
    drawn = points.encode(x=_kl_axis(" or ".join(kls)), y=y, color=_colour(comparison))
    title = f"Residuals of the fits: {' or '.join(figures)}"
    return alt.layer(zero, drawn).properties(width=_WIDTH, height=120, title=title)


def _residuals(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield, for each fitted point, the run's figure minus the mean fit of its arm at the same KL."""
    for arm, found in comparison.fits.items():
        if found is None:
            continue
        for seed, points in found.points.items():
            for kl, gain in points:
                at = max(kl, 0.0)
                yield {"arm": arm, "seed": seed, "kl": at, "residual": gain - found.fit.gain(at)}


def _ends(comparison: Comparison) -> Iterator[dict[str, Any]]:
    reported = {(e.arm, e.point, run.seed) for e in comparison.study.entries for run in e.runs}
    for arm, runs in comparison.study.frontier.items():
        for run in runs:
            if run.kl is not None:
                yield {
                    "arm": arm,
                    "point": run.point,
                    "seed": run.seed,
                    "kl": max(run.kl, 0.0),
                    "value": run.value,
                    "reported": (arm, run.point, run.seed) in reported,
                }


def _trajectories(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for entry in comparison.study.entries:
        for run in entry.runs:
            for step, (kl, value) in enumerate(run.course.trajectory):
                name = f"{entry.name} {run.seed}"
                yield {"arm": entry.arm, "run": name, "step": step, "kl": kl, "value": value}


def _fits(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield points of each mean fit, within the measured KL only."""
    for arm, found in comparison.fits.items():
        if found is None:
            continue
        low, high = found.fit.lowest_kl**0.5, found.fit.highest_kl**0.5
        for number in range(_FIT_POINTS + 1):
            kl = (low + (high - low) * number / _FIT_POINTS) ** 2
            yield {"arm": arm, "kl": kl, "value": found.start + found.fit.gain(kl)}


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write the chart as PDF, SVG or PNG, by the end of the file's name. Raises `InputError` for another end."""
    spec = frontier_chart(comparison).to_json()
    convert = {
        ".pdf": lambda: vl_convert.vegalite_to_pdf(spec),
        ".svg": lambda: vl_convert.vegalite_to_svg(spec).encode(),
        ".png": lambda: vl_convert.vegalite_to_png(spec, scale=2),
    }
    if path.suffix not in convert:
        raise InputError(f"--pdf {path}: expected a name that ends with {', '.join(_PICTURES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(convert[path.suffix]())


def write_html(comparison: Comparison, markdown: str, path: Path) -> None:
    """Write tables and chart as one HTML file that needs no network."""
    spec = json.dumps(frontier_chart(comparison).to_dict()).replace("</", "<\\/")
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    head, _, rest = "\n".join(_blocks(markdown)).partition("</h1>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<!doctype html>\n<meta charset=utf-8>\n<title>{html.escape(comparison.study.name)}</title>\n"
        f"<style>{_STYLE}</style>\n{head}</h1>\n<div id=chart></div>\n{rest}\n<script>{bundle}</script>\n"
        f'<script>vegaEmbed("#chart", {spec}, {{actions: false}})</script>\n',
        encoding="utf-8",
    )


def _blocks(markdown: str) -> Iterator[str]:
    """Turn the Markdown that `rlkl.analysis.compare_text` writes into HTML: headings, tables, lists and lines."""
    for block in markdown.split("\n\n"):
        lines = [line for line in block.splitlines() if line]
        if lines and all(line.startswith("|") for line in lines):
            yield f"<table>{''.join(_rows(lines))}</table>"
        elif lines and all(line.startswith("- ") for line in lines):
            yield f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
        else:
            for line in lines:
                level = len(line) - len(line.lstrip("#"))
                tag = f"h{level}" if level else "p"
                yield f"<{tag}>{_inline(line.lstrip('# '))}</{tag}>"


def _rows(lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        tag = "td" if number else "th"
        if number != 1:  # the line under the heads
            cells = "".join(f"<{tag}>{_inline(cell.strip())}</{tag}>" for cell in line.strip("|").split("|"))
            yield f"<tr>{cells}</tr>"


def _inline(text: str) -> str:
    """Escape text and make ``**bold**`` bold."""
    parts = html.escape(text).split("**")
    return "".join(f"<b>{part}</b>" if number % 2 else part for number, part in enumerate(parts))
