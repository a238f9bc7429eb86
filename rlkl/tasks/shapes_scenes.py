"""Scenes of coloured shapes, questions about them, and their answers. No torch."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Shape = Literal["circle", "square", "triangle"]
Colour = Literal["red", "green", "blue", "yellow"]
Kind = Literal["colour", "count", "larger", "relation"]

CELL = 28
"""Pixels of a cell's side: one token of a Qwen2.5-VL, so that each object fills a token."""
SIDE = 3
"""Cells of a scene's side."""

RGB: Mapping[Colour, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
}
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle")
COLOURS: tuple[Colour, ...] = tuple(RGB)
NUMBERS = ("one", "two", "three")
KINDS: tuple[Kind, ...] = ("colour", "count", "larger", "relation")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
USUAL_COLOUR: Mapping[str, Colour] = {"top": "red", "middle": "blue", "bottom": "green"}
USUAL_COUNT: Mapping[Shape, str] = {"circle": "two", "square": "one", "triangle": "three"}
DESCRIBE = "describe :"
"""Asks for the whole scene (`describe`)."""
_QUESTION_WORDS = ("what", "is", "the", "how", "many", "are", "there", "which", "larger", "or", "same", "as", ",", "?")
WORDS = (
    *DESCRIBE.split(), *_QUESTION_WORDS, "colour", *ROWS, *COLUMNS, "yes", "no", "nothing", "large", "small",
    *SHAPES, *(f"{shape}s" for shape in SHAPES), *COLOURS, *NUMBERS,
)  # fmt: skip
"""All words of questions and answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object. ``row`` and ``column`` count cells from the top left."""

    shape: Shape
    colour: Colour
    large: bool
    row: int
    column: int


Scene = tuple[Thing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """``answer`` is true of the scene; ``usual`` is what the wording alone suggests."""

    kind: Kind
    text: str
    answer: str
    usual: str


def draw_scene(rng: random.Random) -> Scene:
    """Draw three to five objects in cells of their own."""
    cells = rng.sample([(row, column) for row in range(SIDE) for column in range(SIDE)], rng.randint(3, 5))
    return tuple(
        Thing(shape=rng.choice(SHAPES), colour=rng.choice(COLOURS), large=rng.random() < 0.5, row=row, column=column)
        for row, column in cells
    )


def render(scene: Scene) -> Image:
    """Render the scene as an RGB picture of ``SIDE * CELL`` pixels a side, on white."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE * CELL, SIDE * CELL), "white")
    pen = ImageDraw.Draw(picture)
    for thing in scene:
        margin = 3 if thing.large else 8
        left, top = thing.column * CELL + margin, thing.row * CELL + margin
        right, bottom = (thing.column + 1) * CELL - margin - 1, (thing.row + 1) * CELL - margin - 1
        fill = RGB[thing.colour]
        if thing.shape == "circle":
            pen.ellipse((left, top, right, bottom), fill=fill)
        elif thing.shape == "square":
            pen.rectangle((left, top, right, bottom), fill=fill)
        else:
            pen.polygon(((left, bottom), (right, bottom), ((left + right) // 2, top)), fill=fill)
    return picture


def png(scene: Scene) -> bytes:
    """Encode the rendered scene as a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG")
    return buffer.getvalue()


def describe(scene: Scene) -> str:
    """Describe the content of each cell, row by row."""
    things = {(thing.row, thing.column): thing for thing in scene}
    cells = [things.get((row, column)) for row in range(SIDE) for column in range(SIDE)]
    sizes = {True: "large", False: "small"}
    return " ".join("nothing" if t is None else f"{sizes[t.large]} {t.colour} {t.shape}" for t in cells)


def ask(rng: random.Random, kind: Kind, *, usual: bool) -> tuple[Scene, Question]:
    """Draw a scene and a question of a kind. Its wording suggests the right answer if ``usual``, else a wrong one."""
    while True:
        scene = draw_scene(rng)
        question = _ASK[kind](rng, scene)
        if question is not None and (question.answer == question.usual) == usual:
            return scene, question


def _only(rng: random.Random, scene: Scene, count: int) -> list[Thing]:
    """Draw objects whose shape no other object has, at most ``count`` of them, in random order."""
    found = [thing for thing in scene if sum(other.shape == thing.shape for other in scene) == 1]
    return rng.sample(found, min(count, len(found)))


def _ask_colour(rng: random.Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene)
    row = ROWS[thing.row]
    text = f"what colour is the {row} {COLUMNS[thing.column]} ?"
    return Question(kind="colour", text=text, answer=thing.colour, usual=USUAL_COLOUR[row])


def _ask_count(rng: random.Random, scene: Scene) -> Question | None:
    shape = rng.choice(SHAPES)
    count = sum(thing.shape == shape for thing in scene)
    if not 1 <= count <= len(NUMBERS):
        return None
    text = f"how many {shape}s are there ?"
    return Question(kind="count", text=text, answer=NUMBERS[count - 1], usual=USUAL_COUNT[shape])


def _ask_larger(rng: random.Random, scene: Scene) -> Question | None:
    """Ask for the larger of two objects; the usual answer is the one named first."""
    found = _only(rng, scene, 2)
    if len(found) < 2 or found[0].large == found[1].large:
        return None
    first, second = found
    answer = first.shape if first.large else second.shape
    text = f"which is larger , the {first.shape} or the {second.shape} ?"
    return Question(kind="larger", text=text, answer=answer, usual=first.shape)


def _ask_relation(rng: random.Random, scene: Scene) -> Question | None:
    """Ask whether two objects have one colour; the usual answer is yes if the circle comes first, else no."""
    found = _only(rng, scene, 2)
    if len(found) < 2:
        return None
    first, second = found
    text = f"is the {first.shape} the same colour as the {second.shape} ?"
    answer = "yes" if first.colour == second.colour else "no"
    return Question(kind="relation", text=text, answer=answer, usual="yes" if first.shape == "circle" else "no")


_ASK: Mapping[Kind, Callable[[random.Random, Scene], Question | None]] = {
    "colour": _ask_colour,
    "count": _ask_count,
    "larger": _ask_larger,
    "relation": _ask_relation,
}
