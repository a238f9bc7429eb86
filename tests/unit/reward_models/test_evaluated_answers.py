"""No answer of a model is run as code by a verifier of reasoning-gym."""

from __future__ import annotations

import ast
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym import create_dataset

from reward_models import ReasoningGym
from reward_models.evaluated_answers import PYTHON, SYMPY, is_code

EVALUATORS = {"eval", "exec", "parse_expr", "sympify", "S"}


def score(entry: Any, answer: str) -> float:
    reward = ReasoningGym()
    reward.setup()
    return reward(completion=f"<answer>{answer}</answer>", entry=json.dumps(entry))


def hostile(mark: Path) -> list[str]:
    """Answers that make the folder ``mark`` if they are evaluated as Python or by sympy."""
    call = f"__import__('os').makedirs({str(mark)!r}, exist_ok=True)"
    by_class = (
        "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
        f".__init__.__globals__['makedirs']({str(mark)!r}, exist_ok=True)"
    )
    return [
        call,
        by_class,
        f"sympify({call!r})",
        f"[{call}]",
        f"(lambda: {call})()",
        f"f'{{{by_class}}}'",
        f"\n {call}",
    ]


@pytest.mark.parametrize("task", sorted(PYTHON | SYMPY))
def test_code_scores_0_and_does_not_run(task: str, tmp_path: Path):
    entry = create_dataset(task, size=1, seed=1)[0]
    for answer in hostile(tmp_path / "mark"):
        assert score(entry, answer) == 0
        assert not (tmp_path / "mark").exists(), answer


@pytest.mark.parametrize("task", ["n_queens", "countdown"])
def test_the_verifiers_themselves_run_it(task: str, tmp_path: Path):
    """If this fails, reasoning-gym has mended it, and `reward_models.evaluated_answers` may go."""
    dataset = create_dataset(task, size=1, seed=1)
    for answer in hostile(tmp_path / "mark"):
        dataset.score_answer(answer=answer, entry=dataset[0])
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("task", sorted(PYTHON | SYMPY))
def test_right_answers_score_as_before(task: str):
    dataset = create_dataset(task, size=20, seed=3)
    for entry in dataset:
        assert score(entry, entry["answer"]) == dataset.score_answer(answer=entry["answer"], entry=entry) == 1


@pytest.mark.parametrize("task", ["binary_matrix", "spiral_matrix", "string_insertion"])
def test_lists_score_as_before(task: str):
    dataset = create_dataset(task, size=5, seed=3)
    for entry in dataset:
        rows = [row.split() for row in entry["answer"].splitlines()]
        lists = {"binary_matrix": rows, "spiral_matrix": rows[0], "string_insertion": list(entry["answer"])}
        answer = str(lists[task])
        assert score(entry, answer) == dataset.score_answer(answer=answer, entry=entry) == 0.1


FORMULAS = ("x**2/2 + C", "3*sin(2*x) - exp(x)*asinh(x)", "(1 + 2) * 3 - 4/5", "x^2 + 0.5*log(x, 2)", "5!", "sqrt(x)")
CODE = (
    "lambdify(x, x)",
    "x.diff",
    "test()",
    "a[0]",
    "'a'",
    "\u0435val(x)",
    "x . subs",
    "print (1)",
    "x.\n_a",
    "{}",
    "a:=1",
)


@pytest.mark.parametrize("answer", FORMULAS)
def test_formulas_are_no_code(answer: str):
    assert not is_code("simple_integration", answer)


@pytest.mark.parametrize("answer", CODE)
def test_what_is_no_formula_is_code(answer: str):
    assert is_code("simple_integration", answer)


@pytest.mark.parametrize("task", sorted(PYTHON | SYMPY))
def test_no_answer_of_a_row_is_code(task: str):
    assert [e["answer"] for e in create_dataset(task, size=10, seed=5) if is_code(task, e["answer"])] == []


def names_called(function: ast.FunctionDef) -> set[str]:
    return {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(function) if isinstance(node, ast.Call)}


def test_every_verifier_that_evaluates_an_answer_is_known():
    found = set()
    for file in Path(reasoning_gym.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        own = {function.name for function in functions}
        verifiers = [function for function in functions if function.name == "score_answer"]
        if any(names_called(verifier) & EVALUATORS - own for verifier in verifiers):
            found.add(import_module(f"reasoning_gym.{file.parent.name}.{file.stem}").DATASET_NAME)
    assert found == PYTHON | SYMPY
