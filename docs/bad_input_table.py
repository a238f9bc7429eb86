"""Write the table of docs/bad_input.md from the cases that tests/unit/badinput checks.

python docs/bad_input_table.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "bad_input.md"
_TABLE = re.compile(r"(?<=<!-- table -->\n).*(?=<!-- end of table -->)", re.DOTALL)
_HOME = "/home/you"
"""Stands for the folder that a case runs in."""

sys.path.insert(0, str(ROOT))

from tests.unit.badinput.case import HERE, Case  # noqa: E402 - the tests are no package of the installation
from tests.unit.badinput.table import AREAS  # noqa: E402


def render(page: str) -> str:
    """Return the page with the current table of each area."""
    count = sum(map(len, AREAS.values()))
    page = re.sub(r"\b\d+ cases\b", f"{count} cases", page)
    return _TABLE.sub(lambda _: "\n" + "\n".join(_area(area, cases) for area, cases in AREAS.items()), page)


def _area(area: str, cases: list[Case]) -> str:
    rows = [f"| {case.wrong} | {_code(case)} | {case.exit} |" for case in cases]
    return "\n".join([f"## {area}", "", "| what is wrong | what rlkl says | exit |", "|---|---|---|", *rows, ""])


def _code(case: Case) -> str:
    """Return the message's part that names the thing, and the part with the way out, as code."""
    text = f"{case.names} … {case.way}".replace(HERE, _HOME).replace("|", "\\|")
    ticks = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
