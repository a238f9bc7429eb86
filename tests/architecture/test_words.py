"""Docstrings are plain English: CONTRIBUTING.md has the rules; a machine can hold only the first of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OPENINGS = ("What ", "The same", "Where ", "How ", "Sentences ", "Which ")
"""A docstring that starts so makes the reader turn it around; it starts with a verb, or with the thing itself."""

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


def docstrings() -> Iterator[tuple[str, str]]:
    for folder in ("rlkl", "reward_models", "recipes", "examples", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node)
                    if text:
                        name = getattr(node, "name", "module")
                        yield f"{file.relative_to(ROOT)}: {name}", text


def test_docstrings_do_not_start_with_a_question_word() -> None:
    assert [place for place, text in docstrings() if text.startswith(OPENINGS)] == []


@pytest.mark.parametrize("sentence", TWISTED)
def test_a_twisted_sentence_does_not_come_back(sentence: str) -> None:
    files = [file for folder in ("rlkl", "reward_models", "docs") for file in (ROOT / folder).rglob("*.*")]
    texts = {file: file.read_text() for file in files if file.suffix in (".py", ".md")}
    assert [str(file.relative_to(ROOT)) for file, text in texts.items() if sentence in text] == []
