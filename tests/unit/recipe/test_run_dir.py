from pathlib import Path

import pytest

from rlkl.errors import CheckpointError, InputError
from rlkl.recipe import Recipe
from rlkl.recipe.run_dir import new_run_dir, recipe_path


def recipe(**run: str) -> Recipe:
    return Recipe.model_validate({"run": run, "model": {"path": "m"}, "data": {"source": "d"}})


def test_a_taken_default_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert new_run_dir(recipe(name="try")) == Path("runs/try")
    for taken in ("runs/try", "runs/try-2"):
        Path(taken).mkdir(parents=True)
        Path(taken, "metrics.jsonl").touch()

    assert new_run_dir(recipe(name="try")) == Path("runs/try-3")


def test_a_folder_that_was_spelled_out_must_be_free(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()

    with pytest.raises(InputError, match=r"run\.dir = .* already holds files.*--resume"):
        new_run_dir(recipe(dir=str(tmp_path)))
    assert new_run_dir(recipe(dir=str(tmp_path / "new"))) == tmp_path / "new"


def test_resuming_what_is_no_run_says_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no recipe\.yaml"):
        recipe_path(tmp_path)


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints", "notes.txt"])
def test_the_folder_of_a_run_whose_actors_did_not_start_is_free(left: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "wandb").mkdir()

    assert new_run_dir(recipe(dir=str(tmp_path))) == tmp_path

    (tmp_path / left).write_text("a line\n")  # a step, a checkpoint, or a file of the user's
    with pytest.raises(InputError, match="already holds files"):
        new_run_dir(recipe(dir=str(tmp_path)))
