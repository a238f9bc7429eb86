"""A comparison as a W&B report, built without a network."""

from __future__ import annotations

import pytest

from rlkl.errors import InputError
from rlkl.tracking.wandb.comparison import build_report, save_report
from tests.unit.tracking.wandb.graphql_server import serve

TEXT = "# rules: eval/gold over eval/kl\n\n## Arms\n\n| arm | mean |\n|---|---|\n| GRPO | 0.5 |\n"


def test_the_report_has_the_tables_and_the_panels() -> None:
    report = build_report("rules", ("eval/gold", "eval/kl"), TEXT, "team/project")
    kinds = [type(block).__name__ for block in report.blocks]
    assert kinds == ["H1", "MarkdownBlock", "PanelGrid"]
    assert report.blocks[0].text == "rules: eval/gold over eval/kl"
    assert "| GRPO | 0.5 |" in report.blocks[1].text
    panels = report.blocks[2].panels
    assert [panel.y for panel in panels][:3] == [["eval/gold"], ["eval/kl"], ["reward/mean"]]
    assert {panel.x for panel in panels} == {"step"}


def test_the_report_is_saved_as_a_draft_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch) as server:
        url = save_report("rules", ("eval/gold", "eval/kl"), TEXT, "team/rlkl")
    assert url.startswith(f"{server.address}/team/rlkl/reports/rules")
    (view,) = server.views.values()
    assert (view["type"], view["displayName"]) == ("runs/draft", "rules")
    assert "| GRPO | 0.5 |" in view["spec"]


def test_a_project_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch), pytest.raises(InputError, match="--wandb team/other: Run set 'runs' project 'team/other'"):
        save_report("rules", ("eval/gold", "eval/kl"), TEXT, "team/other")


@pytest.mark.parametrize("name", ["project", "team/", "/project", "a/b/c"])
def test_another_form_of_the_project_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="expected ENTITY/PROJECT"):
        build_report("rules", ("eval/gold", "eval/kl"), TEXT, name)
