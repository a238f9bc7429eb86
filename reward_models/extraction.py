"""Finding the answer within a completion."""

from __future__ import annotations

import re
from collections.abc import Callable

_SIGN = r"(?:(?<![\w)\]}%.])[-+])?"
_NUMBER = re.compile(_SIGN + r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s?/\s?\d+(?:\.\d+)?)?%?")
_BOXED = re.compile(r"\\f?boxed\s*\{")
_FENCE = "```"


def whole(text: str) -> str | None:
    """Return the text without the white space around it; None if nothing is left."""
    return text.strip() or None


def last_line(text: str) -> str | None:
    """Return the last line that is not empty."""
    stripped = text.strip()
    return stripped.splitlines()[-1].strip() if stripped else None


def last_number(text: str) -> str | None:
    """Return the last number: ``1,234.5``, ``-3e5``, ``3/4``, ``12%``. A minus after a digit, letter or bracket is none
    of its own, so the last number of ``5-10`` is 10."""
    found = [match.group() for match in _NUMBER.finditer(text)]
    return found[-1] if found else None


def boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}``; None if there is none or it is open."""
    contents = all_boxed(text)
    return contents[-1].strip() if contents else None


def all_boxed(text: str) -> list[str]:
    r"""Return the content of each closed, outermost ``\boxed{...}``, in order."""
    contents: list[str] = []
    position = 0
    while (start := _BOXED.search(text, position)) is not None:
        end = _closing_brace(text, start.end())
        if end is None:
            break
        contents.append(text[start.end() : end])
        position = end + 1
    return contents


def fenced(text: str, languages: tuple[str, ...]) -> str | None:
    """Return the last closed fenced block that names one of ``languages`` or none; None if there is no such block."""
    last: str | None = None
    lines = text.split("\n")
    start: int | None = None  # of the open block's body
    wanted = False
    for number, line in enumerate(lines):
        before, fence, after = line.partition(_FENCE)
        if not fence or before.strip(" \t") or "`" in after:
            continue
        if start is None:
            start, wanted = number + 1, after.strip().lower() in (*languages, "")
        elif not after.strip():
            if wanted:
                last = "".join(f"{body}\n" for body in lines[start:number])
            start = None
    return last


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "whole": whole,
    "last_line": last_line,
    "last_number": last_number,
    "boxed": boxed,
}
"""Values of the setting ``extract``."""


def _closing_brace(text: str, start: int) -> int | None:
    """Return the position of the brace that closes the one just before ``start``; escaped braces do not count."""
    depth = 1
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None
