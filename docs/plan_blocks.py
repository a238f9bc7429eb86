"""Write what `rlkl plan` prints into docs/cluster.md, for the recipe that the page builds up stage by stage.

python docs/plan_blocks.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from rlkl.cli import main as rlkl

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cluster.md"
NAME = "my_recipe.yaml"
_STAGE = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
_PLAN = re.compile(rf"^    rlkl (plan {re.escape(NAME)}.*)$", re.MULTILINE)
_PRINTED = re.compile(rf"(^    rlkl (plan {re.escape(NAME)}.*)\n\nprints\n\n)((?:(?:    .*)?\n)+?)(?=\S)", re.MULTILINE)


def stages(page: str) -> Iterator[tuple[dict[str, object], list[str]]]:
    """Yield the recipe of each stage, and the `rlkl plan` commands that follow it."""
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    parts = _STAGE.split(page)
    for changes, text in zip(parts[1::2], parts[2::2], strict=True):
        recipe = recipe | yaml.safe_load(changes)
        yield recipe, _PLAN.findall(text)


def plan(recipe: dict[str, object], command: str) -> tuple[int, str]:
    """Return exit code and output of one command, run in a folder that holds the recipe."""
    before, out = Path.cwd(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
        (Path(folder) / NAME).write_text(yaml.safe_dump(recipe))
        os.chdir(folder)
        try:
            code = rlkl(command.split())
        finally:
            os.chdir(before)
    return code, out.getvalue()


def render(page: str) -> str:
    """Return the page with the current output below each command that a line "prints" follows."""
    recipe_of = {command: recipe for recipe, commands in stages(page) for command in commands}

    def written(match: re.Match[str]) -> str:
        _, printed = plan(recipe_of[match[2]], match[2])
        lines = [f"    {line}".rstrip() for line in printed.rstrip().splitlines()]
        return match[1] + "\n".join(lines) + "\n\n"

    return _PRINTED.sub(written, page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
