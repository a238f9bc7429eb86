"""The pages: links lead somewhere, pictures are current and small, and commands are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from rlkl.cli import _parse as command_line
from rlkl.cli import main
from rlkl.costs.gpus import gpu_named
from rlkl.recipe.io import load_recipe
from rlkl.sweeps.making import load_sweep, make_plan
from rlkl.updates import RULES
from tests.unit.docs.scripts import ROOT, load_script

site = load_script("docs/build_site.py")
PAGES: list[Path] = site.pages()
README = (ROOT / "README.md").read_text()
COMMAND = re.compile(r"^    (?:rlkl (?:train|plan)|launch/submit\.sh) (?!-|sweep )(.+?)(?:  +#.*)?$", re.MULTILINE)
SWEEP = re.compile(r"^    (?:launch/submit\.sh sweep|rlkl sweep) (.+?)(?: &&.*|  +#.*)?$", re.MULTILINE)
USERS_FILES = {"sums.yaml", "my_recipe.yaml"}
"""Recipes on the pages that a reader is supposed to have written; the first is on the README itself."""


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_page_is_found():
    assert {"README.md", "CONTRIBUTING.md", "docs/README.md", "rlkl/updates/ppo/README.md"} <= set(map(named, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page: Path):
    assert site.broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("[here](page.md), `[code](not_a_link.md)`, [away](https://example.org), [gone](gone.md#part)")
    assert [message for message in site.broken_links(page) if "gone.md" in message] != []
    assert [message for message in site.broken_links(page) if "not_a_link" in message] == []


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    linked = {(ROOT / "docs" / target).resolve() for target in site.LINK.findall(index)}
    assert [named(page) for page in PAGES if page not in linked and page != ROOT / "docs" / "README.md"] == []


def test_the_site_names_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [named(page) for page in PAGES if named(page) not in navigation] == []


def test_the_readme_is_short_and_shows_a_run():
    assert len(README.split()) < 1200
    assert README.count("](docs/pictures/") == 1


def test_the_architecture_picture_is_current():
    drawing = load_script("docs/pictures/draw_architecture.py")
    assert drawing.TARGET.read_text() == drawing.render(yaml.safe_load(drawing.SOURCE.read_text()))


def test_pictures_are_small():
    pictures = [file for file in (ROOT / "docs" / "pictures").iterdir() if file.suffix in (".svg", ".png")]
    assert len(pictures) > len(RULES)
    assert [file.name for file in pictures if file.stat().st_size > 100_000] == []


@pytest.mark.parametrize("rule", RULES)
def test_a_rules_page_shows_its_curves_and_the_command_that_draws_them(rule: str):
    page = (ROOT / "rlkl" / "updates" / rule / "README.md").read_text()
    assert f"](../../../docs/pictures/{rule}.svg)" in page
    assert re.search(rf"^    python recipes/rule_curves\.py \S+ docs/pictures/{rule}\.svg$", page, re.MULTILINE)


COMMANDS = sorted({command for page in PAGES for command in COMMAND.findall(page.read_text())})


def test_commands_are_found():
    assert "quickstart update.rule=recipes/rule_example.py:Reinforce update.kl_coef=0.05" in COMMANDS
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_recipes_and_keys_of_commands_are_accepted(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    options = command_line(["plan", *shlex.split(command)])
    recipe, overrides = options.recipe, options.overrides
    gpu_named(options.gpu)
    if recipe in USERS_FILES:
        (tmp_path / recipe).write_text(re.findall(r"```yaml\n(# sums\.yaml\n.*?)```", README, re.DOTALL)[0])
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.chdir(ROOT)
    load_recipe(recipe, *overrides)


SWEEPS = sorted({command for page in PAGES for command in SWEEP.findall(page.read_text())})


def test_sweeps_are_found():
    assert "reviews_grpo 'update.kl_coef=[0.1,0.2,0.4]' seeds=5" in SWEEPS
    assert "papo_time --jobs 1" in SWEEPS


@pytest.mark.parametrize("command", SWEEPS)
def test_sweeps_of_commands_are_accepted(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert make_plan(load_sweep(command_line(["sweep", *shlex.split(command)]).words)).number_of_runs > 1


def test_the_page_on_comparing_shows_a_sweep_that_is_accepted(tmp_path: Path):
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "comparing.md").read_text(), re.DOTALL)
    (tmp_path / "rules.yaml").write_text(shown)
    assert make_plan(load_sweep([str(tmp_path / "rules.yaml")])).number_of_runs == 20


def test_the_page_on_planning_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "planning.md").read_text()
    assert main(["plan", "math_dapo_7b", "--gpus", "8", "learner.ranks=1", "rollout.workers=7"]) == 2
    printed = capsys.readouterr()
    blocks = ["\n".join(lines) for lines in indented(page)]
    assert printed.out.rstrip() in blocks
    assert " ".join(printed.err.split()) in [" ".join(block.split()) for block in blocks]


def indented(page: str) -> list[list[str]]:
    """The indented blocks of a page, without their indentation; blank lines inside a block belong to it."""
    blocks: list[list[str]] = [[]]
    for line in page.splitlines():
        if line.startswith("    "):
            blocks[-1].append(line[4:])
        elif line.strip():
            blocks.append([])
        elif blocks[-1]:
            blocks[-1].append("")
    return [block[: len(block) - (block[-1] == "")] for block in blocks if block]
