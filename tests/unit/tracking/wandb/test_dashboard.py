"""The W&B dashboard: every metric has a place, and a view is saved to a real HTTP server and changed there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.reports.v2 as wr

from rlkl.cli import main
from rlkl.tracking.metrics.registry import METRICS, find_definition
from rlkl.tracking.wandb.dashboard import OMITTED, sections
from rlkl.types import MetricDefinition
from tests.unit.tracking.wandb.graphql_server import serve

NAMES = {"<name>": "gold", "<component>": "format", "<term>": "kl_teacher", "<view>": "corrupted", "<k>": "4"}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def example(definition: MetricDefinition) -> str:
    """A key that the definition matches: monitor/gold for monitor/<name>."""
    key = definition.key
    for placeholder, name in NAMES.items():
        key = key.replace(placeholder, name)
    assert definition.matches(key), f"{definition.key} has a placeholder without an example"
    return key


def panels() -> list[Any]:
    return [panel for section in sections() for panel in section.panels]


def drawn_keys() -> set[str]:
    lines = [panel for panel in panels() if isinstance(panel, wr.LinePlot)]
    return {str(key) for panel in lines for key in (*panel.y, panel.x) if key != "step"}


def patterns() -> list[str]:
    return [p.metric_regex for p in panels() if isinstance(p, wr.LinePlot) and p.metric_regex]


def is_drawn(key: str) -> bool:
    return key in drawn_keys() or any(re.search(pattern, key) for pattern in patterns())


@pytest.mark.parametrize("definition", METRICS, ids=lambda definition: definition.key)
def test_every_metric_is_in_a_section_or_left_out_on_purpose(definition: MetricDefinition):
    assert is_drawn(example(definition)) != (definition.key in OMITTED)


def test_every_key_of_a_panel_is_a_metric():
    assert [key for key in drawn_keys() if find_definition(key) is None] == []
    scatters = [panel for panel in panels() if isinstance(panel, wr.ScatterPlot)]
    assert scatters
    for panel in scatters:
        for axis in (panel.x, panel.y):
            assert isinstance(axis, wr.SummaryMetric)
            assert find_definition(re.sub(r"\.(max|last)$", "", axis.name)) is not None


def test_every_pattern_finds_a_metric():
    keys = [example(definition) for definition in METRICS]
    assert len(patterns()) > 10
    assert [pattern for pattern in patterns() if not any(re.search(pattern, key) for key in keys)] == []


def test_every_omission_is_a_metric():
    known = {definition.key for definition in METRICS}
    assert [key for key in OMITTED if key not in known] == []


def test_every_panel_of_curves_names_its_axis_and_averages_the_seeds_of_an_arm():
    for panel in panels():
        if isinstance(panel, wr.LinePlot):
            assert panel.x in ("step", "kl/policy_to_reference", "eval/kl")
            assert panel.groupby == wr.Config("arm")
            assert (panel.groupby_aggfunc, panel.groupby_rangefunc) == ("mean", "stddev")


def without_ids(text: str) -> str:
    return re.sub(r'"(__id__|id)": "[^"]*"', "", text)


def test_print_writes_the_view_without_network_and_always_the_same(capsys: pytest.CaptureFixture[str]):
    assert main(["dashboard", "team/rlkl", "--print"]) == 0
    first = capsys.readouterr().out
    assert main(["dashboard", "team/rlkl", "--print"]) == 0
    assert without_ids(capsys.readouterr().out) == without_ids(first)
    found = json.loads(first)["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in found] == [
        "Frontier", "Reward", "KL and entropy", "Hacking watch", "Eval", "Update", "Rule's own",
        "Rollout and weights", "Time", "Samples",
    ]  # fmt: skip
    watch = found[3]["panels"][0]["config"]
    assert (watch["useMetricRegex"], watch["yAxisMin"], watch["yAxisMax"]) == (True, 0, 2)


def test_without_a_key_it_ends_with_the_cure(capsys: pytest.CaptureFixture[str]):
    assert main(["dashboard", "team/rlkl"]) == 2
    assert "wandb login" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rlkl"], "'rlkl' names no W&B project; expected ENTITY/PROJECT"),
        (["a/b/c"], "'a/b/c' names no W&B project"),
        (["a/b", "--print", "--update", "https://wandb.ai/a/b?nw=x"], "give one of them"),
        (["a/b", "--update", "https://wandb.ai/a/c?nw=x"], "is not the address of a saved view of a/b"),
    ],
)
def test_bad_input_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["dashboard", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_view_is_saved_and_renewed_on_a_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with serve(monkeypatch) as server:
        assert main(["dashboard", "team/rlkl", "--group", "rules of reviews"]) == 0
        url = capsys.readouterr().out.strip()
        assert re.fullmatch(rf"{server.address}/team/rlkl\?nw=\w+", url)
        ((key, view),) = server.views.items()
        assert (view["entityName"], view["projectName"], view["displayName"]) == (
            "team",
            "rlkl",
            "rlkl rules of reviews",
        )
        section = server.spec(key)["section"]
        (runs,) = section["runSets"]
        assert runs["filters"]["filters"][0]["value"] == "rules of reviews"
        assert runs["runFeed"]["columnPinned"]["config:arm"] is True
        assert len(section["panelBankConfig"]["sections"]) == 10

        section["panelBankConfig"]["sections"] = section["panelBankConfig"]["sections"][:1]
        view["spec"] = json.dumps({**server.spec(key), "section": section})
        assert main(["dashboard", "team/rlkl", "--update", url]) == 0
        assert capsys.readouterr().out.strip() == url
        assert list(server.views) == [key], "the view was changed, not added"
        section = server.spec(key)["section"]
        assert len(section["panelBankConfig"]["sections"]) == 10
        assert section["runSets"][0]["filters"]["filters"][0]["value"] == "rules of reviews", "the filter stays"

        assert main(["dashboard", "team/rlkl", "--update", f"{server.address}/team/rlkl?nw=gone"]) == 2
        assert "not found" in capsys.readouterr().err
