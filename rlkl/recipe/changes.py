"""Compare the recipe of a run with the recipe that resumes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkl.errors import RecipeError
from rlkl.recipe import EvalSection, Recipe, RewardSection
from rlkl.recipe.io import as_override
from rlkl.system.importing import file_of, is_file
from rlkl.updates.terms.replay.settings import ReplaySettings
from rlkl.updates.terms.settings import TermSettings

MAY_CHANGE = (
    "run",
    "steps",
    "model.gradient_checkpointing",
    "rollout.workers",
    "rollout.gpus_per_worker",
    "rollout.cpus_per_worker",
    "rollout.threads",
    "rollout.tensor_parallel",
    "rollout.placement",
    "rollout.vllm.memory_fraction",
    "rollout.vllm.kv_cache_gib",
    "rewards[].mode",
    "rewards[].workers",
    "rewards[].timeout_s",
    "rewards[].memory_mb",
    "rewards[].cpus",
    "rewards[].gpus",
    "rewards[].max_failed_fraction",
    "rewards[].on_error",
    "rewards[].error_value",
    "learner.device",
    "learner.gpus",
    "learner.ranks",
    "learner.threads",
    "learner.offload",
    "learner.on_fault",
    "learner.micro_batch_tokens",
    "learner.logits_chunk_tokens",
    "weights",
    "eval",
    "tracking",
    "checkpoint",
    "cluster",
)
"""Keys and sections that a resume may change: where and how the run computes, what it records, and its length."""

BOUND_BY_CONTENT = {
    "model.path": "model",
    "model.reference": "reference",
    "models": "models",
    "update.rule": "rule",
    "update.terms[].states": "terms[].states",
    "data.source": "data",
    "data.subset": "data",
    "data.split": "data",
    "rewards[].function": "rewards",
    "rewards[].settings": "rewards",
}
"""Keys whose target is hashed, with the name of the hash: files may move if their contents stay equal."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key with two values. Sections with different keys are compared as one value."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{as_override(self.key, self.now)} (was {as_override(self.key, self.before).partition('=')[2]})"

    @property
    def schema_key(self) -> str:
        """The key as the schema names it: ``rewards[].weight`` for ``rewards[1].weight``."""
        return re.sub(r"\[\d+\]", "[]", self.key)

    def is_within(self, key: str) -> bool:
        """Return whether the changed key is ``key`` or is in that section."""
        return self.schema_key == key or self.schema_key.startswith((f"{key}.", f"{key}["))

    @property
    def may_happen(self) -> bool:
        """Whether a resume may make this change."""
        return any(self.is_within(key) for key in MAY_CHANGE)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return every key whose value differs, in the order of ``now``; the order of keys within a section is ignored."""
    return list(_changes(before, now, ""))


def _changes(before: Any, now: Any, key: str) -> Iterator[Change]:
    if json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True):
        return
    if isinstance(before, Mapping) and isinstance(now, Mapping) and before.keys() == now.keys():
        for name in now:
            yield from _changes(before[name], now[name], f"{key}.{name}".lstrip("."))
    elif _are_sections(before) and _are_sections(now) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _changes(one, other, f"{key}[{number}]")
    else:
        yield Change(key, before, now)


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def plain_values(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain JSON values.

    Raises `RecipeError` for a value that JSON cannot hold; `rlkl.recipe.io.dump_recipe` names its key.
    """
    try:
        return json.loads(json.dumps(recipe.model_dump()))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the recipe holds a value that cannot be written to a file: {error}") from error


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make every local path in the recipe absolute, so that it can be used from any folder.

    Paths in the settings of a reward stay as they are: only the reward knows which of its settings are paths.
    """
    run, model, data = recipe.run, recipe.model, recipe.data
    changed: dict[str, Any] = {
        "run": run.model_copy(update={"dir": None if run.dir is None else str(Path(run.dir).absolute())}),
        "model": model.model_copy(
            update={
                "path": absolute_if_local(model.path),
                "reference": None if model.reference is None else absolute_if_local(model.reference),
            }
        ),
        "models": {
            name: section.model_copy(update={"path": absolute_if_local(section.path)})
            for name, section in recipe.models.items()
        },
        "data": data.model_copy(update={"source": absolute_if_local(data.source)}),
        "rewards": _absolute_rewards(recipe.rewards),
        "eval": None if recipe.eval is None else _absolute_evaluation(recipe.eval),
        "update": recipe.update.model_copy(
            update={
                "rule": _absolute_reference(recipe.update.rule),
                "terms": [
                    term.model_copy(update={"term": _absolute_reference(term.term), **_absolute_states(term)})
                    for term in recipe.update.terms
                ],
            }
        ),
    }
    return recipe.model_copy(update=changed)


def _absolute_states(term: TermSettings) -> dict[str, str]:
    """Return the folder of states of the term replay; a key of that name of a custom term may be anything."""
    return {"states": absolute_if_local(term.states)} if isinstance(term, ReplaySettings) else {}


def _absolute_rewards(rewards: Sequence[RewardSection]) -> list[RewardSection]:
    return [reward.model_copy(update={"function": _absolute_reference(reward.function)}) for reward in rewards]


def _absolute_evaluation(section: EvalSection) -> EvalSection:
    source = section.data.source
    data = section.data.model_copy(update={"source": None if source is None else absolute_if_local(source)})
    return section.model_copy(update={"data": data, "rewards": _absolute_rewards(section.rewards)})


def absolute_if_local(path: str) -> str:
    """Make the path of an existing file or folder absolute; leave other names (of a hub or a task) as they are."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


def _absolute_reference(reference: str) -> str:
    if ":" not in reference or not is_file(reference):
        return reference
    return f"{file_of(reference)}:{reference.rpartition(':')[2]}"
