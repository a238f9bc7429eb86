"""Going on with a run: only with the recipe, the models, the data and the rewards that made it."""

from __future__ import annotations

import hashlib
import logging
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlkl.data.prompts import PromptSource
from rlkl.errors import CheckpointError, RecipeError
from rlkl.learner.manifest import differences, list_files, read_manifest
from rlkl.models.fingerprint import model_fingerprint
from rlkl.recipe import Recipe
from rlkl.recipe.changes import BOUND_BY_CONTENT, Change, changes, plain_values
from rlkl.recipe.io import as_override, recipe_from
from rlkl.recipe.resolved_model import ResolvedModel, ResolvedModels
from rlkl.recipe.run_dir import EVAL_FILE, RECIPE_FILE
from rlkl.system.importing import file_of, is_file
from rlkl.training.checkpoint import Checkpoints, LoopState
from rlkl.updates.custom import OutsideSettings, rule_of
from rlkl.updates.terms.custom import CustomTermSettings, term_of
from rlkl.updates.terms.replay.settings import ReplaySettings
from rlkl.updates.terms.replay.states import read_header

logger = logging.getLogger(__name__)

_COLUMN = "column "


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The run that goes on, as its newest checkpoint that is whole has it."""

    run_dir: Path
    checkpoint: Path
    state: LoopState
    damaged: Mapping[Path, str] = field(default_factory=dict)
    """Newer checkpoints that are not whole, and what is wrong with each."""


def newest(run_dir: Path, recipe: Recipe) -> Saved:
    """Return the newest whole checkpoint; raise `CheckpointError` if there is none, or if nothing is left to do."""
    found = Checkpoints(run_dir.absolute(), keep=recipe.checkpoint.keep).newest_whole()
    checkpoint, state = found.checkpoint, found.state
    if state.step >= recipe.steps and _is_exported(checkpoint, run_dir / "policy"):
        raise CheckpointError(
            f"{checkpoint} has made {state.step} steps, and steps = {recipe.steps} asks for no more; to go on: "
            f"rlkl train --resume {run_dir} steps={max(recipe.steps, state.step) * 2}"
        )
    return Saved(run_dir=run_dir, checkpoint=checkpoint, state=state, damaged=found.damaged)


def origin_of(recipe: Recipe, models: ResolvedModels) -> dict[str, str]:
    """Hash the models, rule and terms that a run starts from.

    The names: ``model``, ``models.teacher``, ``rule``, ``terms[0]`` of a custom term, ``terms[0].states`` of replay.
    """
    found = {"model": _model_fingerprint(models.policy)}
    if models.reference is not None:
        found["reference"] = _model_fingerprint(models.reference)
    if isinstance(recipe.update, OutsideSettings):
        found["rule"] = _code_fingerprint(recipe.update.rule, rule_of(recipe.update))
    for number, term in enumerate(recipe.update.terms):
        if isinstance(term, CustomTermSettings):
            found[f"terms[{number}]"] = _code_fingerprint(term.term, term_of(term))
        if isinstance(term, ReplaySettings):
            header = read_header(Path(term.states).expanduser(), f"update.terms[{number}].states")
            found[f"terms[{number}].states"] = header.tensors_digest
    return found | {f"models.{name}": _model_fingerprint(model) for name, model in models.frozen.items()}


def _model_fingerprint(model: ResolvedModel) -> str:
    return model_fingerprint(model.path, commit=model.commit)


def columns_of(source: PromptSource) -> dict[str, str]:
    """Hash the columns of the data, by names for the same mapping as `origin_of`."""
    return {f"{_COLUMN}{name}": digest for name, digest in source.column_fingerprints().items()}


def check_recipe(saved: Saved, recipe: Recipe, *, allow_changed_rewards: bool) -> None:
    """Raise `CheckpointError` if the recipe differs, in more than a resume may change, from the one that made the run.

    Keys that refer to something with a hash are left to `check_origin`, `check_data` and `check_rewards`.
    """
    every = changes(_values_before(saved), plain_values(recipe))
    found = [change for change in every if not _is_free(saved, change)]
    _warn_of_evaluation(saved, every)
    of_rewards = [change for change in found if change.is_within("rewards") or change.is_within("scoring")]
    refused = [change for change in found if change not in of_rewards] if allow_changed_rewards else found
    if not refused:
        if of_rewards:
            logger.warning("the rewards' keys have changed: %s", ", ".join(map(str, of_rewards)))
        return
    listed = "\n".join(f"  {change}" for change in refused)
    rewards = "; changed rewards are accepted with --allow-changed-rewards" if of_rewards else ""
    kept = [as_override(change.key, change.now) for change in every if change not in refused]
    old = [as_override(change.key, change.before) for change in refused]
    raise CheckpointError(
        f"the recipe ({saved.run_dir / RECIPE_FILE} and overrides) is not the one that made {saved.checkpoint}:\n"
        f"{listed}\n"
        "A run keeps its recipe, so that its curves mean one thing: a resume may change `steps`, and where and how it "
        f"computes and records (docs/resuming.md lists the keys){rewards}.\n"
        f"To go on with the old values: rlkl train --resume {_words([str(saved.run_dir), *old, *kept])}\n"
        f"{_new_run(saved, [as_override(change.key, change.now) for change in refused])}"
    )


def _warn_of_evaluation(saved: Saved, every: Iterable[Change]) -> None:
    """Warn if later evaluations will not measure what earlier ones did."""
    changed = [change for change in every if change.is_within("eval") and not change.is_within("eval.every")]
    if changed and (saved.run_dir / EVAL_FILE).is_file():
        logger.warning(
            "the evaluation has changed, so the records in %s will not join up: %s",
            saved.run_dir / EVAL_FILE,
            ", ".join(map(str, changed)),
        )


def check_origin(saved: Saved, now: Mapping[str, str], recipe: Recipe) -> None:
    """Raise `CheckpointError` if a model, a custom rule, a custom term or replayed states are not what they were."""
    before, terms = saved.state.fingerprints, list(enumerate(recipe.update.terms))
    for name, key, value, noun in (
        ("model", "model.path", recipe.model.path, "model"),
        ("reference", "model.reference", recipe.model.reference, "model"),
        ("rule", "update.rule", recipe.update.rule, "rule"),
        *((f"models.{name}", f"models.{name}.path", section.path, "model") for name, section in recipe.models.items()),
        *((f"terms[{n}]", f"update.terms[{n}].term", term.term, "term") for n, term in terms),
        *(
            (f"terms[{n}].states", f"update.terms[{n}].states", term.states, "folder of states")
            for n, term in terms
            if isinstance(term, ReplaySettings)
        ),
    ):
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{key} = {value!r} is not the {noun} that it was when {saved.checkpoint} was saved: its files have "
                f"changed, so the steps to come would not continue those before. Bring the old {noun} back; if it has "
                f"moved, name its new place with {key}=...\n{_new_run(saved, [])}"
            )


def check_data(saved: Saved, source: PromptSource, columns: Mapping[str, str], recipe: Recipe) -> None:
    """Raise `CheckpointError` if the prompts, or values that rewards can read, are not what they were."""
    now = f"data.source = {recipe.data.source!r}"
    if saved.state.data_fingerprint != source.fingerprint:
        raise CheckpointError(
            f"{now} does not hold the prompts that it held when {saved.checkpoint} was saved, so the run cannot go on "
            f"where it was. Bring the data back; if they have moved, name their new place with data.source=...\n"
            f"{_new_run(saved, [])}"
        )
    before = {name: digest for name, digest in saved.state.fingerprints.items() if name.startswith(_COLUMN)}
    changed = [name.removeprefix(_COLUMN) for name in _differing(before, columns)]
    if changed:
        raise CheckpointError(
            f"{now} does not hold the values that it held when {saved.checkpoint} was saved, in the column(s) "
            f"{', '.join(map(repr, changed))}; rewards may read them, so the policy would be trained on another goal "
            f"from here on. Bring the data back; if they have moved, name their new place with data.source=...\n"
            f"{_new_run(saved, [])}"
        )


def check_rewards(state: LoopState, fingerprints: Mapping[str, str], *, allow_changed: bool) -> None:
    """Raise `CheckpointError` if rewards are not what they were, or warn if that is allowed."""
    before = state.reward_fingerprints
    changed = [
        f"'{name}' is {'new' if name not in before else 'gone' if name not in fingerprints else 'changed'}"
        for name in _differing(before, fingerprints)
    ]
    if not changed:
        return
    told = f"the rewards are not what they were at step {state.step}, when the checkpoint was saved: "
    told += ", ".join(changed)
    if not allow_changed:
        raise CheckpointError(
            f"{told}. The policy would be trained on another goal from here on, and curves would not join up. Bring "
            "the source and its settings back, or go on all the same with --allow-changed-rewards (in Python: "
            "allow_changed_rewards=True); functions that came from Python must be given again"
        )
    logger.warning("%s; curves will not join up", told)


def _is_exported(checkpoint: Path, policy: Path) -> bool:
    """Return whether ``policy`` holds what the checkpoint holds. It may be the policy of an earlier, shorter run."""
    files = read_manifest(checkpoint).items()
    expected = {name.removeprefix("policy/"): file for name, file in files if name.startswith("policy/")}
    return policy.is_dir() and not differences(expected, list_files(policy))


def _values_before(saved: Saved) -> Mapping[str, object]:
    """Return the recipe that made the run; keys that this version has added get their defaults."""
    try:
        return plain_values(recipe_from(saved.state.recipe, str(saved.checkpoint)))
    except RecipeError as error:  # another version's keys, or a rule whose file has moved
        logger.debug("%s", error)
        return saved.state.recipe


def _is_free(saved: Saved, change: Change) -> bool:
    """Return whether a change is allowed, or is judged by a hash rather than by the text of the key."""
    if change.may_happen:
        return True
    name = next((name for key, name in BOUND_BY_CONTENT.items() if change.is_within(key)), None)
    if change.is_within("models"):
        name = change.key.removesuffix(".path")  # models.teacher
    if change.is_within("update.terms[].term"):
        name = change.key.removeprefix("update.").removesuffix(".term")  # terms[0]
    if change.is_within("update.terms[].states"):
        name = change.key.removeprefix("update.")  # terms[0].states; a custom term's own key has no hash
    if name in ("data", "rewards"):
        return True
    return name is not None and name in saved.state.fingerprints


def _code_fingerprint(reference: str, found: type) -> str:
    """Hash the file or module of a custom rule or term, and the name of its class."""
    if is_file(reference):
        text = file_of(reference).read_bytes()
    else:
        file = getattr(sys.modules.get(found.__module__), "__file__", None)
        text = Path(file).read_bytes() if file else b""
    return hashlib.blake2b(text + reference.rpartition(":")[2].encode(), digest_size=16).hexdigest()


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def _new_run(saved: Saved, overrides: Iterable[str]) -> str:
    policy = f"model.path={saved.checkpoint / 'policy'}"
    words = _words([str(saved.run_dir / RECIPE_FILE), *overrides, policy, "run.dir=NEW_FOLDER"])
    return f"To start a new run from what was learned: rlkl train {words}"


def _words(words: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, words))
