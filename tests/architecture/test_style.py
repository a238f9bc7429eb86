"""Sizes that keep a file readable, and a few habits that a linter does not know."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rlkl.updates import RULES as UPDATES

ROOT = Path(__file__).resolve().parents[2]

FUNCTION_LINES = 60
FILE_LINES = 400
PARAMETERS = 6

EXCEPTIONS: frozenset[str] = frozenset()
"""What may exceed a budget for now, as ``file`` or ``file:function``. Entries leave when they fit; none is added."""

PRINTING = ("rlkl/cli.py", "rlkl/tracking/console/console.py")


def source_files() -> list[Path]:
    return sorted(file for folder in ("rlkl", "reward_models") for file in (ROOT / folder).rglob("*.py"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.name}", node


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_budgets() -> None:
    too_large = {name for name, function in functions() if lines_of(function) > FUNCTION_LINES}
    too_large |= {name for name, function in functions() if parameters_of(function) > PARAMETERS}
    too_large |= {str(f.relative_to(ROOT)) for f in source_files() if len(f.read_text().splitlines()) > FILE_LINES}
    assert too_large == EXCEPTIONS


def test_no_broad_except() -> None:
    broad = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in source_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]
    assert broad == []


def test_only_the_command_line_and_the_console_print() -> None:
    printing = {
        str(file.relative_to(ROOT))
        for file in source_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= set(PRINTING)


RULES = frozenset(
    {
        "DistillSettings",
        "GrpoSettings",
        "ListwiseSettings",
        "PapoSettings",
        "PpoSettings",
        "SparsePoSettings",
        "SuperHfSettings",
        *UPDATES,
    }
)
"""Built-in rules, as the recipe names them and by their settings."""


def tells_rules_apart(node: ast.AST) -> bool:
    """A comparison, a match case or an isinstance that mentions a rule."""
    if isinstance(node, ast.Call):
        branches = isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass")
    else:
        branches = isinstance(node, ast.Compare | ast.MatchValue | ast.MatchClass)
    mentioned = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    mentioned |= {str(inner.value) for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
    return branches and bool(mentioned & RULES)


def test_rules_are_told_apart_in_updates_alone() -> None:
    branching = {
        str(file.relative_to(ROOT))
        for file in source_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if tells_rules_apart(node)
    }
    assert {file for file in branching if not file.startswith("rlkl/updates/")} == set()
    assert branching, "rlkl/updates/custom.py should have been found"


def test_the_loop_is_short() -> None:
    assert len((ROOT / "rlkl" / "training" / "loop.py").read_text().splitlines()) <= 150


WORDS_OF_PAPO = re.compile("corrupt|perception", re.IGNORECASE)
OWN_PLACES = ("rlkl/updates/papo/", "recipes/sweeps/papo", "rlkl/data/", "docs/", "tests/")


def test_few_files_know_the_words_of_one_rule() -> None:
    """A rule with pictures is built from general parts: views, terms, pictured sequences."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {name: (ROOT / name).read_text() for name in tracked if name.endswith((".py", ".md", ".yaml", ".toml"))}
    found = [n for n, text in texts.items() if not n.startswith(OWN_PLACES) and WORDS_OF_PAPO.search(text)]
    assert len(found) <= 10, found


COUNTING_STEPS = ("training", "tracking", "rewards")
"""Folders of `rlkl` that handle both the index of a step and its number."""


def converts_a_step(node: ast.AST) -> bool:
    """``step + 1``, ``self._state.step - 1``: an index made a number, or the reverse, by hand."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add | ast.Sub):
        return False
    if not isinstance(node.right, ast.Constant) or node.right.value != 1:
        return False
    name = getattr(node.left, "id", None) or getattr(node.left, "attr", "")
    return name.endswith(("step", "finished"))


def test_step_indices_and_numbers_are_converted_in_one_place() -> None:
    by_hand = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for folder in COUNTING_STEPS
        for file in sorted((ROOT / "rlkl" / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.BinOp) and converts_a_step(node)
    ]
    assert by_hand == [], "use step_number or step_index of rlkl.types"
