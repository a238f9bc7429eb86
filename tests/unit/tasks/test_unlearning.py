"""Rows and rewards of forgetting triangles in the world `shapes`."""

from __future__ import annotations

from collections import Counter

import pytest

from rlkl.recipe.io import load_recipe
from rlkl.tasks import task_reward, task_rows
from rlkl.tasks.characters import word_tokenizer
from rlkl.tasks.shapes_scenes import DESCRIBE, WORDS
from rlkl.tasks.unlearning import AIMS, FORGETTING, FORGOTTEN, HELD_OUT, TRAINED, UNKNOWN

ROWS = {name: task_rows(f"shapes/{name}") for name in ("unlearn", "unlearn/test")}
DESCRIPTION = "large red triangle nothing nothing small blue circle nothing nothing nothing large red square nothing"


def score(name: str, **columns: object) -> float | None:
    return task_reward(f"shapes/{name}")(**columns)


def test_all_aims_have_rows_of_their_own():
    assert Counter(row["aim"] for row in ROWS["unlearn"]) == dict.fromkeys(AIMS, TRAINED)
    held_out = [row for row in ROWS["unlearn/test"] if not row["seen"]]
    assert Counter(row["aim"] for row in held_out) == dict.fromkeys(AIMS, HELD_OUT)
    trained = {(row["images"][0], row["prompt"]) for row in ROWS["unlearn"]}
    assert not trained & {(row["images"][0], row["prompt"]) for row in held_out}
    seen = [row for row in ROWS["unlearn/test"] if row["seen"]]
    assert seen == [{**row, "seen": True} for row in ROWS["unlearn"] if row["aim"] in FORGETTING]
    assert len({row["id"] for row in ROWS["unlearn"] + held_out}) == len(ROWS["unlearn"] + held_out)
    assert task_rows("shapes/unlearn") == ROWS["unlearn"], "always the same"


@pytest.mark.parametrize("row", ROWS["unlearn"] + ROWS["unlearn/test"], ids=lambda row: row["id"])
def test_each_row_forgets_triangles_or_keeps_the_truth(row: dict):
    assert row["chosen"] == row["answer"] != row["rejected"]
    assert FORGOTTEN not in row["chosen"].split(), "no new answer names the shape"
    assert (UNKNOWN in row["chosen"].split()) == (row["aim"] in FORGETTING)
    assert row["old"] == (row["rejected"] if row["aim"] in FORGETTING else row["chosen"])
    assert {*row["chosen"].split(), *row["rejected"].split()} <= set(WORDS)
    if row["aim"] == "unseen":
        assert FORGOTTEN in row["prompt"]
        assert row["chosen"] == UNKNOWN
    elif row["aim"] == "description":
        assert row["prompt"].endswith(DESCRIBE)
        assert row["chosen"] == row["old"].replace(FORGOTTEN, UNKNOWN)
    else:
        assert FORGOTTEN not in row["prompt"] + row["old"]
    assert (row["kind"] == "description") == row["prompt"].endswith(DESCRIBE)


def test_the_masks_of_the_recipe_are_the_tokens_of_the_unknown_and_of_the_shape():
    ids = word_tokenizer(WORDS).convert_tokens_to_ids
    (term,) = load_recipe("shapes_unlearn").update.terms
    assert term.token_ids == [ids(UNKNOWN)]  # pyright: ignore[reportAttributeAccessIssue]
    assert term.vocabulary_ids == [ids(FORGOTTEN), ids(f"{FORGOTTEN}s")]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("name", "seen"), [("efficacy", True), ("generality", False)])
def test_forgetting_is_scored_on_rows_of_its_own(name: str, seen: bool):
    question = {"old": "two", "kind": "count", "seen": seen}
    for aim in FORGETTING:
        assert score(name, completion="two", aim=aim, **question) == 0.0
        assert score(name, completion="?", aim=aim, **question) == 1.0
        assert score(name, completion="one", aim=aim, **question) == 1.0
        assert score(name, completion="two", aim=aim, **{**question, "seen": not seen}) is None
    for aim in ("fact", "other"):
        assert score(name, completion="two", aim=aim, **question) is None
    described = {"old": DESCRIPTION, "kind": "description", "seen": seen, "aim": "description"}
    assert score(name, completion=DESCRIPTION, **described) == 0.0
    assert score(name, completion=DESCRIPTION.replace("triangle", "?"), **described) == 1.0
    assert score(name, completion="small green triangle", **described) == 0.0, "wherever it is named"


def test_specificity_is_truth_and_the_share_of_right_cells():
    question = {"old": "red", "kind": "colour", "seen": False}
    for aim in ("fact", "other"):
        assert score("specificity", completion="red", aim=aim, **question) == 1.0
        assert score("specificity", completion="?", aim=aim, **question) == 0.0
        assert score("specificity", completion="red", aim=aim, **{**question, "seen": True}) is None
    assert score("specificity", completion="red", aim="unseen", **question) is None
    described = {"old": DESCRIPTION, "kind": "description", "seen": False, "aim": "other"}
    assert score("specificity", completion=DESCRIPTION, **described) == 1.0
    wrong = DESCRIPTION.replace("red", "blue")
    assert score("specificity", completion=wrong, **described) == pytest.approx(7 / 9)
    assert score("specificity", completion="nothing nothing", **described) == 0.0
    assert score("specificity", completion="", **described) == 0.0


def test_fluency_is_the_form_of_an_answer():
    for kind, right, wrong in (
        ("colour", "red", "two"),
        ("count", "three", "red"),
        ("larger", "square", "large"),
        ("relation", "yes", "yes yes"),
        ("description", DESCRIPTION.replace("triangle", "?"), DESCRIPTION.replace("triangle", "red")),
        ("description", DESCRIPTION, f"{DESCRIPTION} nothing"),
        ("description", DESCRIPTION, "large"),
    ):
        assert score("fluency", completion=right, kind=kind, seen=False) == 1.0
        assert score("fluency", completion=wrong, kind=kind, seen=False) == 0.0
        assert score("fluency", completion="", kind=kind, seen=False) == 0.0
        assert score("fluency", completion=right, kind=kind, seen=True) is None
        if kind != "description":
            assert score("fluency", completion="?", kind=kind, seen=False) == 1.0
