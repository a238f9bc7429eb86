"""The charts of the page as Vega-Lite specifications, without data: the page fills in the rows of each curve.

Rows have their colour, so that the page can follow the theme of the browser. `with_rows` fills a chart for a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkl.errors import InputError

try:
    import altair as alt
except ImportError as error:
    raise InputError(f"rlkl report needs altair ({error}): pip install 'rlkl[report]'") from error

ROWS, EVENTS = "rows", "events"
"""Names of the data sets."""
PALETTE = {
    "light": ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07D00", "#56B4E9", "#666666"],
    "dark": ["#4FA8E0", "#F28A3C", "#2CC295", "#E39BC4", "#E6B422", "#8FD0F5", "#A8A8A8"],
}
"""Colours of arms (Okabe and Ito, told apart by colour-blind readers), for both themes of a browser."""
EVENT_KINDS = ("watch", "alarm", "failure", "checkpoint", "resume")
_DASHES = {"domain": [0, 1, 2, 3], "range": [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]}
_HEIGHT = 190


def chart_templates() -> dict[str, Any]:
    """Return the specification of each kind of chart."""
    return {"curve": curve().to_dict(), "frontier": frontier().to_dict(), "evaluation": evaluation().to_dict()}


def curve() -> alt.LayerChart:
    """Draw a metric over steps: thin lines of runs, mean and standard deviation of arms, and the events."""
    runs = _shown().mark_line(strokeWidth=0.8, opacity=0.4).encode(
        x=_steps(), y=_value("value:Q"), color=_color(), detail="run:N", strokeDash=_dash()
    )  # fmt: skip
    means = _over_seeds()
    band = means.transform_filter("datum.runs > 1").mark_area(opacity=0.15).encode(
        x=_steps(), y=_value("low:Q"), y2="high:Q", color=_color(), detail="arm:N"
    )  # fmt: skip
    line = means.mark_line(strokeWidth=1.8).encode(
        x=_steps(), y=_value("mean:Q"), color=_color(), detail="arm:N", strokeDash=_dash()
    )
    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False,
                               fields=["step", "arm"])  # fmt: skip
    points = means.mark_point(filled=True, size=45).encode(
        x=_steps(), y=_value("mean:Q"), color=_color(),
        opacity=alt.when(near).then(alt.value(1)).otherwise(alt.value(0)),
        tooltip=[
            alt.Tooltip("arm:N"), alt.Tooltip("step:Q"), alt.Tooltip("mean:Q", format=".4g"),
            alt.Tooltip("spread:Q", format=".2g", title="sd over seeds"), alt.Tooltip("runs:Q"),
        ],
    ).add_params(near)  # fmt: skip
    return _layered(*_event_marks(), band, runs, line, points)


def frontier() -> alt.LayerChart:
    """Draw a reward over the KL to the reference, square-root scale: a path for each run, a dot at its end."""
    x = alt.X(
        "kl:Q",
        title="x",
        scale=alt.Scale(type="sqrt", zero=True, nice=False),
        axis=alt.Axis(tickCount=8, labelExpr=_LABELS),
    )
    base = _shown()
    path = base.mark_line(strokeWidth=1.5, opacity=0.65).encode(
        x=x, y=_value("value:Q"), color=_color(), detail="run:N", order="step:Q", strokeDash=_dash()
    )
    tooltip = [
        alt.Tooltip("arm:N"), alt.Tooltip("name:N", title="run"), alt.Tooltip("step:Q"),
        alt.Tooltip("kl:Q", format=".3g", title="KL"), alt.Tooltip("value:Q", format=".4g"),
    ]  # fmt: skip
    along = base.mark_point(filled=True, size=60, opacity=0).encode(x=x, y=_value("value:Q"), tooltip=tooltip)
    ends = base.transform_filter("datum.end").mark_point(filled=True, size=75, opacity=1, strokeWidth=1.5).encode(
        x=x, y=_value("value:Q"), color=_color(), tooltip=tooltip
    )  # fmt: skip
    return _layered(path, along, ends, height=300)


def evaluation() -> alt.LayerChart:
    """Draw a held-out quantity over steps: a point an evaluation with its standard error, a line for each run."""
    base = _shown()
    line = base.mark_line(strokeWidth=1.4, opacity=0.8).encode(
        x=_steps(), y=_value("value:Q"), color=_color(), detail="run:N", strokeDash=_dash()
    )
    bars = base.transform_calculate(low="datum.value - datum.error", high="datum.value + datum.error").mark_rule(
        strokeWidth=1.2
    ).encode(x=_steps(), y=_value("low:Q"), y2="high:Q", color=_color())  # fmt: skip
    points = base.mark_point(filled=True, size=42, opacity=1).encode(
        x=_steps(), y=_value("value:Q"), color=_color(),
        tooltip=[
            alt.Tooltip("arm:N"), alt.Tooltip("name:N", title="run"), alt.Tooltip("step:Q"),
            alt.Tooltip("value:Q", format=".4g"), alt.Tooltip("error:Q", format=".2g", title="standard error"),
        ],
    )  # fmt: skip
    return _layered(*_event_marks(), line, bars, points)


def with_rows(
    template: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return a chart with data, to be drawn without a browser."""
    return {**template, "datasets": {ROWS: list(rows), EVENTS: list(events)}}


def _shown() -> alt.Chart:
    """Start a chart of the rows whose arm is not hidden."""
    return alt.Chart(alt.NamedData(ROWS)).transform_filter("indexof(hidden, datum.arm) < 0")


def _over_seeds() -> alt.Chart:
    """Start a chart of the mean of each arm at each step, and of the standard deviation around it."""
    grouped = _shown().transform_aggregate(
        mean="mean(value)", spread="stdev(value)", runs="count()", groupby=["arm", "step", "color", "dash"]
    )
    return grouped.transform_calculate(
        spread="datum.runs > 1 ? datum.spread : 0", low="datum.mean - datum.spread", high="datum.mean + datum.spread"
    )


def _event_marks() -> tuple[alt.Chart, ...]:
    """Draw alarms and resumes as lines over the whole height, failures and checkpoints as signs at the bottom.

    The first line of each signal of the hacking watch has its number in the table of events, ``top`` pixels below the
    edge.
    """
    base = alt.Chart(alt.NamedData(EVENTS)).transform_filter("indexof(kinds, datum.kind) >= 0")
    tooltip = [alt.Tooltip("step:Q"), alt.Tooltip("name:N", title="event"), alt.Tooltip("text:N"), alt.Tooltip("run:N")]
    is_line = "datum.kind === 'watch' || datum.kind === 'alarm' || datum.kind === 'resume'"
    tall = base.transform_filter(is_line)
    lines = tall.mark_rule(strokeWidth=1.3, opacity=0.6, strokeDash=[4, 3]).encode(
        x=_steps(), color=_color(), tooltip=tooltip
    )
    names = tall.mark_text(align="left", dx=3, baseline="top", fontSize=10).encode(
        x=_steps(), y=alt.Y("top:Q", scale=None, title="value"), text="label:N", color=_color()
    )
    signs = base.transform_filter(f"!({is_line})").mark_point(filled=True, size=40, opacity=0.9).encode(
        x=_steps(), y=alt.value(_HEIGHT - 4), color=_color(), tooltip=tooltip,
        shape=alt.Shape("kind:N", legend=None,
                        scale=alt.Scale(domain=["failure", "checkpoint"], range=["triangle-up", "square"])),
    )  # fmt: skip
    return lines, names, signs


_LABELS = (
    "datum.value === 0 ? '0' : abs(datum.value) < 0.001 ? format(datum.value, '~e')"
    " : abs(datum.value) < 10000 ? format(datum.value, '~g') : format(datum.value, '~s')"
)
"""Short labels of an axis: 0.25, 2e-6, 20k."""


def _layered(*layers: alt.Chart, height: int = _HEIGHT) -> alt.LayerChart:
    """Put charts over one another, as wide as their place on the page; the page sets both parameters."""
    chart = alt.layer(*layers)
    assert isinstance(chart, alt.LayerChart)
    size = alt.AutoSizeParams(type="fit-x", contains="padding")
    hidden, kinds = alt.param(name="hidden", value=[]), alt.param(name="kinds", value=list(EVENT_KINDS))
    whole = chart.properties(width="container", height=height, autosize=size).add_params(hidden, kinds)
    return whole.resolve_scale(color="independent", shape="independent")


def _steps() -> alt.X:
    return alt.X(
        "step:Q", title="step", scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(tickMinStep=1, tickCount=6)
    )


def _value(field: str) -> alt.Y:
    return alt.Y(field, title="value", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5, labelExpr=_LABELS))


def _color() -> alt.Color:
    return alt.Color("color:N", scale=None, legend=None)


def _dash() -> alt.StrokeDash:
    return alt.StrokeDash("dash:O", scale=alt.Scale(**_DASHES), legend=None)
