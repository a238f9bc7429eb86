"""Open the sinks that a recipe names."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rlkl.errors import InputError
from rlkl.recipe import Recipe
from rlkl.tracking.sinks.event_files import TensorBoardSink
from rlkl.tracking.sinks.recorder import SinkRecorder
from rlkl.tracking.sinks.sink import Sink
from rlkl.tracking.sinks.trackio_run import TrackioSink
from rlkl.tracking.wandb.run import WandbRun

TITLES = {"tensorboard": "TensorBoard", "trackio": "trackio"}
_OPENERS: Mapping[str, Callable[..., Sink]] = {"tensorboard": TensorBoardSink, "trackio": TrackioSink}
_PACKAGES = {
    "tensorboard": ("tensorboardX", "pip install 'rlkl[tensorboard]'"),
    "trackio": ("trackio", "pip install --no-deps trackio gradio-client orjson brotli python-multipart"),
}
"""The module that a sink needs, and how to install it."""


def new_run_id() -> str:
    """Make an id for a run: once per run, kept in checkpoints, and the same after every resume."""
    return uuid.uuid4().hex[:12]


def check_sinks(recipe: Recipe) -> None:
    """Raise `InputError` if a sink of ``tracking.also`` is not installed."""
    for name in recipe.tracking.also:
        module, install = _PACKAGES[name]
        if find_spec(module) is None:
            raise InputError(
                f"tracking.also = {recipe.tracking.also}: {name} needs the package {module}, which is not installed. "
                f"Install it ({install}), or take {name} out of tracking.also"
            )


def open_sinks(run_dir: Path, recipe: Recipe, *, run_id: str | None, first_step: int) -> tuple[list[SinkRecorder], str]:
    """Open W&B and the sinks of ``tracking.also``; return them and the id of the run, which W&B may change.

    Raises `EnvironmentProblem` if W&B refuses the run. Other sinks open on their own threads, and warn if they cannot.
    """
    own_id = run_id or new_run_id()
    sinks: list[SinkRecorder] = []
    if recipe.tracking.wandb != "off":
        run = WandbRun(run_dir, recipe, run_id=own_id, first_step=first_step)
        own_id = run.run_id
        sinks.append(SinkRecorder("W&B", lambda: run))
    for name in dict.fromkeys(recipe.tracking.also):
        opener = partial(_OPENERS[name], run_dir, recipe, run_id=own_id, first_step=first_step)
        sinks.append(SinkRecorder(TITLES[name], opener))
    return sinks, own_id
