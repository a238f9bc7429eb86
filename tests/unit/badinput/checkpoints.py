"""Cases: run folders and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rlkl.recipe.changes import plain_values
from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.recipe.run_dir import write_recipe
from rlkl.training.checkpoint import Checkpoints, LoopState
from rlkl.training.setup import _prepare
from tests.run_folders import write_run
from tests.unit.badinput.case import HERE, Case, Place

STEP = "run/checkpoints/step_000002"


def _stopped(then: Callable[[Place], object]) -> Callable[[Place], None]:
    """Return what leaves a run that stopped after two steps, and then does ``then``."""

    def make(place: Place) -> None:
        run_dir = place.here / "run"
        run_dir.mkdir()
        setup = _prepare(load_recipe("r.yaml"), (), None, allow_changed_rewards=False)
        write_recipe(run_dir, dump_recipe(setup.stored))
        state = LoopState(
            step=2,
            position=4,
            run_id="a",
            reward_fingerprints=setup.rewards.fingerprints,
            data_fingerprint=setup.source.fingerprint,
            recipe=plain_values(setup.stored),
            fingerprints=setup.fingerprints,
        )
        with Checkpoints(run_dir, keep=2).writing(state) as draft:
            (draft.folder / "policy").mkdir()
            (draft.folder / "policy" / "model.safetensors").write_text("weights")
        then(place)

    return make


def _run(name: str) -> Callable[[Place], object]:
    """Return what writes the folder of a run with recipe and metrics alone."""
    return lambda place: write_run(place.here / name)


def _swap_model(place: Place) -> None:
    place.json("base/config.json", rms_norm_eps=1e-3)


def _append_to_reward(place: Place) -> None:
    with (place.here / "my.py").open("a") as file:
        file.write("\nEDITED = True\n")


def _with_metrics(text: str) -> Callable[[Place], object]:
    def make(place: Place) -> None:
        write_run(place.here / "old")
        place.write("old/metrics.jsonl", text)

    return make


def _two_runs(place: Place) -> None:
    """Leave two finished runs."""
    for name, seed in (("a", "seed=0"), ("b", "seed=1")):
        write_run(place.here / name, seed)
        (place.here / name / "policy").mkdir()


def _with_samples(place: Place) -> None:
    write_run(place.here / "old")
    place.write("old/samples/step_000001.parquet", "no parquet")


def _resume_in_place(old: str, new: str) -> Callable[[Place], object]:
    def edit(place: Place) -> None:
        file: Path = place.here / "run" / "recipe.yaml"
        text = file.read_text()
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))

    return _stopped(edit)


CASES = [
    Case(
        wrong="Resume a folder that is no run",
        run="train --resume base",
        names="base is not the folder of a run: it has no recipe.yaml",
        way="Give the folder that `rlkl train` named",
    ),
    Case(
        wrong="Resume a run, and give a recipe too",
        run="train r.yaml --resume old",
        make=_run("old"),
        names="--resume old takes the recipe of that run",
        way="leave r.yaml out",
    ),
    Case(
        wrong="Resume a run that saved no checkpoint",
        run="train --resume old",
        make=_run("old"),
        names=f"no complete checkpoint in {HERE}/old/checkpoints",
        way="Start anew with `rlkl train RECIPE`",
    ),
    Case(
        wrong="Resume a run whose recipe lacks sections",
        run="train --resume old",
        make=lambda place: place.write("old/recipe.yaml", "steps: 3\n"),
        names="old/recipe.yaml: 2 problems",
        way="model is missing: a section with the keys path",
    ),
    Case(
        wrong="The recipe of the run was edited",
        run="train --resume run",
        make=_resume_in_place("seed: 0\n", "seed: 5\n"),
        names="seed=5 (was 0)",
        way="To go on with the old values: rlkl train --resume run seed=0",
    ),
    Case(
        wrong="The model was replaced since",
        run="train --resume run",
        make=_stopped(_swap_model),
        names=f"model.path = '{HERE}/base' is not the model that it was",
        way="Bring the old model back",
    ),
    Case(
        wrong="The data were changed since",
        run="train --resume run",
        make=_stopped(lambda place: place.rows({"prompt": "2+2=", "answer": "4"})),
        names=f"data.source = '{HERE}/rows.jsonl' does not hold the prompts that it held",
        way="Bring the data back",
    ),
    Case(
        wrong="The reward was edited since",
        run="train --resume run",
        make=_stopped(_append_to_reward),
        names="the rewards are not what they were at step 2",
        way="--allow-changed-rewards",
    ),
    Case(
        wrong="A file of the only checkpoint is gone",
        run="train --resume run",
        make=_stopped(lambda place: place.remove(f"{STEP}/policy/model.safetensors")),
        names=f"the checkpoint {HERE}/{STEP} is not complete: policy/model.safetensors is missing",
        way="was run.dir shared by them?",
    ),
    Case(
        wrong="A file of the only checkpoint was damaged, its size the same",
        run="train --resume run",
        make=_stopped(lambda place: place.write(f"{STEP}/policy/model.safetensors", "WEIGHTS")),
        names="policy/model.safetensors has another content than was written",
        way="was run.dir shared by them?",
    ),
    Case(
        wrong="The manifest of the only checkpoint is damaged",
        run="train --resume run",
        make=_stopped(lambda place: place.write(f"{STEP}/manifest.json", "{")),
        names=f"the checkpoint {HERE}/{STEP} is not complete",
        way="manifest.json cannot be read",
    ),
    Case(
        wrong="The run has made all its steps",
        run="train --resume run steps=2",
        make=_stopped(lambda place: _export(place)),
        names="has made 2 steps, and steps = 2 asks for no more",
        way="to go on: rlkl train --resume run steps=4",
    ),
    Case(
        wrong="`--allow-changed-rewards` for a new run",
        run="train r.yaml --allow-changed-rewards",
        names="--allow-changed-rewards",
        way="goes with --resume RUN_DIR only",
    ),
    Case(
        wrong="The run folder holds another run",
        run="plan r.yaml run.dir=run",
        make=_stopped(lambda place: None),
        names="run.dir = 'run' already holds files",
        way="rlkl train --resume run",
    ),
    Case(
        wrong="The run folder is a file",
        run="train r.yaml run.dir=my.py",
        names="run.dir = 'my.py' is a file",
        way="choose another folder",
    ),
    Case(
        wrong="The run folder would be below a file",
        run="plan r.yaml run.dir=my.py/run",
        names="the run folder my.py/run cannot be made",
        way="choose another with run.dir",
    ),
    Case(
        wrong="Evaluate a run that is not finished",
        run="eval run --engine hf",
        make=_stopped(lambda place: None),
        names="the run in run has no policy yet",
        way=f"give a checkpoint's: {STEP}/policy --recipe run/recipe.yaml",
    ),
    Case(
        wrong="Evaluate a run whose recipe names no model",
        run="eval old --engine hf",
        make=lambda place: place.write("old/recipe.yaml", "model: base\n") or (place.here / "old/policy").mkdir(),
        names="old/recipe.yaml names no model.path",
        way="leave the KL out with --reference none",
    ),
    Case(
        wrong="Publish a run that is not finished",
        run="push run me/policy --dry-run",
        make=_stopped(lambda place: None),
        names="run has no policy yet",
        way="rlkl train --resume run",
    ),
    Case(
        wrong="Publish a run that saved no checkpoint",
        run="push old me/policy --dry-run",
        make=_run("old"),
        names="old has no policy yet",
        way="start it anew: rlkl train old/recipe.yaml run.dir=NEW_FOLDER",
    ),
    Case(
        wrong="The metrics of a run are damaged",
        run="report old",
        make=_with_metrics('{"step": 1}\n{"step": \n{"step": 3}\n'),
        names="old/metrics.jsonl: line 2 is not JSON",
        way="repair or remove the line",
    ),
    Case(
        wrong="A sample file of a run is damaged",
        run="report old",
        make=_with_samples,
        names="old/samples/step_000001.parquet cannot be read as parquet",
        way="remove it",
    ),
    Case(
        wrong="Compare runs by a figure that they do not have",
        run="compare a b --y eval/gold",
        make=_two_runs,
        names="--y eval/gold: no run has this figure",
        way="available: entropy/policy",
    ),
    Case(
        wrong="Compare runs of which none is finished",
        run="compare a --y reward/mean",
        make=lambda place: write_run(place.here / "a"),
        names="no run is finished yet: a",
        way="rlkl train --resume",
    ),
    Case(
        wrong="Compare with an arm that there is not",
        run="compare a b --baseline grpo",
        make=_two_runs,
        names="--baseline 'grpo' is no arm of this comparison",
        way="available: quickstart",
    ),
]


def _export(place: Place) -> None:
    """Leave the policy of the last checkpoint in the run's folder, as a finished run does."""
    held = (place.here / STEP / "policy" / "model.safetensors").read_text()
    place.write("run/policy/model.safetensors", held)
    assert "policy/model.safetensors" in json.loads((place.here / STEP / "manifest.json").read_text())
