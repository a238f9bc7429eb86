"""The world `shapes`: scenes, questions, what the wording suggests, and the base model's builder."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from rlkl.tasks import task_reward, task_rows
from rlkl.tasks.shapes import IMAGE, Shapes, demonstration
from rlkl.tasks.shapes_scenes import (
    CELL,
    COLUMNS,
    DESCRIBE,
    KINDS,
    RGB,
    ROWS,
    SIDE,
    USUAL_COLOUR,
    USUAL_COUNT,
    WORDS,
    Scene,
    Thing,
    ask,
    describe,
    draw_scene,
    render,
)
from rlkl.tasks.teaching import IGNORED

SCENE: Scene = (
    Thing(shape="circle", colour="green", large=True, row=0, column=0),
    Thing(shape="square", colour="green", large=False, row=1, column=2),
    Thing(shape="triangle", colour="red", large=False, row=2, column=1),
    Thing(shape="triangle", colour="blue", large=True, row=2, column=2),
)


def truth(scene: Scene, text: str) -> str:
    """The answer, worked out from the words of the question alone."""
    words = text.split()
    if words[:2] == ["what", "colour"]:
        row, column = ROWS.index(words[4]), COLUMNS.index(words[5])
        return next(thing.colour for thing in scene if (thing.row, thing.column) == (row, column))
    if words[:2] == ["how", "many"]:
        return ("one", "two", "three")[sum(f"{thing.shape}s" == words[2] for thing in scene) - 1]
    named = [thing for word in words for thing in scene if thing.shape == word]
    assert len(named) == 2, "each shape that is named is there once"
    if words[0] == "which":
        return next(thing.shape for thing in named if thing.large)
    return "yes" if named[0].colour == named[1].colour else "no"


def suggestion(text: str) -> str:
    """What the wording suggests."""
    words = text.split()
    if words[:2] == ["what", "colour"]:
        return USUAL_COLOUR[words[4]]
    if words[:2] == ["how", "many"]:
        return {f"{shape}s": number for shape, number in USUAL_COUNT.items()}[words[2]]
    if words[0] == "which":
        return words[5]
    return "yes" if words[2] == "circle" else "no"


@pytest.mark.parametrize("usual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_true_and_the_wording_suggests_what_it_says(kind, usual):
    rng = random.Random(0)
    answers: Counter[str] = Counter()
    for _ in range(200):
        scene, question = ask(rng, kind, usual=usual)
        assert question.kind == kind
        assert question.answer == truth(scene, question.text)
        assert question.usual == suggestion(question.text)
        assert (question.answer == question.usual) is usual
        assert set(question.text.split()) | {question.answer} <= set(WORDS)
        answers[question.answer] += 1
    assert len(answers) > 1, "no answer is always right"


def test_things_have_cells_of_their_own_and_all_kinds_of_things_come_up():
    rng = random.Random(1)
    scenes = [draw_scene(rng) for _ in range(300)]
    for scene in scenes:
        places = {(thing.row, thing.column) for thing in scene}
        assert len(places) == len(scene)
        assert all(0 <= row < SIDE and 0 <= column < SIDE for row, column in places)
    things = Counter((t.shape, t.colour, t.large) for scene in scenes for t in scene)
    assert len(things) == 3 * 4 * 2
    assert max(things.values()) < 2 * min(things.values())


def test_a_scene_is_drawn_where_and_as_it_is_said():
    picture = np.asarray(render(SCENE))
    assert picture.shape == (SIDE * CELL, SIDE * CELL, 3)
    for row in range(SIDE):
        for column in range(SIDE):
            cell = picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].reshape(-1, 3)
            inked = cell[(cell != 255).any(axis=1)]
            thing = next((t for t in SCENE if (t.row, t.column) == (row, column)), None)
            if thing is None:
                assert len(inked) == 0
            else:
                assert {tuple(pixel) for pixel in inked.tolist()} == {RGB[thing.colour]}
                assert (len(inked) > 200) is thing.large


def test_a_description_names_every_cell_in_order():
    assert describe(SCENE) == (
        "large green circle nothing nothing nothing nothing small green square nothing small red triangle "
        "large blue triangle"
    )


def test_rows_hold_what_training_and_the_probe_need():
    rows, test = task_rows("shapes"), task_rows("shapes/test")
    for part, wanted in ((rows, 0.4), (test, 0.5)):
        dependent = [row["vision_dependent"] for row in part]
        assert sum(dependent) / len(part) == pytest.approx(wanted, abs=0.01)
        for kind in KINDS:
            of_kind = [row["vision_dependent"] for row in part if row["kind"] == kind]
            assert sum(of_kind) / len(of_kind) == pytest.approx(wanted, abs=0.01), "each kind alike"
    assert len({row["id"] for row in rows + test}) == len(rows) + len(test)
    assert rows == task_rows("shapes"), "always the same"
    for row in rows[:20]:
        assert row["prompt"].startswith(IMAGE)
        assert Image.open(io.BytesIO(row["images"][0])).size == (SIDE * CELL, SIDE * CELL)
        assert row["vision_dependent"] == (row["answer"] != row["usual"])
    assert not {row["images"][0] + row["prompt"].encode() for row in rows} & {
        row["images"][0] + row["prompt"].encode() for row in test
    }


def test_rewards():
    reward, vision = task_reward("shapes"), task_reward("shapes/vision")
    assert [reward(completion=text, answer="red") for text in ("red", "blue", "red red", "")] == [1.0, 0.0, 0.0, 0.0]
    assert vision(completion="red", answer="red", vision_dependent=True) == 1.0
    assert vision(completion="red", answer="red", vision_dependent=False) is None, "it abstains"
    assert vision(completion="blue", answer="red", vision_dependent=True) == 0.0
    guess = task_reward("shapes/guess")
    assert guess(completion="blue", usual="blue", vision_dependent=True) == 1.0
    assert guess(completion="blue", usual="blue", vision_dependent=False) is None, "there the guess is right"
    assert guess(completion="red", usual="blue", vision_dependent=True) == 0.0


@pytest.fixture(scope="module")
def barely_taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shapes, Path]:
    """A base model of six steps, three of each kind."""
    shapes = Shapes(steps=6, seeing_steps=3, batch_size=4)
    folder = tmp_path_factory.mktemp("shapes") / "model"
    folder.mkdir()
    shapes.build_base_model(folder)
    return shapes, folder


def test_the_base_model_is_the_same_bytes_each_time(barely_taught: tuple[Shapes, Path], tmp_path: Path):
    shapes, folder = barely_taught
    before = torch.random.get_rng_state()
    shapes.build_base_model(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_demonstrations_train_the_answers_and_nothing_else(barely_taught: tuple[Shapes, Path]):
    _, folder = barely_taught
    processor = AutoProcessor.from_pretrained(folder)
    batch = demonstration(processor, [(SCENE, "how many circles are there ?", "one"), (SCENE, DESCRIBE, "red circle")])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trained = [tokenizer.decode(row[row != IGNORED].tolist()) for row in batch["labels"]]
    assert trained == ["one <eos>", "red circle <eos>"]
    assert (batch["input_ids"][batch["labels"] != IGNORED] == batch["labels"][batch["labels"] != IGNORED]).all()
    tokens = (batch["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum(dim=1).tolist()
    assert tokens == [SIDE * SIDE] * 2, "a token a cell"


def test_guesses_are_answers_that_the_wording_suggests():
    shapes, rng = Shapes(guess_fraction=1.0), random.Random(2)
    for _ in range(100):
        _, text, answer = shapes._answering(rng)
        assert answer == suggestion(text)
    honest = Shapes(guess_fraction=0.0)
    shown = [honest._answering(rng) for _ in range(400)]
    assert all(answer == truth(scene, text) for scene, text, answer in shown)
    usual = [answer == suggestion(text) for _, text, answer in shown]
    assert sum(usual) / len(usual) == pytest.approx(0.6, abs=0.1)
