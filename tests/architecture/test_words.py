"""Docstrings are plain English: CONTRIBUTING.md has the rules; a program can check only the first of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OPENINGS = ("What ", "The same", "Where ", "How ", "Sentences ", "Which ", "Why ")
"""A docstring that starts so makes the reader turn it around. It starts with a verb, or with the thing itself."""

VERBS = """
Accumulate Add Allocate Allow Answer Append Apply Arrange Ask Assign Average Await Become Begin Bring Build Call Cancel
Change Check Choose Clear Clip Close Collect Compare Compute Connect Continue Convert Copy Count Create Cut Deal Decode
Define Delete Derive Describe Detach Divide Do Draw Drop Dump Encode End Enter Escape Estimate Evaluate Exclude Expand
Expect Explain Export Extend Feed Fetch Fill Find Finish Follow Forget Free Freeze Gather Generate Get Give Go Group
Halve Handle Hash Have Ignore Import Initialise Insert Interpolate Invert Iterate Join Judge Keep Learn Leave Let Limit
List Load Lock Log Look Lower Make Mark Maximise Measure Merge Minimise Mix Move Multiply Name Normalise Note Open Pack
Parse Pass Pick Place Prepare Print Protect Prove Prune Publish Put Raise Rank Rate Re-initialise Read Rebuild Receive
Recompute Record Reduce Refresh Refuse Register Reject Release Remove Rename Render Reorder Repeat Replace Reserve Reset
Reshape Resolve Restore Restrict Resume Retry Return Reverse Round Run Sample Save Scale Scatter Score Search See Select
Send Separate Serialise Serve Set Share Shift Shorten Show Shuffle Shut Signal Simulate Skip Sleep Smooth Sort Split
Spread Stack Start Steer Stop Strip Subtract Sum Summarise Switch Sync Take Teach Time Tokenize Train Transform Trim
Truncate Try Turn Unfreeze Unlock Unpack Update Validate Verify Visit Wait Warn Weigh Whiten Work Wrap Write Yield
"""
"""First words of the docstrings of functions: imperative verbs. If yours is missing, add it."""

TWISTED = (
    "What its parameters are called decides",
    "does not mean what it seems",
    "does not let itself be",
    "Handed over for ids that there are not",
    "the sampler said log pi",
    "seeing what they say",
    "stands where the batch stands",
    "which nobody supplies",
)
"""Sentences that had to be read twice."""


Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


def source_files() -> Iterator[Path]:
    for folder in ("rlkl", "reward_models", "recipes", "examples", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def attribute_docstrings(node: Documented) -> Iterator[tuple[str, str]]:
    """Yield name and text of each string that follows an assignment in a module or a class."""
    for before, after in pairwise(node.body):
        if (
            isinstance(before, ast.Assign | ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            target = before.target if isinstance(before, ast.AnnAssign) else before.targets[0]
            yield ast.unparse(target), after.value.value


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield place and text of each docstring of a module, a class, a function, or an attribute."""
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, Documented):
                own = [(getattr(node, "name", "module"), text)] if (text := ast.get_docstring(node)) else []
                for name, one in [*own, *attribute_docstrings(node)]:
                    yield f"{file.relative_to(ROOT)}: {name}", one


def function_docstrings(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of each function in a source text; properties are named after a thing, not an action."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, Function) or any("property" in ast.unparse(one) for one in node.decorator_list):
            continue
        if docstring := ast.get_docstring(node):
            yield node.name, docstring


def starts_with_a_verb(docstring: str) -> bool:
    return docstring.split()[0].rstrip(".,;:") in VERBS.split()


def test_docstrings_do_not_start_with_a_question_word() -> None:
    found = [place for place, text in docstrings() if text.startswith(OPENINGS)]
    assert found == []


def test_docstrings_of_functions_start_with_a_verb() -> None:
    """Write what the function does: "Return the loss", not "The loss" or "Returns the loss"."""
    found = [
        f"{file.relative_to(ROOT)}: {name}: {text.splitlines()[0]}"
        for file in source_files()
        for name, text in function_docstrings(file.read_text())
        if not starts_with_a_verb(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["The loss.", "Returns the loss.", "A loss.", "Whether it is lost.", "``x``: the loss."]
)
def test_the_check_sees_a_docstring_without_a_verb(text: str) -> None:
    source = (
        f'class A:\n    def f(self):\n        """{text}"""\n    @property\n    def g(self):\n        """{text}"""\n'
    )
    assert [(name, starts_with_a_verb(found)) for name, found in function_docstrings(source)] == [("f", False)]


@pytest.mark.parametrize("sentence", TWISTED)
def test_a_twisted_sentence_does_not_come_back(sentence: str) -> None:
    files = [file for folder in ("rlkl", "reward_models", "docs") for file in (ROOT / folder).rglob("*.*")]
    texts = {file: file.read_text() for file in files if file.suffix in (".py", ".md")}
    assert [str(file.relative_to(ROOT)) for file, text in texts.items() if sentence in text] == []
