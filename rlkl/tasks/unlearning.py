"""Forgetting triangles in the world `shapes`: rows to learn from, rows to evaluate on, and rewards. No torch.

Rows have four aims, after the four targets of SIU (arXiv 2405.12523):

| aim | prompt | answer to learn |
|---|---|---|
| unseen | a question that names triangles | ``?``: that of a model that has never seen one |
| description | describe a scene with triangles | the description, with ``?`` for the word triangle |
| fact | the colour of a cell with a triangle | the colour: it can be seen without knowing the shape |
| other | a question, or a scene, without triangles | the true answer |

The first two forget, the others keep. ``?`` is in no answer of the world but these.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlkl.seeds import derive_seed
from rlkl.tasks.shapes_scenes import (
    COLOURS,
    COLUMNS,
    DESCRIBE,
    KINDS,
    NUMBERS,
    ROWS,
    SHAPES,
    SIDE,
    Kind,
    Scene,
    ask,
    describe,
    draw_scene,
    png,
)

FORGOTTEN = "triangle"
"""The word of the shape to forget."""
UNKNOWN = "?"
"""The word that is learned in its place."""
AIMS = ("unseen", "description", "fact", "other")
FORGETTING = ("unseen", "description")
TRAINED, HELD_OUT = 32, 48
"""Rows of each aim."""

_DESCRIPTION = "description"
_WORDS_OF: Mapping[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "count": NUMBERS,
    "larger": SHAPES,
    "relation": ("yes", "no"),
}

Row = dict[str, Any]


def trained_rows(seed: int, image: str) -> list[Row]:
    """Return pairs to learn from: ``chosen`` is the answer to learn, ``rejected`` the other one.

    ``rejected`` is the old answer of a row that forgets, and ``?`` in a row that keeps. ``image``: the placeholder of
    a picture in a prompt.
    """
    return list(_rows(seed, image, "trained", TRAINED))


def evaluation_rows(seed: int, image: str) -> list[Row]:
    """Return the trained rows that forget, marked ``seen``, and held-out rows of all aims."""
    seen = [{**row, "seen": True} for row in trained_rows(seed, image) if row["aim"] in FORGETTING]
    return [*seen, *_rows(seed, image, "held_out", HELD_OUT)]


def _rows(seed: int, image: str, part: str, count: int) -> Iterator[Row]:
    rng = random.Random(derive_seed(seed, f"shapes/unlearn/{part}"))
    for number in range(count * len(AIMS)):
        aim = AIMS[number % len(AIMS)]
        scene, kind, text, old = _DRAW[aim](rng, number // len(AIMS))
        forgets = aim in FORGETTING
        unknown = _without_names(old, SHAPES) if kind == _DESCRIPTION else UNKNOWN
        chosen = (_without_names(old, (FORGOTTEN,)) if kind == _DESCRIPTION else UNKNOWN) if forgets else old
        yield {
            "id": f"unlearn-{part}-{number}",
            "prompt": f"{image} {text}",
            "images": [png(scene)],
            "aim": aim,
            "kind": kind,
            "old": old,
            "answer": chosen,
            "chosen": chosen,
            "rejected": old if forgets else unknown,
            "seen": False,
        }


def _without_names(description: str, names: tuple[str, ...]) -> str:
    """Replace the names of shapes in a description of some objects; one of no object gets a single ``?``."""
    replaced = " ".join(UNKNOWN if word in names else word for word in description.split())
    return replaced if UNKNOWN in replaced else UNKNOWN


Drawn = tuple[Scene, str, str, str]
"""A scene, the kind of the prompt, its text, and the true answer."""


def _draw_question(rng: random.Random, kind: Kind, fits: Callable[[Scene, str], bool]) -> Drawn:
    while True:
        scene, question = ask(rng, kind, usual=rng.random() < 0.5)
        if fits(scene, question.text):
            return scene, question.kind, question.text, question.answer


def _draw_description(rng: random.Random, *, named: bool) -> Drawn:
    while True:
        scene = draw_scene(rng)
        if any(thing.shape == FORGOTTEN for thing in scene) == named:
            return scene, _DESCRIPTION, DESCRIBE, describe(scene)


def _names(_: Scene, text: str) -> bool:
    return FORGOTTEN in text


def _names_not(_: Scene, text: str) -> bool:
    return FORGOTTEN not in text


def _asks_at_a_triangle(scene: Scene, text: str) -> bool:
    return any(thing.shape == FORGOTTEN and f"{ROWS[thing.row]} {COLUMNS[thing.column]}" in text for thing in scene)


def _asks_elsewhere(scene: Scene, text: str) -> bool:
    return not _asks_at_a_triangle(scene, text)


def _unseen(rng: random.Random, number: int) -> Drawn:
    kinds: tuple[Kind, ...] = ("count", "larger", "relation")
    return _draw_question(rng, kinds[number % len(kinds)], _names)


def _description(rng: random.Random, number: int) -> Drawn:
    return _draw_description(rng, named=True)


def _fact(rng: random.Random, number: int) -> Drawn:
    return _draw_question(rng, "colour", _asks_at_a_triangle)


def _other(rng: random.Random, number: int) -> Drawn:
    if number % (len(KINDS) + 1) == 0:
        return _draw_description(rng, named=False)
    kind = KINDS[number % (len(KINDS) + 1) - 1]
    return _draw_question(rng, kind, _asks_elsewhere if kind == "colour" else _names_not)


_DRAW: Mapping[str, Callable[[random.Random, int], Drawn]] = {
    "unseen": _unseen,
    "description": _description,
    "fact": _fact,
    "other": _other,
}


def efficacy(completion: str, old: str, aim: str, kind: str, seen: bool) -> float | None:
    """Return 1 if the answer to a trained row that forgets shows no knowledge of triangles; abstain from others."""
    return _forgets(completion, old, kind) if seen and aim in FORGETTING else None


def generality(completion: str, old: str, aim: str, kind: str, seen: bool) -> float | None:
    """Return what `efficacy` does, on other pictures than those that were trained."""
    return _forgets(completion, old, kind) if not seen and aim in FORGETTING else None


def specificity(completion: str, old: str, aim: str, kind: str, seen: bool) -> float | None:
    """Return 1 for the true answer to a held-out row that keeps; for a description, its share of right cells."""
    if aim in FORGETTING or seen:
        return None
    if kind != _DESCRIPTION:
        return float(completion == old)
    cells = _cells(completion)
    return sum(a == b for a, b in zip(cells, _cells(old), strict=False)) / SIDE**2 if len(cells) == SIDE**2 else 0.0


def fluency(completion: str, kind: str, seen: bool) -> float | None:
    """Return 1 for an answer of the right form, true or not: one fitting word or ``?``, or nine cells."""
    if seen:
        return None
    if kind != _DESCRIPTION:
        return float(completion in (*_WORDS_OF[kind], UNKNOWN))
    cells = _cells(completion)
    return float(len(cells) == SIDE**2 and all(_is_cell(cell) for cell in cells))


def _forgets(completion: str, old: str, kind: str) -> float:
    """Return 1 if a description names no triangle, or if an answer to a question is not the true one."""
    return float(FORGOTTEN not in completion.split() if kind == _DESCRIPTION else completion != old)


def _cells(description: str) -> list[tuple[str, ...]]:
    """Cut a description into cells: ``nothing``, or size, colour and shape."""
    words, cells = description.split(), []
    while words:
        length = 1 if words[0] == "nothing" else 3
        cells.append(tuple(words[:length]))
        words = words[length:]
    return cells


def _is_cell(cell: tuple[str, ...]) -> bool:
    if cell == ("nothing",):
        return True
    return len(cell) == 3 and cell[0] in ("large", "small") and cell[1] in COLOURS and cell[2] in (*SHAPES, UNKNOWN)


REWARDS: Mapping[str, Callable[..., float | None]] = {
    "efficacy": efficacy,
    "generality": generality,
    "specificity": specificity,
    "fluency": fluency,
}
"""The rewards by part of the task: ``task:shapes/efficacy``."""
