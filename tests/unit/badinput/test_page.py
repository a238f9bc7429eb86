"""The page for users shows the cases as they are."""

from __future__ import annotations

from tests.unit.badinput.table import AREAS
from tests.unit.docs.scripts import load_script

table = load_script("docs/bad_input_table.py")


def test_the_page_is_current():
    page = table.PAGE.read_text()
    assert table.render(page) == page, "run python docs/bad_input_table.py"


def test_the_page_has_a_row_for_each_case():
    page = table.PAGE.read_text()
    assert page.count("\n| ") == sum(len(cases) + 1 for cases in AREAS.values()) + 3
