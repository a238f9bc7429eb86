"""Answers that a verifier of reasoning-gym would run as code.

Some verifiers pass the text of a model to Python's ``eval``, or to sympy's parser, which uses it. A policy that learns
to write code there could do all that the process of the reward may do. So such an answer is read here first.
"""

from __future__ import annotations

import ast
import re

PYTHON = frozenset({"binary_matrix", "n_queens", "number_sorting", "spiral_matrix", "string_insertion"})
"""Tasks whose verifiers evaluate an answer as Python: lists are meant."""
SYMPY = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Tasks whose verifiers parse an answer with sympy: formulas are meant."""

_DATA = (
    ast.Expression,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.Name,
    ast.Load,
    ast.UnaryOp,
    ast.UAdd,
    ast.USub,
    ast.BinOp,
    ast.Add,
    ast.Sub,
)
"""Parts of an expression that calls nothing and looks into nothing."""
_FUNCTION = re.compile(
    r"Abs|Add|Chi|Ci|Ei|Eq|Float|Integer|Integral|Max|Min|Mul|Ne|Piecewise|Pow|Rational|Shi|Si|abs|"
    r"a?(?:sin|cos|tan|cot|sec|csc)h?|cbrt|ceiling|erf[ci]?|exp|expint|factorial|floor|fresnel[cs]|gamma|li|ln|log|"
    r"(?:lower|upper)gamma|polylog|root|sign|sqrt"
)
"""Functions of sympy that a formula may call."""
_CALLED = re.compile(r"([A-Za-z_]\w*)\s*\(", re.ASCII)
_FORMULA = re.compile(r"[A-Za-z0-9_\s+\-*/^().,!]*", re.ASCII)
_LOOKS_INSIDE = re.compile(r"\.\s*[A-Za-z_]|__")


def is_code(task: str, answer: str) -> bool:
    """Return whether the verifier of ``task`` would run ``answer`` as code that is more than a list or a formula."""
    if task in PYTHON:
        return _is_python_code(answer)
    if task in SYMPY:
        return (
            _FORMULA.fullmatch(answer) is None
            or _LOOKS_INSIDE.search(answer) is not None
            or not all(map(_FUNCTION.fullmatch, _CALLED.findall(answer)))
        )
    return False


def _is_python_code(text: str) -> bool:
    try:
        tree = compile(text.lstrip(), "answer", "eval", ast.PyCF_ONLY_AST, dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the verifier cannot evaluate it either
        return False
    return not all(isinstance(node, _DATA) for node in ast.walk(tree))
