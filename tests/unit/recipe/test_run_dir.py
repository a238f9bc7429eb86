from pathlib import Path

import pytest

from rlkl.errors import CheckpointError, InputError
from rlkl.recipe import Recipe
from rlkl.recipe.run_dir import new_run_dir, numbered, recipe_path


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

    with pytest.raises(InputError, match=r"run\.dir = .* already holds files; choose another folder$"):
        new_run_dir(recipe(dir=str(tmp_path)))
    (tmp_path / "checkpoints" / "step_000002").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run\.dir = .* already holds files.*--resume"):
        new_run_dir(recipe(dir=str(tmp_path)))
    assert new_run_dir(recipe(dir=str(tmp_path / "new"))) == tmp_path / "new"


def test_resuming_what_is_no_run_says_so(tmp_path: Path):
    folder = tmp_path / "quickstart"
    with pytest.raises(CheckpointError, match=rf"has no recipe\.yaml.* '{tmp_path}' holds no run$"):
        recipe_path(folder)
    for name in ("quickstart-2", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    with pytest.raises(CheckpointError, match=rf"did you mean '{tmp_path}/quickstart-2'\? Available: other, quick"):
        recipe_path(folder)


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints", "notes.txt"])
def test_the_folder_of_a_run_whose_actors_did_not_start_is_free(left: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "wandb").mkdir()

    assert new_run_dir(recipe(dir=str(tmp_path))) == tmp_path

    (tmp_path / left).write_text("a line\n")  # a step, a checkpoint, or a file of the user's
    with pytest.raises(InputError, match="already holds files"):
        new_run_dir(recipe(dir=str(tmp_path)))


def test_what_a_run_holds_by_step_is_in_the_order_of_the_steps(tmp_path: Path):
    for name in ("step_1000000.jsonl", "step_999999.jsonl", "step_000002.jsonl", "step_old.jsonl", "eval_000001.jsonl"):
        (tmp_path / name).touch()

    names = [(number, path.name) for number, path in numbered(tmp_path, "step_*.jsonl")]
    assert names == [(2, "step_000002.jsonl"), (999_999, "step_999999.jsonl"), (1_000_000, "step_1000000.jsonl")]
    assert numbered(tmp_path / "absent", "step_*") == []
