"""From a recipe to a running loop: everything that can be refused is refused before an actor starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from rlkl.actors.backend import RayBackend
from rlkl.actors.rewards import RayRewardWorker
from rlkl.batch import Signal
from rlkl.data.answers import find_turn_end
from rlkl.data.prompts import Encoder, PromptSource, load_prompts
from rlkl.data.vision import PictureProcessor, load_picture_processor
from rlkl.errors import CheckpointError, InputError, MissingSignalError, RecipeError
from rlkl.learner.checkpoint import Checkpoints, LoopState, read_state
from rlkl.learner.learner import LearnerSpec
from rlkl.learner.signals import check_supplied
from rlkl.loop import RunResult, Trainer
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe
from rlkl.recipe.run_dir import RECIPE_FILE, new_run_dir
from rlkl.rewards import RewardSet, load_rewards
from rlkl.rollout.engine import EngineSettings, engine_class
from rlkl.rollout.vllm_arguments import check_vllm_arguments
from rlkl.tasks import base_model, task_name
from rlkl.tracking.tracker import Tracker
from rlkl.updates import build_update
from rlkl.updates.base import PolicyUpdate

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    rewards: Sequence[Callable[..., Any]] = (),
    resume_from: Path | None = None,
    allow_changed_rewards: bool = False,
) -> RunResult:
    """Run a recipe to its end, or go on with the run in ``resume_from`` (its folder, as `RunResult.run_dir`).

    ``rewards`` are reward functions in addition to the recipe's own. A run whose rewards are not what they were when
    its checkpoint was saved goes on only under ``allow_changed_rewards``.

    Raises an `InputError` for whatever is wrong with recipe, data, rewards or checkpoint, before anything starts; other
    `RlklError`s when the run fails. The run's checkpoints stay.
    """
    reward_set = _load_rewards(recipe, rewards)
    _check_engine(recipe)
    update = _build_update(recipe)
    checkpoint, state = _checkpoint(resume_from, recipe)
    _check_rewards(state, reward_set.fingerprints, allow_changed=allow_changed_rewards)
    model_path = resolve_model(recipe.model.path)
    reference_path = _resolve_reference(recipe, model_path)
    tokenizer = _load_tokenizer(model_path)
    _check_length(model_path, recipe)
    pictures = load_picture_processor(model_path, recipe.data.pixels)
    source = _load_data(recipe, tokenizer, pictures, update)
    reward_set.check(source.take(0, 2))
    _check_data(recipe, source, checkpoint, state)
    run_dir = resume_from or new_run_dir(recipe)
    tracker = _open_records(run_dir, recipe, reward_set, state)
    try:
        with ExitStack() as running:
            tracker.note("starting the rewards")
            running.callback(reward_set.close)
            reward_set.start(timeout_s=recipe.cluster.start_timeout_s)
            tracker.note(f"starting Ray, the learner and {recipe.rollout.workers} rollout worker(s)")
            spec = LearnerSpec(recipe=recipe, model_path=model_path, reference_path=reference_path)
            engine = _engine_settings(recipe, model_path, tokenizer, source.images_per_prompt)
            backend = RayBackend(recipe, spec, engine, run_dir.absolute())
            running.callback(backend.close)
            running.callback(reward_set.close)  # once more: reward actors end before Ray does
            reward_set.start_actors(RayRewardWorker, timeout_s=recipe.cluster.start_timeout_s)
            trainer = Trainer(
                recipe=recipe,
                run_dir=run_dir.absolute(),
                backend=backend,
                source=source,
                rewards=reward_set,
                update=update,
                tracker=tracker,
                tokenizer=tokenizer,
                processor=tokenizer if pictures is None else pictures.whole,
            )
            if checkpoint is not None and state is not None:
                trainer.resume(checkpoint, state)
            return trainer.run()
    except BaseException as error:
        tracker.fail(error)
        raise


def _check_engine(recipe: Recipe) -> None:
    if recipe.rollout.workers:
        engine_class(recipe.rollout.engine)
        check_vllm_arguments(recipe.rollout.vllm)


def _build_update(recipe: Recipe) -> PolicyUpdate:
    update = build_update(recipe.update)
    check_supplied(update)
    return update


def _load_rewards(recipe: Recipe, functions: Sequence[Callable[..., Any]]) -> RewardSet:
    if recipe.data.has_pairs:
        return RewardSet(())
    return load_rewards(recipe.rewards, functions, normalize=recipe.scoring.normalize)


def _check_data(recipe: Recipe, source: PromptSource, checkpoint: Path | None, state: LoopState | None) -> None:
    if state is not None and state.data_fingerprint != source.fingerprint:
        raise CheckpointError(
            f"data.source = {recipe.data.source!r} does not hold the prompts that it held when {checkpoint} was saved, "
            "so the run cannot go on where it was. Bring the data back, or start a new run with model.path="
            f"{checkpoint}/policy"
        )


def _open_records(run_dir: Path, recipe: Recipe, rewards: RewardSet, state: LoopState | None) -> Tracker:
    """Make the run's folder with the recipe in it, and all that is written there while the run goes on."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the run folder {run_dir} cannot be made ({error}); choose another with run.dir") from error
    (run_dir / RECIPE_FILE).write_text(dump_recipe(recipe))
    first_step = state.step if state else 0
    rewards.open_folder(run_dir.absolute(), first_step=first_step)
    return Tracker(run_dir.absolute(), recipe, run_id=state.run_id if state else None, first_step=first_step)


def resolve_model(path: str) -> str:
    """The folder behind ``model.path``: a built-in base model is built if need be, a local folder made absolute."""
    task = task_name(path)
    if task is not None:
        return str(base_model(task))
    return str(Path(path).absolute()) if Path(path).exists() else path


def _load_data(recipe: Recipe, tokenizer: Any, pictures: PictureProcessor | None, update: PolicyUpdate) -> PromptSource:
    encoder = Encoder(tokenizer=tokenizer, pictures=pictures, max_answer_tokens=recipe.rollout.max_new_tokens)
    source = load_prompts(recipe.data, encoder, seed=recipe.seed)
    _check_pictures(update, source)
    return source


def _check_pictures(update: PolicyUpdate, source: PromptSource) -> None:
    """Refuse a rule that corrupts pictures where no prompt has one; raises `MissingSignalError`."""
    if Signal.CORRUPTED_LOGPROBS in update.needs and not source.images_per_prompt:
        raise MissingSignalError(
            update.rule,
            Signal.CORRUPTED_LOGPROBS.name,
            "No prompt has a picture to corrupt: take a vision-language model and a data set with pictures "
            "(data.image_column), or update.rule = grpo",
        )


def _resolve_reference(recipe: Recipe, model_path: str) -> str | None:
    """The folder behind ``model.reference``; raises `InputError` when it is no model of the policy's vocabulary."""
    if recipe.model.reference is None:
        return None
    path = resolve_model(recipe.model.reference)
    sizes = [
        _config(name, key).get_text_config().vocab_size for key, name in (("path", model_path), ("reference", path))
    ]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"model.reference = {recipe.model.reference!r} has {sizes[1]} token ids, the policy at model.path = "
            f"{recipe.model.path!r} has {sizes[0]}; a KL needs one vocabulary, so name a model of the same family"
        )
    return path


def _config(path: str, key: str) -> Any:
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"model.{key} = {path!r}: its config.json cannot be read ({error})") from error


def _checkpoint(run_dir: Path | None, recipe: Recipe) -> tuple[Path | None, LoopState | None]:
    """The newest checkpoint to go on from; raises `CheckpointError` when there is none, or nothing left to do."""
    if run_dir is None:
        return None, None
    checkpoint = Checkpoints(run_dir.absolute(), keep=recipe.checkpoint.keep).latest()
    state = read_state(checkpoint)
    if state.step >= recipe.steps and (run_dir / "policy").is_dir():
        raise CheckpointError(
            f"{checkpoint} has finished all of its {recipe.steps} steps; to go on, ask for more: "
            f"rlkl train --resume {run_dir} steps={recipe.steps * 2}"
        )
    return checkpoint, state


def _check_rewards(state: LoopState | None, fingerprints: Mapping[str, str], *, allow_changed: bool) -> None:
    """Raise `CheckpointError` when rewards are not what they were, or warn where that is allowed."""
    if state is None:
        return
    before = state.reward_fingerprints
    changes = [
        f"'{name}' is {'new' if name not in before else 'gone' if name not in fingerprints else 'changed'}"
        for name in sorted({*fingerprints, *before})
        if fingerprints.get(name) != before.get(name)
    ]
    if not changes:
        return
    told = f"the rewards are not what they were at step {state.step}, when the checkpoint was saved: "
    told += ", ".join(changes)
    if not allow_changed:
        raise CheckpointError(
            f"{told}. The policy would be trained on another goal from here on, and curves would not join up. Bring "
            "the source and its settings back, or go on all the same with --allow-changed-rewards (in Python: "
            "allow_changed_rewards=True); functions that came from Python must be given again"
        )
    logger.warning("%s; curves will not join up", told)


def _load_tokenizer(model_path: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.path = {model_path!r}: no tokenizer can be loaded from it ({error}). Expected a folder with a "
            "Hugging Face model and its tokenizer, or a name that is in the local cache or can be downloaded"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"model.path = {model_path!r}: its tokenizer names no end-of-sequence token; set eos_token in it"
        )
    return tokenizer


def _check_length(model_path: str, recipe: Recipe) -> None:
    longest = recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens
    config = _config(model_path, "path")
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise RecipeError(
            f"data.max_prompt_tokens + rollout.max_new_tokens = {recipe.data.max_prompt_tokens} + "
            f"{recipe.rollout.max_new_tokens} = {longest} tokens, but the model at {model_path!r} takes at most "
            f"{limit} (max_position_embeddings); lower one of the two"
        )


def _engine_settings(recipe: Recipe, model_path: str, tokenizer: Any, images: int) -> EngineSettings:
    return EngineSettings(
        model_path=model_path,
        dtype=recipe.model.dtype,
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
        stop_token_ids=_stop_token_ids(model_path, tokenizer, recipe.data.chat_template_kwargs),
        stop=tuple(recipe.rollout.stop),
        vllm=recipe.rollout.vllm,
        memory_fraction=recipe.rollout.memory_fraction,
        kv_cache_gib=recipe.rollout.kv_cache_gib,
        images_per_prompt=images,
        pixels=recipe.data.pixels,
        image_token_id=getattr(_config(model_path, "path"), "image_token_id", None),
    )


def _stop_token_ids(model_path: str, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a completion: end of sequence, the chat template's turn end, those of generation_config.json."""
    end = find_turn_end(tokenizer, template_kwargs)
    stops = [tokenizer.eos_token_id, *([] if end is None else [end.stop_id])]
    try:
        listed = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # a model folder need not have generation settings
        listed = None
    stops += [listed] if isinstance(listed, int) else list(listed or ())
    return tuple(dict.fromkeys(stops))
