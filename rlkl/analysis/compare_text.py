"""A comparison as Markdown. The same folders give the same text, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlkl.analysis.against import Against
from rlkl.analysis.compare import ArmFit, AtKl, Comparison
from rlkl.analysis.fits import BOOTSTRAP_FROM
from rlkl.analysis.intervals import ALPHA, Estimate

_NONE = "-"
_SOURCES = {"points": "end points", "trajectory": "training"}


def markdown(comparison: Comparison) -> str:
    """Write all tables and sentences, with a newline at the end."""
    parts = [
        _head(comparison),
        _arms(comparison),
        _runs(comparison),
        _selection(comparison),
        _against(comparison),
        *(_at_kl(comparison, kl) for kl in dict.fromkeys(one.kl for one in comparison.at_kl)),
        _frontier(comparison),
        _weights(comparison),
    ]
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part))) + "\n"


def _head(comparison: Comparison) -> Iterator[str]:
    study = comparison.study
    yield f"# {study.name}: {study.y} over {study.x}"
    warnings = list(_warnings(comparison))
    if warnings:
        yield ""
    yield from (f"Warning: {warning}." for warning in warnings)


def _warnings(comparison: Comparison) -> Iterator[str]:
    study = comparison.study
    yield from study.notes
    for entry in study.entries:
        if entry.missing:
            yield f"{entry.name} has runs that are not finished, seeds {_list(entry.missing)}"
        if entry.without_figure:
            seeds = _list(entry.without_figure)
            yield f"{entry.name} has finished runs without {study.y}, seeds {seeds}; they are not compared"
    for summary in comparison.summaries:
        if summary.collapsed and summary.entry.runs:
            count = f"{len(summary.collapsed)} of {len(summary.entry.runs)} runs of {summary.entry.name}"
            yield f"{count} end below the untrained policy; intervals of so few runs are too narrow then"


def _arms(comparison: Comparison) -> Iterator[str]:
    yield f"## {comparison.study.y} by arm"
    yield ""
    starts = {summary.entry.untrained for summary in comparison.summaries} - {None}
    if len(starts) == 1:
        yield f"The untrained policy has {_number(next(iter(starts)))}. Each interval is Student's, 95%."
        yield ""
    rows = [
        [
            summary.entry.name,
            summary.entry.point or _NONE,
            " ".join(_number(value) for value in summary.entry.values) or _NONE,
            *_estimate(summary.estimate),
        ]
        for summary in comparison.summaries
    ]
    heads = ("arm", "point", "every seed", "mean", "sd", "95% interval")
    yield from table(*_without_column(heads, rows, 1, {_NONE}))


def _without_column(
    heads: Sequence[str], rows: Sequence[Sequence[str]], column: int, empty: set[str]
) -> tuple[list[str], list[list[str]]]:
    """Leave a column out if all its cells are in ``empty``, or are part of the first cell of their row."""
    if not all(row[column] in empty or row[column] in row[0] for row in rows):
        return list(heads), [list(row) for row in rows]
    return [cell for n, cell in enumerate(heads) if n != column], [
        [cell for n, cell in enumerate(row) if n != column] for row in rows
    ]


def _runs(comparison: Comparison) -> Iterator[str]:
    yield "## Runs, KL and cost"
    yield ""
    is_score = comparison.study.is_score
    collapsed = "Collapsed runs end below the untrained policy. " if is_score else ""
    yield f"{collapsed}KL is {comparison.study.x}: mean and range."
    yield ""
    rows = []
    for summary in comparison.summaries:
        entry, runs = summary.entry, summary.entry.runs
        kls = [run.kl for run in runs if run.kl is not None]
        tokens = [run.tokens for run in runs if run.tokens is not None]
        rows.append(
            [
                entry.name,
                str(len(runs)),
                str(len(entry.failed)),
                str(len(summary.collapsed)) if is_score and entry.untrained is not None else _NONE,
                _number(min(entry.values)) if runs else _NONE,
                f"{_mean(kls):.3g} ({min(kls):.3g} to {max(kls):.3g})" if kls else _NONE,
                _list(sorted({run.steps for run in runs})) or _NONE,
                f"{_mean(tokens):,.0f}" if tokens else _NONE,
                f"{_mean([run.seconds for run in runs]):.0f}" if runs else _NONE,
            ]
        )
    lowest = "worst" if is_score else "lowest"
    heads = ("arm", "seeds", "failed", "collapsed", lowest, "KL", "steps", "tokens sampled", "step seconds")
    yield from table(*(_without_column(heads, rows, 3, {_NONE}) if not is_score else (heads, rows)))


def _selection(comparison: Comparison) -> Iterator[str]:
    study = comparison.study
    if not study.selection:
        return
    yield "## The selection"
    yield ""
    yield f"Mean {study.selected_by} on the selection seeds, by point; the chosen one is bold."
    yield ""
    rows = []
    for row in study.selection:
        cells = []
        for point, mean in row.means.items():
            text = f"{point}: {'failed' if mean is None else _number(mean)}"
            cells.append(f"**{text}**" if point == row.chosen else text)
        rows.append([row.arm, ", ".join(cells)])
    yield from table(("arm", "points"), rows)
    edges = [row for row in study.selection if row.at_edge]
    if edges:
        yield ""
    for row in edges:
        yield f"- {row.arm}: {row.chosen} is at the edge of its grid ({_list(row.at_edge)}). Sweep further."


def _against(comparison: Comparison) -> Iterator[str]:
    if comparison.baseline is None or not (comparison.against or comparison.uncompared):
        return
    yield f"## Against {comparison.baseline}"
    yield ""
    if any(row.baseline != comparison.baseline for row in comparison.against):
        yield f"Each point is compared with the equal point of {comparison.baseline}."
        yield ""
    yield from _differences(comparison, comparison.against)
    for name, reason in comparison.uncompared.items():
        yield f"- {name}: no test, because {reason}."


def _differences(comparison: Comparison, rows: Sequence[Against]) -> Iterator[str]:
    if not rows:
        return
    test = "paired t" if comparison.is_paired else "Welch"
    yield from table(
        ("arm", f"difference ({test})", "95% interval", "p", "p, Holm", "exact p", "P(run above)"),
        [
            [
                row.name,
                f"{row.difference.mean:+.3f}",
                f"{row.difference.low:+.3f} to {row.difference.high:+.3f}",
                _p(row.difference.p),
                _p(row.adjusted_p),
                _p(row.exact_p),
                _NONE if row.improvement is None else f"{row.improvement:.2f}",
            ]
            for row in rows
        ],
    )
    yield ""
    yield from (f"- {row.name}: {row.verdict}." for row in rows)


def _at_kl(comparison: Comparison, kl: float) -> Iterator[str]:
    rows = [one for one in comparison.at_kl if one.kl == kl]
    figures = list(dict.fromkeys(one.figure for one in rows if one.figure))
    yield f"## {' and '.join(figures) or comparison.study.y} at KL {kl:g}"
    yield ""
    if any(one.source == "trajectory" and one.figure for one in rows):
        yield from _course_note(comparison)
    if len(figures) > 1:
        yield "Two arms are compared only if both have the same figure."
        yield ""
    yield from table(("arm", "from", "n", "every seed", "mean", "sd", "95% interval"), [_at_row(one) for one in rows])
    against = comparison.against_at_kl.get(kl, ())
    if against:
        yield ""
        yield from _differences(comparison, against)


def _course_note(comparison: Comparison) -> Iterator[str]:
    """Name figure and KL of the courses if they are not those of the ends of the runs."""
    study = comparison.study
    if (study.course_figure, study.course_kl) != (study.y, study.x):
        yield f"Rows from training are {study.course_figure} over {study.course_kl}."
        yield ""


def _at_row(one: AtKl) -> list[str]:
    values = " ".join("not reached" if value is None else _number(value) for value in one.values.values()) or _NONE
    reached = sum(value is not None for value in one.values.values())
    if reached == 0:
        values = "not reached"
    return [one.name, _SOURCES[one.source], str(reached), values, *_estimate(one.estimate)]


def _frontier(comparison: Comparison) -> Iterator[str]:
    found = {name: fit for name, fit in comparison.fits.items() if fit is not None}
    if not found:
        return
    yield "## The frontier"
    yield ""
    yield "Gain over the untrained policy, with d = sqrt(KL): d (A - B log d), or d (A - B d) for best of n."
    if any(fit.fit.a.n >= BOOTSTRAP_FROM for fit in found.values()):
        yield f"Intervals of {BOOTSTRAP_FROM} and more seeds are a bootstrap over seeds; others are Student's."
    yield ""
    if any(fit.source == "trajectory" for fit in found.values()):
        yield from _course_note(comparison)
    yield from table(
        ("arm", "form", "from", "seeds", "A", "95% interval", "B", "95% interval", "R²", "peak"),
        [_fit_row(name, fit) for name, fit in found.items()],
    )


def _fit_row(name: str, fitted: ArmFit) -> list[str]:
    fit = fitted.fit
    peak = f"no peak below KL {fit.highest_kl:.3g}"
    if fit.peak_kl is not None:
        peak = f"KL {fit.peak_kl:.2f}, gain {fit.gain(fit.peak_kl):+.3f}"
    return [
        name,
        fit.form,
        _SOURCES[fitted.source],
        str(fit.a.n),
        f"{fit.a.mean:.3f}",
        _interval(fit.a),
        f"{fit.b.mean:.3f}",
        _interval(fit.b),
        f"{_mean([seed.r2 for seed in fit.seeds]):.2f}",
        peak,
    ]


def _weights(comparison: Comparison) -> Iterator[str]:
    if not comparison.tests:
        return
    yield "## Do the keys of the grid move the frontier, or only the point on it?"
    yield ""
    study = comparison.study
    if (study.course_figure, study.course_kl) != (study.y, study.x) and any(comparison.tests.values()):
        yield f"The courses of the runs are {study.course_figure} over {study.course_kl}."
        yield ""
    for arm, test in comparison.tests.items():
        if test is None:
            yield f"- {arm}: no test; it needs two runs of a point, and a KL that every run passes through."
            continue
        groups = ", ".join(f"{name} {value:+.3f}" for name, value in test.groups.items())
        keys = dict.fromkeys(word.partition("=")[0] for name in test.groups for word in name.split())
        moved = "the frontier moves" if test.p < ALPHA else "the frontier is not shown to move"
        p = f"p {_p(test.p)}" if test.p < 0.001 else f"p = {_p(test.p)}"
        ratio = f"F({test.degrees[0]}, {test.degrees[1]}) = {test.f:.2f}, {p}"
        yield (
            f"- {arm}: {moved} with {_list(list(keys))}: {ratio}. "
            f"Distance from the common curve at KL {test.low_kl:.2g} to {test.high_kl:.2g}: {groups}."
        )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Write a Markdown table whose columns are aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    yield _row(heads, widths)
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in rows:
        yield _row(row, widths)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _estimate(found: Estimate | None) -> list[str]:
    """Write mean, standard deviation and interval."""
    if found is None:
        return [_NONE] * 3
    return [_number(found.mean), _NONE if found.sd is None else _number(found.sd), _interval(found)]


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return "one seed: none"
    return f"{_number(found.low)} to {_number(found.high)}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
