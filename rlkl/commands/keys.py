"""`rlkl keys`: list the keys of a recipe."""

from __future__ import annotations

import sys
from argparse import Namespace
from difflib import get_close_matches

from rich.console import Console
from rich.table import Table

from rlkl.errors import InputError
from rlkl.recipe.keys import describe_keys

_PIPED_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


def run(options: Namespace) -> int:
    """Print the keys that start with the prefix, with type, default and meaning; return 0."""
    known = describe_keys()
    keys = [key for key in known if key.name.startswith(options.prefix)]
    if not keys:
        parts = {part for key in known for part in (key.name, *key.name.split("."))}
        near = get_close_matches(options.prefix, sorted(parts), n=1)
        raise InputError(f"no key starts with '{options.prefix}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    table = Table("key", "expects", "default", "meaning", box=None, pad_edge=False)
    for key in keys:
        table.add_row(key.name, key.expects, key.default, key.description)
    Console(markup=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    return 0
