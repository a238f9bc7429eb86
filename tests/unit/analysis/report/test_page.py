"""The HTML file as a whole, without a browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlkl.analysis.report.page import packed, render_page
from rlkl.analysis.report.report import report_content, run_names, write_report
from rlkl.analysis.runs import arms_of, read_run
from rlkl.errors import InputError
from tests.run_folders import write_failures, write_run, write_sample_file

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"><!--{{vega}}"


def data(page: str, element: str) -> Any:
    text = re.search(rf'<script type="text/plain" id="{element}">([^<]*)</script>', page)
    assert text is not None
    return json.loads(gzip.decompress(base64.b64decode(text[1])))


def test_texts_of_models_are_nowhere_in_the_page_as_they_are(tmp_path: Path):
    run = write_run(tmp_path / "a<b>", steps=3)
    write_sample_file(run, 1, [HOSTILE] * 4)
    write_failures(run, 2, 1)
    page = write_report([run], tmp_path / "report.html").read_text()
    assert HOSTILE not in page
    assert "='hacked'" not in page
    assert "<title>a&lt;b&gt; · rlkl</title>" in page
    assert page.count("</script>") == 4, "two of data, two of code"
    assert data(page, "samples-data")["rows"][0]["text"] == HOSTILE
    assert data(page, "content")["failures"][0]["completion"] == "<b>bold</b>"


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_to_be_fetched(tmp_path: Path):
    page = render_page("t", {}, {})
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    assert rules["script-src"].split() == hashes
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: file:"
    assert not re.search(r'(src|href)="?(https?:)?//', page)


def test_a_page_that_is_watched_loads_itself_again():
    assert '<meta http-equiv="refresh" content="30">' in render_page("t", {}, {}, refresh_s=30)
    assert 'http-equiv="refresh" content' not in render_page("t", {}, {})


def test_packed_data_has_no_character_of_markup_and_is_the_same_each_time():
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed({"a": "</script>\ud83d"}))
    assert packed([1.5]) == packed([1.5])


def test_a_run_without_a_step_and_without_samples_has_a_page(tmp_path: Path):
    run = write_run(tmp_path / "run", steps=0)
    page = write_report([run], tmp_path / "new folder" / "report.html").read_text()
    content = data(page, "content")
    assert content["headlines"] == content["frontiers"] == content["events"] == content["failures"] == []
    assert content["table"]["rows"][0][2] == "0 (0 of 1 finished)"
    assert data(page, "samples-data")["rows"] == []


def test_differences_of_recipes_and_the_recipe_of_each_arm_are_in_the_page(tmp_path: Path):
    folders = [
        write_run(tmp_path / "a", "seed=1", "learner.lr=0.1"),
        write_run(tmp_path / "b", "seed=2", "learner.lr=0.1"),
        write_run(tmp_path / "c", "seed=1", "learner.lr=0.2"),
    ]
    content = report_content(arms_of([read_run(folder) for folder in folders]))
    assert content["differences"] == {"seed": ["1", "2", "1"], "learner.lr": ["0.1", "0.1", "0.2"]}
    assert [text.startswith("run:") for text in content["recipes"]] == [True, True]
    assert [(run["name"], run["arm"]) for run in content["runs"]] == [("a", 0), ("b", 0), ("c", 1)]


def test_runs_of_equal_names_are_told_apart_by_the_folder_above(tmp_path: Path):
    runs = [read_run(write_run(tmp_path / arm / "seed-1")) for arm in ("a", "b")]
    assert run_names(runs) == ["a/seed-1", "b/seed-1"]
    assert run_names([runs[0], runs[0]]) == ["seed-1", "seed-1"]


def test_another_folder_is_refused_and_no_file_is_left(tmp_path: Path):
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        write_report([tmp_path], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
