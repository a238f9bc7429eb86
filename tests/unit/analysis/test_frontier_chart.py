"""The chart of a comparison, drawn by Vega in V8: no browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.analysis.compare import Comparison, compare
from rlkl.analysis.compare_text import markdown
from rlkl.analysis.frontier_chart import frontier_chart, write_html, write_picture
from rlkl.errors import InputError
from tests.unit.analysis.planted import gao_course, planted_sweep


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("chart") / "</script><b>"
    arms = {"GRPO": {"recipe": "quickstart", "vary": {"update.kl_coef": [0.1, 0.2, 0.4]}}}
    run = gao_course(0.3, 0.1)
    plan = {"name": "chart", "arms": arms, "seeds": 2}
    planted_sweep(root, plan, lambda one: run(one.seed, 0.9 / one.point.values["update.kl_coef"]))
    return compare([root], y="eval/gold")


def test_every_run_is_drawn(comparison: Comparison, tmp_path: Path) -> None:
    spec = frontier_chart(comparison).to_dict()
    frontier, residuals = spec["vconcat"]
    ends = next(layer for layer in frontier["layer"] if layer["mark"]["type"] == "point")
    assert len(ends["data"]["values"]) == 6
    rest = residuals["layer"][1]["data"]["values"]
    assert len(rest) == 6
    assert max(abs(row["residual"]) for row in rest) < 0.02, "the runs are planted on the fit's own curve"
    write_picture(comparison, tmp_path / "chart.svg")
    svg = (tmp_path / "chart.svg").read_text()
    assert svg.count('aria-roledescription="point"') == 12
    assert "NaN" not in svg


@pytest.mark.parametrize(("name", "start"), [("a.pdf", b"%PDF"), ("a.png", b"\x89PNG")])
def test_pictures_of_papers_and_cards(comparison: Comparison, tmp_path: Path, name: str, start: bytes) -> None:
    write_picture(comparison, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_another_ending_is_refused(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends with \.pdf, \.svg, \.png"):
        write_picture(comparison, tmp_path / "a.gif")


def test_the_page_has_the_tables_and_fetches_nothing(comparison: Comparison, tmp_path: Path) -> None:
    text = markdown(comparison) + "\n- </script><img src=x onerror=alert(1)>\n"
    write_html(comparison, text, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    tables, _, _ = page.partition("<script>")
    assert tables.count("<table>") == sum(line.startswith("|--") for line in text.splitlines())
    assert "&lt;img src=x" in tables
    assert "<img" not in tables
    assert page.count("</script>") == 2
    assert "vegaEmbed(" in page
