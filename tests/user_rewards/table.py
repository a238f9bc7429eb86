"""The rewards of this folder, and what each gives a completion."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

Expected = Callable[[str, str], float | None] | None


def _length(completion: str, answer: str) -> float:
    return float(len(completion))


def _one(completion: str, answer: str) -> float:
    return 1.0


def _right(completion: str, answer: str) -> float:
    return float(completion == answer)


def _in_float32(completion: str, answer: str) -> float:
    import numpy as np

    return float(np.float32(len(completion)) / np.float32(3))


ACCEPTED: dict[str, Expected] = {
    "plain.py:length": _length,
    "plain.py:boolean": lambda completion, answer: float(completion.strip() == answer),
    "plain.py:decimal": lambda completion, answer: len(completion) / 4,
    "plain.py:regex": None,
    "plain.py:prints": _one,
    "plain.py:keeps_a_global": _one,
    "plain.py:cached": lambda completion, answer: float(len(completion) - len(answer)),
    "plain.py:global_random": None,
    "plain.py:abstains": lambda completion, answer: float(len(completion)) if len(completion) > 2 else None,
    "plain.py:named_parts": lambda completion, answer: float(completion == answer) + (len(completion) < 3),
    "plain.py:like_trl": _length,
    "plain.py:generates": _right,
    "plain.py:maps": _length,
    "plain.py:first_of_group": None,
    "plain.py:keyword_only": lambda completion, answer: 2.0 * len(completion),
    "plain.py:raises_on_some": lambda completion, answer: None if len(completion) == 3 else 1 / (len(completion) - 3),
    "arrays.py:numpy_scalar": _in_float32,
    "arrays.py:numpy_bool": _right,
    "arrays.py:array_of_one": _length,
    "tensors.py:tensor": lambda completion, answer: 2.0 * len(completion),
    "tensors.py:tensor_of_all": _length,
    "arrays.py:array_of_all": _length,
    "around.py:reads_own_file": lambda completion, answer: float(("1" in completion) + ("2" in completion)),
    "around.py:imports_neighbour": lambda completion, answer: 2.0 * len(completion),
    "around.py:uses_threads": lambda completion, answer: float(sum(map(ord, completion))),
    "around.py:starts_threads": _length,
    "around.py:runs_a_program": _length,
    "around.py:uses_processes": _length,
    "around.py:alarm": _length,
    "around.py:goes_elsewhere": _one,
    "around.py:warns": _one,
    "around.py:asynchronous": lambda completion, answer: 2.0 * len(completion),
    "holding.py:dataclass_as_dict": lambda completion, answer: float(completion == answer) + (len(completion) < 3),
    "holding.py:Judge": lambda completion, answer: float(len(set("123") & set(completion))),
    "holding.py:Length": lambda completion, answer: 3.0 * len(completion),
    "holding.py:AsyncJudge": lambda completion, answer: 1.0 + len(completion),
}
"""Reference -> the score of a completion; None where it is not the same each time, or depends on the others."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "holding.py:Judge": {"words": ["1", "2", "3"]},
    "holding.py:Length": {"factor": 3.0},
}

RAISES = "plain.py:raises_on_some"


def name_of(reference: str) -> str:
    return reference.partition(":")[2]


def sections() -> list[dict[str, Any]]:
    """All accepted rewards, as a recipe has them. The one that raises is a monitor: its failures drop no sample."""
    found = []
    for reference in ACCEPTED:
        section: dict[str, Any] = {"function": str(FOLDER / reference), "settings": _SETTINGS.get(reference, {})}
        if reference == RAISES:
            section |= {"role": "monitor", "on_error": "drop_sample", "max_failed_fraction": 1.0}
        found.append(section)
    return found


def check(row: dict[str, Any], completion: str, answer: str) -> None:
    """Compare a row of scores, as the sample record and ``rlkl score --out`` have them, with the table."""
    for reference, expected in ACCEPTED.items():
        kind = "monitor" if reference == RAISES else "reward"
        got = row.get(f"{kind}/{name_of(reference)}")
        if expected is None:
            assert got is not None, reference
            assert math.isfinite(got), reference
        else:
            assert got == expected(completion, answer), (reference, completion)


REFUSED: dict[str, tuple[int, str]] = {
    "mistaken.py:text": (1, "returned '1.0' (str).*a text is no number: convert it"),
    "mistaken.py:yields": (1, "(generator).*write 'return' instead of 'yield'"),
    "mistaken.py:list_for_one": (1, "(list).*a list is for functions that take 'completions' or 'group'"),
    "mistaken.py:score_and_reason": (1, r"(tuple).*or rlkl.Reward(number, components={...})"),
    "mistaken.py:a_dataclass": (1, "(Verdict).*return dataclasses.asdict(...)"),
    "mistaken.py:many_numbers": (1, "(ndarray).*reduce an array to one number"),
    "mistaken.py:a_function": (1, "(function).*it returned a function"),
    "mistaken.py:not_a_number": (1, "returned nan (float).*expected a finite number"),
    "mistaken.py:too_large": (1, "returned 1e+39 (float).*too large for float32"),
    "mistaken.py:too_few": (1, "returned [] (list).*one reward for each of 1 samples, got 0"),
    "mistaken.py:endless": (1, "one reward for each of"),
    "mistaken.py:column": (1, "a list is for functions"),
    "mistaken.py:one_for_all": (1, "returned 1.0 (float).*expected a list with one reward for each sample"),
    "mistaken.py:positional": (2, "takes only *args; arguments come by name"),
    "mistaken.py:first_only": (2, "parameter 'completion'.*is positional-only; arguments come by name"),
    "mistaken.py:other_names": (2, "its argument 'ground_truth' is not available.*available: answer, completion"),
    "mistaken.py:NotCallable": (2, "instances cannot be called; give it a __call__ method"),
    "mistaken.py:mixed": (2, "its argument 'completion' is not available.*'completions'"),
    "relative.py:f": (2, "raised ImportError: attempted relative import.*write 'import helper'"),
}
"""Reference -> exit code of ``rlkl score``, and what its message says: parts in order, ``.*`` between them."""
