"""Every kind of chart, drawn by Vega in V8, without a browser. Marks are counted in the SVG."""

from __future__ import annotations

import re
from typing import Any

import pytest
import vl_convert

from rlkl.analysis.report.charts import EVENT_KINDS, chart_templates, with_rows
from rlkl.analysis.report.curves import POINTS

TEMPLATES = chart_templates()


def drawn(kind: str, rows: list[dict[str, Any]], events: list[dict[str, Any]] | None = None) -> str:
    return vl_convert.vegalite_to_svg(with_rows(TEMPLATES[kind], rows, events or []))


def marks(svg: str, kind: str) -> int:
    """Count the marks of a kind that are visible."""
    found = re.findall(rf'<path aria-label="[^"]*" role="graphics-symbol" aria-roledescription="{kind}"[^>]*>', svg)
    return sum('opacity="0"' not in mark for mark in found)


def rows_of(arms: int, seeds: int, steps: int) -> list[dict[str, Any]]:
    return [
        {"run": arm * seeds + seed, "name": f"run {seed}", "arm": f"arm {arm}", "color": f"#0000{arm:02x}",
         "dash": arm % 4, "step": step, "value": arm + step / steps + seed / 10, "kl": step / 10,
         "end": step == steps, "error": 0.1}
        for arm in range(arms) for seed in range(seeds) for step in range(1, steps + 1)
    ]  # fmt: skip


def test_a_curve_has_a_band_and_a_line_for_each_arm_and_a_thin_line_for_each_run():
    svg = drawn("curve", rows_of(arms=2, seeds=3, steps=5))
    assert (marks(svg, "area mark"), marks(svg, "line mark")) == (2, 2 + 6)
    assert marks(svg, "point") == 0, "points show only where the pointer is"


def test_one_run_has_a_line_without_a_band():
    svg = drawn("curve", rows_of(arms=1, seeds=1, steps=3))
    assert (marks(svg, "area mark"), marks(svg, "line mark")) == (0, 2)


def test_eighteen_long_runs_can_be_drawn():
    svg = drawn("curve", rows_of(arms=18, seeds=1, steps=POINTS // 4))
    assert marks(svg, "line mark") == 36


def test_events_are_lines_or_signs_and_a_signal_has_its_number():
    events = [
        {
            "step": step,
            "kind": kind,
            "name": kind,
            "text": "",
            "run": "a",
            "color": "#333",
            "label": "7" if step == 1 else "",
            "top": 12,
        }
        for step, kind in enumerate(EVENT_KINDS, start=1)
    ]
    svg = drawn("curve", rows_of(arms=1, seeds=1, steps=5), events)
    assert marks(svg, "point") == 2, "failure and checkpoint"
    assert svg.count('aria-roledescription="rule mark"') == 3, "watch, alarm and resume"
    assert ">7</text>" in svg


def test_a_frontier_has_a_path_and_an_end_for_each_run_on_a_square_root_scale():
    svg = drawn("frontier", rows_of(arms=2, seeds=2, steps=10))
    assert (marks(svg, "line mark"), marks(svg, "point")) == (4, 4)
    assert TEMPLATES["frontier"]["layer"][0]["encoding"]["x"]["scale"]["type"] == "sqrt"


def test_a_kl_estimate_below_zero_can_be_drawn():
    rows = [row | {"kl": row["kl"] - 0.3} for row in rows_of(arms=1, seeds=1, steps=10)]
    assert "NaN" not in drawn("frontier", rows)


def test_an_evaluation_has_a_point_and_an_error_bar_each():
    svg = drawn("evaluation", rows_of(arms=1, seeds=2, steps=3))
    assert (marks(svg, "line mark"), marks(svg, "point"), svg.count('aria-roledescription="rule mark"')) == (2, 6, 6)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_hidden_arm_is_not_drawn(kind: str):
    template = TEMPLATES[kind]
    parameters = [p | {"value": ["arm 1"]} if p["name"] == "hidden" else p for p in template["params"]]
    svg = vl_convert.vegalite_to_svg(with_rows(template | {"params": parameters}, rows_of(arms=2, seeds=1, steps=3)))
    assert "#000000" in svg
    assert "#000001" not in svg


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_chart_without_data_can_be_drawn(kind: str):
    assert drawn(kind, []).startswith("<svg")
