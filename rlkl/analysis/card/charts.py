"""The pictures of a model card: reward over steps, and reward over KL."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlkl.analysis.runs import RunFolder

KL = "kl/policy_to_reference"
_WIDTH, _HEIGHT, _SCALE = 520, 260, 1.5


def can_draw() -> bool:
    """Return whether altair and vl-convert are installed (`pip install 'rlkl[report]'`)."""
    return find_spec("altair") is not None and find_spec("vl_convert") is not None


def draw_pictures(run: RunFolder, folder: Path) -> list[str]:
    """Write ``reward.png``, and ``frontier.png`` if the run logged a KL, into ``folder``; return their names."""
    import vl_convert

    drawn = {"reward.png": reward_chart(run), "frontier.png": frontier_chart(run)}
    for name, chart in drawn.items():
        if chart is not None:
            (folder / name).write_bytes(vl_convert.vegalite_to_png(chart, scale=_SCALE))
    return [name for name, chart in drawn.items() if chart is not None]


def reward_chart(run: RunFolder) -> dict[str, Any] | None:
    """Return a chart of the reward and the monitors over steps; None for a run without rewards."""
    keys = [key for key in _scores(run) if any(key in record for record in run.metrics)]
    rows = [{"step": r["step"], "value": r[key], "metric": key} for key in keys for r in run.metrics if key in r]
    return _chart(rows, x=("step", "step"), lines=True) if rows else None


def frontier_chart(run: RunFolder) -> dict[str, Any] | None:
    """Return a chart of the reward and the monitors over the KL to the reference; None for a run without a KL."""
    rows = [
        {"kl": max(record[KL], 0.0), "value": record[key], "metric": key, "step": record["step"]}
        for key in _scores(run)
        for record in run.metrics
        if key in record and KL in record
    ]
    title = "KL to the reference, nats per sequence (root scale)"
    return _chart(rows, x=("kl", title), lines=False) if rows else None


def _scores(run: RunFolder) -> list[str]:
    keys = dict.fromkeys(key for record in run.metrics for key in record)
    return ["reward/mean", *(key for key in keys if key.startswith("monitor/") and key.count("/") == 1)]


def _chart(rows: list[dict[str, Any]], *, x: tuple[str, str], lines: bool) -> dict[str, Any]:
    import altair as alt

    name, title = x
    chart = alt.Chart(alt.Data(values=rows), width=_WIDTH, height=_HEIGHT)
    faint = {"strokeWidth": 0.8, "strokeOpacity": 0.35, "point": {"size": 30, "opacity": 1}}
    marked = chart.mark_line(strokeWidth=1.8) if lines else chart.mark_line(**faint)
    return marked.encode(
        x=alt.X(f"{name}:Q", title=title, scale=alt.Scale(type="linear" if lines else "sqrt", nice=False)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=alt.Color("metric:N", title=None, legend=alt.Legend(orient="top")),
        order=alt.Order("step:Q"),
    ).to_dict()
