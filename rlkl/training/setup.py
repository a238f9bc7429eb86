"""From a recipe to a running loop: everything that can be refused is refused before an actor starts."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkl.actors.cluster import check_own_machine
from rlkl.actors.hands import RayHands
from rlkl.analysis.report.at_end import report_at_end
from rlkl.data.curriculum.source import build_source
from rlkl.data.prompts import Encoder, PromptSource, load_prompts
from rlkl.data.vision import PictureProcessor, load_picture_processor
from rlkl.errors import ActorDiedError, DeadlineError, InputError, MissingSignalError
from rlkl.learner.device import check_device
from rlkl.learner.learner import LearnerSpec
from rlkl.learner.replay_states import check_states
from rlkl.learner.signals import check_supplied
from rlkl.models.adapter import adapter_names
from rlkl.models.resolve import resolve_models
from rlkl.recipe import Recipe
from rlkl.recipe.changes import plain_values, with_absolute_paths
from rlkl.recipe.io import dump_recipe
from rlkl.recipe.model_limits import check_limits
from rlkl.recipe.resolved_model import ResolvedModels
from rlkl.recipe.run_dir import NO_CHECKPOINT, claim_run_dir, has_checkpoint, recipe_path, write_recipe
from rlkl.recipe.run_lock import lock_run_dir
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.rewards import RewardSet, load_rewards
from rlkl.rewards.loading import check_eval_names, check_uses
from rlkl.rollout.engine import EngineSettings, engine_class
from rlkl.rollout.settings import engine_settings, load_tokenizer
from rlkl.rollout.vllm_arguments import check_vllm_arguments
from rlkl.signals import CLEAN
from rlkl.system.interrupt import StopRequest
from rlkl.system.machine import this_machine
from rlkl.tracking.sinks.opening import check_sinks
from rlkl.tracking.tracker import Tracker
from rlkl.training.checkpoint import Checkpoints, LoopState
from rlkl.training.evaluation import HeldOut, load_held_out
from rlkl.training.loop import Trainer
from rlkl.training.result import RunResult
from rlkl.training.resume import (
    Saved,
    check_data,
    check_origin,
    check_recipe,
    check_rewards,
    columns_of,
    newest,
    origin_of,
)
from rlkl.updates import build_update
from rlkl.updates.base import PolicyUpdate

logger = logging.getLogger(__name__)

_NO_PICTURES_IN_STREAM = (
    "rollout.schedule = stream does not work with pictures: vLLM cannot forget what old weights saw of a picture while "
    "a completion about it is being sampled. Set rollout.schedule: one_step_off"
)


def train(
    recipe: Recipe,
    *,
    rewards: Sequence[Callable[..., Any]] = (),
    resume_from: Path | None = None,
    allow_changed_rewards: bool = False,
) -> RunResult:
    """Run a recipe to its end, or go on with the run in ``resume_from`` (its folder, as `RunResult.run_dir`).

    ``rewards`` are reward functions in addition to the recipe's own. A run goes on only if recipe, models, data and
    rewards are what they were when its checkpoint was saved (docs/resuming.md); ``allow_changed_rewards`` leaves the
    rewards out of that.

    Raises an `InputError` for whatever is wrong with recipe, data, rewards or checkpoint, and if another process uses
    the run's folder, before anything starts; other `RlklError`s when the run fails. The run's checkpoints stay.
    """
    run_dir, stop = resume_from, StopRequest()
    with ExitStack() as held:
        if run_dir is not None:
            recipe_path(run_dir)  # raises if this is not the folder of a run
            held.enter_context(lock_run_dir(run_dir))
        for left in range(recipe.cluster.restarts, -1, -1):
            saved = None if run_dir is None else newest(run_dir, recipe)
            setup = _prepare(recipe, rewards, saved, allow_changed_rewards=allow_changed_rewards)
            run_dir = run_dir or held.enter_context(claim_run_dir(recipe)).run_dir
            try:
                result = _run(setup, run_dir, saved, stop)
                break
            except (ActorDiedError, DeadlineError) as error:
                if not left or not Checkpoints(run_dir, keep=recipe.checkpoint.keep).complete():
                    raise
                if stop.signal_number is not None:
                    name = signal.Signals(stop.signal_number).name
                    error.add_note(f"cluster.restarts does not apply: {name} has asked the run to end.")
                    raise
                logger.warning(
                    "%s\nThe run goes on from its newest checkpoint; cluster.restarts: %d left", error, left - 1
                )
        if recipe.tracking.report:
            report_at_end(result.run_dir)
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """A run whose parts have all been checked; nothing of it has started."""

    recipe: Recipe
    stored: Recipe
    """The recipe with absolute paths, as it is written down."""
    rewards: RewardSet
    update: PolicyUpdate
    spec: LearnerSpec
    engine: EngineSettings
    tokenizer: Any
    pictures: PictureProcessor | None
    source: PromptSource
    held_out: HeldOut | None
    fingerprints: Mapping[str, str]


def _prepare(
    recipe: Recipe, functions: Sequence[Callable[..., Any]], saved: Saved | None, *, allow_changed_rewards: bool
) -> _Setup:
    """Load and check all that a run needs; raise `InputError` for whatever cannot work."""
    stored = with_absolute_paths(recipe)
    dump_recipe(stored)  # raises for a value that no file can hold
    check_no_secrets(stored)
    if saved is not None:
        check_recipe(saved, stored, allow_changed_rewards=allow_changed_rewards)
    reward_set = _load_rewards(recipe, functions)
    _check_engine(recipe)
    check_sinks(recipe)
    update = _build_update(recipe)
    if saved is not None:
        check_rewards(saved.state, reward_set.fingerprints, allow_changed=allow_changed_rewards)
    models = resolve_models(recipe)
    tokenizer = load_tokenizer(models.policy.path, models.policy.vocabulary)
    check_states(recipe, models.policy, tokenizer)
    _check_sizes(models, recipe)
    pictures = load_picture_processor(models.policy, recipe.data.pixels)
    source = _load_data(recipe, tokenizer, pictures, update)
    columns, origin = columns_of(source), origin_of(recipe, models)
    if saved is not None:
        check_data(saved, source, columns, recipe)
        check_origin(saved, origin, recipe)
    for warning in reward_set.check(source.prompts):
        logger.warning("%s", warning)
    held_out = _held_out(recipe, reward_set, Encoder(tokenizer=tokenizer, pictures=pictures))
    images = max(len(prompt.images) for prompt in held_out.prompts) if held_out else 0
    engine = engine_settings(recipe, models.policy, tokenizer, max(images, source.images_per_prompt))
    return _Setup(
        recipe=recipe,
        stored=stored,
        rewards=reward_set,
        update=update,
        spec=LearnerSpec(
            recipe=recipe,
            model_path=models.policy.path,
            reference_path=None if models.reference is None else models.reference.path,
            frozen_paths=models.frozen_paths,
            stop_token_ids=engine.stop_token_ids,
        ),
        engine=engine,
        tokenizer=tokenizer,
        pictures=pictures,
        source=source,
        held_out=held_out,
        fingerprints={**origin, **columns},
    )


def _run(setup: _Setup, run_dir: Path, saved: Saved | None, stop: StopRequest) -> RunResult:
    """Start the actors and train. The run's folder is locked."""
    recipe, reward_set = setup.recipe, setup.rewards
    if saved is not None:
        Checkpoints(run_dir, keep=recipe.checkpoint.keep).set_aside(saved.damaged)
    tracker = _open_records(run_dir, setup, saved.state if saved else None)
    try:
        with ExitStack() as running:
            if reward_set.rewards:
                tracker.note("starting the rewards")
            sets = [reward_set]
            if setup.held_out is not None and recipe.eval is not None and recipe.eval.rewards:
                sets.append(setup.held_out.rewards)
            for one in sets:
                running.callback(one.close)
                one.start(timeout_s=recipe.cluster.start_timeout_s)
            workers = f"{recipe.rollout.workers} rollout worker(s)"
            tracker.note(f"starting Ray, the learner and {workers}, which load the model")
            hands = RayHands(recipe, setup.spec, setup.engine, run_dir.absolute())
            running.callback(hands.close)
            for one in sets:
                running.callback(one.close)  # once more: reward actors end before Ray does
                one.start_actors(hands.make_reward_worker, timeout_s=recipe.cluster.start_timeout_s)
            trainer = Trainer(
                recipe=recipe,
                run_dir=run_dir.absolute(),
                hands=hands,
                source=setup.source,
                rewards=reward_set,
                update=setup.update,
                tracker=tracker,
                tokenizer=setup.tokenizer,
                stop_token_ids=setup.engine.stop_token_ids,
                held_out=setup.held_out,
                processor=setup.tokenizer if setup.pictures is None else setup.pictures.whole,
                recipe_values=plain_values(setup.stored),
                fingerprints=setup.fingerprints,
                stop=stop,
            )
            if saved is not None:
                trainer.resume(saved.checkpoint, saved.state)
            return trainer.run()
    except BaseException as error:
        tracker.fail(error)
        if isinstance(error, KeyboardInterrupt):
            kept = "what the last checkpoint holds is safe" if has_checkpoint(run_dir) else NO_CHECKPOINT
            error.add_note(kept)
        raise


def _check_engine(recipe: Recipe) -> None:
    if recipe.rollout.workers:
        engine_class(recipe.rollout.engine)
        check_vllm_arguments(recipe.rollout.vllm.arguments)


def _build_update(recipe: Recipe) -> PolicyUpdate:
    """Return the recipe's rule; raise if this learner cannot compute what it needs, or not on the wanted device."""
    check_device(recipe)
    update = build_update(recipe.update, seed=recipe.seed)
    check_supplied(update, recipe.models)
    return update


def _load_rewards(recipe: Recipe, functions: Sequence[Callable[..., Any]]) -> RewardSet:
    if recipe.data.has_pairs:
        return RewardSet(())
    optional = recipe.update.learns_without_rewards
    found = load_rewards(recipe.rewards, functions, normalize=recipe.scoring.normalize, optional=optional)
    check_uses(recipe, found)
    return found


def _held_out(recipe: Recipe, rewards: RewardSet, encoder: Encoder) -> HeldOut | None:
    """Load what the section ``eval`` names; None without it."""
    if recipe.eval is None:
        return None
    if recipe.eval.rewards:
        rewards = load_rewards(recipe.eval.rewards, for_evaluation=True, key="eval.rewards")
    else:
        check_eval_names(rewards.rewards)
        rewards = rewards.for_evaluation()
    held_out = load_held_out(recipe, recipe.eval, rewards, encoder)
    if recipe.rollout.schedule == "stream" and any(prompt.images for prompt in held_out.prompts):
        raise InputError(_NO_PICTURES_IN_STREAM)
    return held_out


def _open_records(run_dir: Path, setup: _Setup, state: LoopState | None) -> Tracker:
    """Write the recipe into the run's folder, and open all that is written there while the run goes on."""
    write_recipe(run_dir, dump_recipe(setup.stored))
    first_step = state.step if state else 0
    setup.rewards.open_folder(run_dir.absolute(), first_step=first_step)
    return Tracker(
        run_dir.absolute(),
        setup.recipe,
        run_id=state.run_id if state else None,
        first_step=first_step,
        tokenizer=setup.tokenizer,
    )


def _load_data(recipe: Recipe, tokenizer: Any, pictures: PictureProcessor | None, update: PolicyUpdate) -> PromptSource:
    update.check_model(is_multimodal=pictures is not None)
    encoder = Encoder(
        tokenizer=tokenizer,
        pictures=pictures,
        max_answer_tokens=recipe.rollout.max_new_tokens,
        answers=recipe.update.answer_columns,
        wordings=recipe.update.wording_columns,
    )
    source = build_source(recipe, load_prompts(recipe.data, encoder, seed=recipe.seed))
    _check_pictures(update, source)
    if source.images_per_prompt and recipe.rollout.schedule == "stream":
        raise InputError(_NO_PICTURES_IN_STREAM)
    return source


def _check_pictures(update: PolicyUpdate, source: PromptSource) -> None:
    """Raise `MissingSignalError` if the rule changes pictures and no prompt has one."""
    changed = sorted(signal.name for signal in update.needs if signal.view != CLEAN)
    if changed and not source.images_per_prompt:
        raise MissingSignalError(
            update.rule,
            changed[0],
            "No prompt has a picture to change: take a vision-language model and a data set with pictures "
            "(data.image_column), or update.rule = grpo",
        )


def _check_sizes(models: ResolvedModels, recipe: Recipe) -> None:
    """Refuse more actors than this machine can hold, and what the model or its engine cannot do."""
    check_own_machine(recipe, models)
    check_limits(recipe, models.policy.path, this_machine())
    lora = recipe.model.lora
    if lora is not None and lora.target_modules != "all-linear":  # raises if the model has no such module
        adapter_names(models.policy.path, lora, freeze_vision=recipe.model.freeze_vision)
