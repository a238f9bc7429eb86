"""`rlkl train`: train by a recipe, or continue a run."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlkl.commands.plan_warnings import warnings_about
from rlkl.errors import InputError
from rlkl.recipe.io import load_recipe
from rlkl.recipe.run_dir import recipe_path
from rlkl.system.machine import this_machine

if TYPE_CHECKING:
    from rlkl.recipe import Recipe

logger = logging.getLogger(__name__)


def run(options: Namespace) -> int:
    """Train and return the run's exit code. Log the warnings about the recipe that `rlkl plan` prints.

    The recipe is checked before torch is imported.
    """
    if options.allow_changed_rewards and options.resume is None:
        raise InputError(
            "--allow-changed-rewards goes with --resume RUN_DIR only: a new run has no rewards that could have changed"
        )
    recipe = _recipe(options.words, options.resume)
    for warning in warnings_about(recipe, this_machine()):
        logger.warning("%s", warning)
    from rlkl.training.setup import train

    return train(recipe, resume_from=options.resume, allow_changed_rewards=options.allow_changed_rewards).exit_code


def _recipe(words: Sequence[str], resume: Path | None) -> Recipe:
    if resume is not None:
        if words and "=" not in words[0]:
            raise InputError(
                f"--resume {resume} takes the recipe of that run; leave {words[0]} out, and give changes as "
                "section.key=value"
            )
        return load_recipe(recipe_path(resume), *words)
    if not words or "=" in words[0]:
        raise InputError("rlkl train needs a recipe first (rlkl train RECIPE ...), or --resume RUN_DIR")
    return load_recipe(words[0], *words[1:])
