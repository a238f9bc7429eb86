"""From the words of `rlkl eval` to a recipe that holds what an evaluation reads, and nothing of the training."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from rlkl.errors import InputError
from rlkl.recipe import Recipe
from rlkl.recipe.evaluated import NO_REFERENCE, check_read, read_by_evaluation
from rlkl.recipe.io import apply_overrides, read_values, recipe_from
from rlkl.recipe.owner import REWARD_MODEL, SFT, TRAIN, other_owner, read_by_training, refusal
from rlkl.recipe.run_dir import RECIPE_FILE, numbered

logger = logging.getLogger(__name__)

SAMPLES = 8
"""Completions for each prompt if neither ``--samples`` nor a recipe says otherwise."""


def policy_of(policy: str) -> tuple[str, Path | None]:
    """Return the model of ``POLICY`` and, if that is the folder of a run, the recipe of the run.

    Raises `InputError` if the run has not exported its policy, or is one of `rlkl reward-model`.
    """
    folder = Path(policy)
    recipe = folder / RECIPE_FILE
    if not recipe.is_file():
        return policy, None
    if other_owner(recipe) == REWARD_MODEL:
        raise InputError(refusal(folder, REWARD_MODEL))
    if not (folder / "policy").is_dir():
        checkpoints = [path for _, path in numbered(folder / "checkpoints", "step_*")]
        saved = [path / "policy" for path in checkpoints if (path / "policy").is_dir()]
        instead = f"give a checkpoint's: {saved[-1]} --recipe {recipe}" if saved else "it has no checkpoint either"
        raise InputError(f"the run in {folder} has no policy yet, because it has not come to its end; {instead}")
    return str(folder / "policy"), recipe


def evaluation_recipe(options: Namespace) -> Recipe:
    """Return the recipe of an evaluation: from the run or ``--recipe``, then options, then overrides.

    Raises `InputError` if it names no data or no reward, or for a key that an evaluation does not read.
    """
    policy, of_run = policy_of(options.policy)
    check_read([override.partition("=")[0] for override in options.overrides], reader="rlkl eval")
    source = options.recipe or of_run
    values: dict[str, Any] = {}
    if source is not None:
        values, _ = read_values(source, command=None if options.recipe is None else TRAIN)
        if options.recipe is not None:
            recipe_from(values, str(source))  # raises for any mistake in it
        elif other_owner(source) == SFT:
            values = read_by_training(values)
    elif options.data is None:
        raise InputError(
            "rlkl eval needs data: --data FILE, --recipe RECIPE, or the folder of a run in place of the policy"
        )
    for name in ("data", "rollout", "eval"):
        if not isinstance(values.get(name), dict | None):
            raise InputError(f"{source}: {name} = {values[name]!r}: expected a section of keys; mend the file")
    start = values.get("model")
    start = start if isinstance(start, dict) else {}
    reference = options.reference
    if reference is None and of_run is not None:
        start = read_values(of_run)[0].get("model")
        if not isinstance(start, dict) or "path" not in start:
            raise InputError(
                f"{of_run} names no model.path, so the KL to it cannot be measured; mend the file, or leave the KL out "
                f"with --reference {NO_REFERENCE}"
            )
        reference = start.get("reference") or start["path"]
    values["model"] = {"dtype": start.get("dtype", "float32"), "path": policy}
    if reference not in (None, NO_REFERENCE):
        values["model"]["reference"] = reference
    _set_data(values, options.data)
    _set_options(values, options)
    apply_overrides(values, options.overrides)
    recipe = recipe_from(read_by_evaluation(values), "rlkl eval")
    assert recipe.eval is not None
    if not recipe.eval.rewards and not recipe.rewards:
        raise InputError("rlkl eval needs rewards: --reward FILE:FUNCTION, which may be given repeatedly")
    if options.reference not in (None, NO_REFERENCE) and recipe.eval.temperature != 1:
        raise InputError(
            f"--reference {options.reference} with --temperature {recipe.eval.temperature:g}: eval/kl is measured on "
            "samples at temperature 1; leave one of the two out"
        )
    return recipe


def _set_data(values: dict[str, Any], data: str | None) -> None:
    """Name the held-out prompts: ``data``, those of the section ``eval``, or with a warning those of the training."""
    section = values.setdefault("data", {"source": data})
    if values.get("eval") is None:
        values["eval"] = {"data": None, "samples": SAMPLES, "greedy": False}
        if data is None:
            logger.warning(
                "the recipe has no section eval: evaluating on its training prompts, data.source = %s. --data names "
                "others",
                section.get("source"),
            )
            kept = {name: section.get(name) for name in ("source", "subset", "split")}
            values["eval"]["data"] = {name: value for name, value in kept.items() if value is not None}
    if data is not None:
        values["eval"]["data"] = {"source": data}


def _set_options(values: dict[str, Any], options: Namespace) -> None:
    for name in ("samples", "greedy", "temperature", "limit"):
        if (value := getattr(options, name)) is not None:
            values["eval"][name] = value
    if options.reward:
        values["eval"]["rewards"] = [{"function": function} for function in options.reward]
    if options.seed is not None:
        values["seed"] = options.seed
    rollout = values.setdefault("rollout", {})
    if options.engine is not None:
        rollout["engine"] = options.engine
        if options.engine != "vllm":
            rollout.pop("vllm", None)
            rollout.pop("tensor_parallel", None)
    if options.max_new_tokens is not None:
        rollout["max_new_tokens"] = options.max_new_tokens
