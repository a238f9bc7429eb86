"""Tell which command a recipe or a run folder belongs to, by the sections and keys of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkl.errors import RecipeError
from rlkl.recipe.core_yaml import parse_yaml

TRAIN, SFT, REWARD_MODEL = "train", "sft", "reward-model"
_OF_TRAIN = {"rollout", "rewards", "update"}
_OF_ONE = {
    SFT: {"data.completion_column", "learner.train_on_prompt"},
    REWARD_MODEL: {"data.margin_column", "data.probability_column", "split.halves", "learner.center_coef"},
}
_OF_BOTH = {"split", "data.max_answer_tokens", "learner.batch_size", "learner.micro_batch_size"}
_LIMITS_OF_ANSWERS = ("completion_column", "max_answer_tokens")
"""Keys of the section ``data`` of `rlkl sft` that other commands do not read."""
_USES = {
    SFT: ("policy", "give that to `rlkl eval`, to model.path of a recipe, or to `hf upload` to publish it"),
    REWARD_MODEL: ("reward_model", "give that to a reward, with function: reward_models:SequenceClassifier"),
}
"""Command -> the folder of its model within the run folder, and what takes that."""


def owners_of(recipe: Any) -> tuple[str, ...]:
    """Return the commands that a recipe, as plain values, may belong to; empty if its keys do not tell."""
    if not isinstance(recipe, Mapping):
        return ()
    sections = [(name, value) for name, value in recipe.items() if isinstance(value, Mapping)]
    keys = {*recipe, *(f"{name}.{key}" for name, value in sections for key in value)}
    if keys & _OF_TRAIN:
        return (TRAIN,)
    for command, own in _OF_ONE.items():
        if keys & own:
            return (command,)
    return (SFT, REWARD_MODEL) if keys & _OF_BOTH else ()


def check_owner(recipe: Any, path: str | Path, file: Path, command: str) -> None:
    """Raise `RecipeError` if the recipe in ``file``, given as ``path``, belongs to another command than ``command``."""
    owners = owners_of(recipe)
    if owners and command not in owners:
        named = " or ".join(f"`rlkl {owner}`" for owner in owners)
        ways = " or ".join(f"rlkl {owner} {path}" for owner in owners)
        raise RecipeError(f"{file}: this is a recipe of {named}, not of `rlkl {command}`; run {ways}")


def other_owner(file: Path) -> str | None:
    """Return the command whose run folder has this ``recipe.yaml``; None for `rlkl train`, or if it does not tell."""
    try:
        owners = owners_of(parse_yaml(file.read_text(encoding="utf-8"), str(file)))
    except (RecipeError, OSError, UnicodeDecodeError):  # whoever reads the recipe reports that
        return None
    return owners[0] if len(owners) == 1 and owners[0] != TRAIN else None


def refusal(folder: Path, owner: str) -> str:
    """Return the sentence that refuses a run folder of another command, and names the use of the model in it."""
    name, takers = _USES[owner]
    return (
        f"{folder} is the folder of `rlkl {owner}`, and only a run of `rlkl train` can be used here. Its model is "
        f"{folder / name}: {takers}"
    )


def read_by_training(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe of `rlkl sft` that mean the same in one of `rlkl train`."""
    data = recipe.get("data")
    kept = {key: recipe[key] for key in ("seed", "model") if key in recipe}
    if isinstance(data, Mapping):
        kept["data"] = {key: value for key, value in data.items() if key not in _LIMITS_OF_ANSWERS}
    return kept
