"""`rlkl keys`: list the keys of a recipe."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rlkl.errors import InputError
from rlkl.recipe.keys import REQUIRED, Key, describe_keys
from rlkl.updates import RULES

_TABLE_WIDTH = 120
"""A terminal with fewer columns gets a block of lines for each key instead of a row."""
_HEADS = ("key", "expects", "default", "meaning")


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
    console = Console(markup=False, highlight=False)
    if sys.stdout.isatty() and console.width < _TABLE_WIDTH:
        for key in keys:
            _print_block(console, key)
    else:
        for row in _rows(keys):
            console.print(row, soft_wrap=True)
    return 0


def _rows(keys: Sequence[Key]) -> Iterator[str]:
    """Yield a heading and one line for each key, in columns and without spaces at the end: grep finds whole keys."""
    cells = [_HEADS, *((key.name, key.expects, key.default, _meaning(key)) for key in keys)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADS) - 1)]
    for row in cells:
        aligned = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*aligned, row[-1]])


def _print_block(console: Console, key: Key) -> None:
    """Print the key and its default in one line, and below it what it expects and means, wrapped."""
    default = "required" if key.default == REQUIRED else f"default {key.default}"
    console.print(Text.assemble((key.name, "bold"), (f"  {default}", "bright_black")))
    console.print(Padding(Text(key.expects, style="cyan"), (0, 0, 0, 4)))
    console.print(Padding(Text(_meaning(key)), (0, 0, 0, 4)))


def _meaning(key: Key) -> str:
    """Return the description, and the rules that have the key if others lack it."""
    only = set(key.rules) and set(key.rules) != set(RULES)
    return f"{key.description} ({', '.join(key.rules)})" if only else key.description


def _near(word: str, names: list[str]) -> str:
    """Return the nearest key, or the nearest last part of one, for a message."""
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = get_close_matches(word, names, n=1) or [leaves[leaf] for leaf in get_close_matches(word, leaves, n=1)]
    return f"did you mean '{near[0]}'?" if near else "`rlkl keys` lists all"
