"""A report in a real headless Chromium, from disk and without network."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from rlkl.analysis.report.report import write_report
from tests.run_folders import (
    GROUP,
    record_of,
    write_failures,
    write_metrics,
    write_run,
    write_sample_file,
    write_suspects,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)
PATIENCE_S = 180
"""Seconds for an event of the page."""
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">"
ARMS = ("update.kl_coef=0.0", "update.kl_coef=0.2")

ALL_NEAR_ARE_DRAWN = """() => [...document.querySelectorAll(".plot:not([data-drawn])")].every(
    (plot) => { const at = plot.getBoundingClientRect(); return at.bottom < -400 || at.top > innerHeight + 400; })"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; see CONTRIBUTING.md")


@dataclass
class Seen:
    """A page, and all that it should not do."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    heights = zip(ARMS, (1.0, 0.6), strict=True)
    runs = [write_run(folder / f"{arm}-{n}", f"seed={n}", arm, height=high) for arm, high in heights for n in (1, 2)]
    write_sample_file(runs[0], 1, [HOSTILE, *[f"answer {number}" for number in range(1, 2 * GROUP)]])
    write_sample_file(runs[1], 12, [f"late {number}" for number in range(GROUP)])
    write_metrics(runs[0], [record_of(step, 1, 1.0) | {"watch/length": step / 8} for step in range(1, 13)])
    write_failures(runs[0], 3, 1)
    write_suspects(runs[0], 8)
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def seen(report: Path) -> Iterator[Seen]:
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options, timeout=PATIENCE_S * 1000)
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, offline=True)
        context.set_default_timeout(PATIENCE_S * 1000)
        page = context.new_page()
        found = Seen(page=page)
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        page.on("console", lambda message: found.errors.append(message.text))
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        yield found
        assert found.errors == [], "also after all that the tests did"
        browser.close()


def chart_colours(page: Page, file: Path) -> set[object]:
    """Return the colours in the chart of the mean reward."""
    page.locator('#curves [data-chart="reward/mean"] canvas').screenshot(path=file)
    return {colour for _, colour in Image.open(file).convert("RGB").getcolors(1 << 20) or []}


def shown_texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def test_it_opens_without_a_request_or_an_error_and_draws_its_charts(seen: Seen, report: Path, tmp_path: Path):
    page = seen.page
    page.locator('[data-chart="reward/mean"] .plot[data-drawn] canvas').first.wait_for()
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]
    assert seen.errors == []
    page.locator('#curves [data-chart="reward/mean"]').scroll_into_view_if_needed()
    page.locator('#curves [data-chart="reward/mean"] .plot[data-drawn]').wait_for()
    colours = chart_colours(page, tmp_path / "chart.png")
    assert {(0, 114, 178), (213, 94, 0)} <= colours, "the lines of both arms"


def test_hostile_text_is_shown_and_does_not_run(seen: Seen):
    page = seen.page
    assert HOSTILE in shown_texts(page, "#samples .tokens")[0]
    assert "hacked" not in page.title()
    assert page.locator("img").count() == 0


def test_every_token_is_a_span_with_its_numbers_in_a_tooltip(seen: Seen):
    page = seen.page
    assert page.locator("#samples .tokens span").count() == 3 * 3 * GROUP + 1, "the suspect has no tokens"
    page.locator("#samples .tokens span").nth(3).scroll_into_view_if_needed()
    page.wait_for_function(ALL_NEAR_ARE_DRAWN)
    page.locator("#samples .tokens span").nth(3).hover()
    page.locator("#tip").wait_for()
    lines = shown_texts(page, "#tip div")
    assert lines[0].split() == ["token", '"answer', '1"']
    assert "advantage 0.4" in [line.replace("\n", " ") for line in lines]
    struck = page.locator("#samples .tokens span.off")
    assert struck.count() == 3 * GROUP, "the middle token of each sample is masked"


def test_filters_and_orders_choose_the_samples(seen: Seen):
    page = seen.page
    count = page.locator("#sample-count")
    page.locator('[data-control="low"]').fill("1")
    page.locator('[data-control="kind"]').select_option("step")
    assert count.inner_text().startswith("6 of 13 samples")
    assert shown_texts(page, "#samples .reward") == ["1"] * 6
    page.locator('[data-control="text"]').fill("LATE")
    assert count.inner_text().startswith("2 of 13 samples")
    page.locator('[data-control="text"]').fill("")
    page.locator('[data-control="low"]').fill("")
    page.locator('[data-control="kind"]').select_option("suspect")
    assert shown_texts(page, "#samples .tokens") == ["Trust me."]
    page.locator('[data-control="kind"]').select_option("")
    page.locator('[data-control="order"]').select_option("reward, high first")
    page.locator('[data-control="layout"]').select_option("single")
    rewards = [float(text) for text in shown_texts(page, "#samples .reward")]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[0] == 3


def test_a_column_colours_the_tokens(seen: Seen):
    page = seen.page
    page.locator('[data-control="kind"]').select_option("step")
    colours = {}
    for column in ("advantages", "log_ratio", ""):
        page.locator('[data-control="column"]').select_option(column)
        styles = page.locator("#samples .tokens span").evaluate_all(
            "spans => spans.map((span) => span.style.background)"
        )
        colours[column] = styles
    assert len(set(colours["advantages"])) > 2
    assert colours["advantages"] != colours["log_ratio"]
    assert set(colours[""]) == {""}


def test_an_arm_can_be_hidden_in_all_charts(seen: Seen, tmp_path: Path):
    page = seen.page
    page.evaluate("document.querySelector('#curves').scrollIntoView()")
    page.locator('[data-arm="kl_coef 0.2"]').click()
    end = time.monotonic() + PATIENCE_S
    while (213, 94, 0) in (colours := chart_colours(page, tmp_path / "chart.png")):
        assert time.monotonic() < end, "the arm is still drawn"
        page.wait_for_timeout(50)
    assert (0, 114, 178) in colours


def test_definitions_events_failures_and_recipes_are_on_the_page(seen: Seen):
    page = seen.page
    page.locator('#curves [data-chart="reward/mean"] .metric').hover()
    assert "Mean over all scored rollouts" in page.locator("#tip").inner_text()
    assert any("length" in row and "8" in row for row in shown_texts(page, "#events tbody tr"))
    page.locator("#failures summary").click()
    assert "<b>bold</b>" in page.locator("#failures").inner_text()
    assert "update.kl_coef" in page.locator("#recipe table").inner_text()
    page.locator("#everything summary", has_text="time").click()
    assert page.locator("#everything [data-constant='time/step_s']").inner_text() == "time/step_s = 1.5"
