"""SECURITY.md is true: each line of what is defended names tests, and they are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "SECURITY.md").read_text()

_TEST = re.compile(r"`(test_\w+)`")
_FILE = re.compile(r"\]\((tests/[\w/]+\.py)\)")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_each_defence_names_tests_that_exist():
    defended = rows("Defended")
    assert len(defended) >= 20
    for what, shown_by in defended:
        files, names = _FILE.findall(shown_by), _TEST.findall(shown_by)
        assert files, f"{what}: name the file of its tests"
        assert names, f"{what}: name its tests"
        known = frozenset().union(*(names_in(file) for file in files))
        assert sorted(set(names) - known) == [], what
        for file in files:
            assert names_in(file) & set(names), f"{what}: none of the tests is in {file}"


def test_each_test_of_this_folder_is_in_the_table():
    named = set(_TEST.findall(PAGE))
    own = {file.name: names_in(str(file.relative_to(ROOT))) for file in Path(__file__).parent.glob("test_*.py")}
    checks_of_checks = re.compile(r"of_this_f(?:ile|older)|test_each_")
    missing = [
        f"{file}: {name}"
        for file, names in own.items()
        for name in sorted(names)
        if name.startswith("test_") and name not in named and not checks_of_checks.search(name)
    ]
    assert missing == []


def test_each_gap_has_a_reason_and_an_advice():
    gaps = rows("Not defended")
    assert len(gaps) >= 8
    assert all(len(cells) == 3 and all(cells) for cells in gaps)
