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
    """Print the keys that start with the prefix, else those with a part of that name; return 0.

    Raises `InputError` if there is none.
    """
    known = describe_keys()
    keys = [key for key in known if key.name.startswith(options.prefix)]
    if not keys:
        keys = [key for key in known if options.prefix in key.name.split(".")]
    if not keys:
        names = sorted({key.name for key in known} | {key.name.partition(".")[0] for key in known})
        raise InputError(f"no key is called '{options.prefix}'; {_near(options.prefix, names)}")
    table = Table("key", "expects", "default", "meaning", box=None, pad_edge=False)
    for key in keys:
        table.add_row(key.name, key.expects, key.default, key.description)
    Console(markup=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    return 0


def _near(word: str, names: list[str]) -> str:
    """Return the nearest key, or the nearest last part of one, for a message."""
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = get_close_matches(word, names, n=1) or [leaves[leaf] for leaf in get_close_matches(word, leaves, n=1)]
    return f"did you mean '{near[0]}'?" if near else "`rlkl keys` lists all"
