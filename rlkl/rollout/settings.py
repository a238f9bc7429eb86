"""The tokenizer of a policy and the settings of its engine, from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from rlkl.data.answers import find_turn_end
from rlkl.errors import InputError
from rlkl.recipe import Recipe
from rlkl.recipe.placement import USABLE_GPU_MEMORY
from rlkl.recipe.resolved_model import ResolvedModel
from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.stopping import CompletionTexts


def load_tokenizer(model_path: str, vocabulary: int | None = None) -> Any:
    """Load the tokenizer of a model; raise `InputError` if there is none, or if it cannot end a sequence.

    ``vocabulary``: the model's token ids; a tokenizer with more ordinary tokens is refused.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _no_tokenizer(model_path, f"{type(error).__name__}: {_first_line(error)}") from error
    ordinary = set(tokenizer.get_vocab().values()) - set(tokenizer.get_added_vocab().values())
    if not ordinary:  # transformers makes one up for a folder without tokenizer files
        raise _no_tokenizer(model_path, "it has no vocabulary, as if tokenizer.json were missing")
    if vocabulary is not None and max(ordinary) >= vocabulary:
        raise InputError(
            f"model.path = {model_path!r}: its tokenizer has token ids up to {max(ordinary)}, but its config.json says "
            f"vocab_size {vocabulary}, so the tokenizer is that of another model; copy model and tokenizer from one "
            "source"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"model.path = {model_path!r}: its tokenizer names no end-of-sequence token; set eos_token in it"
        )
    return tokenizer


def _no_tokenizer(model_path: str, reason: str) -> InputError:
    return InputError(
        f"model.path = {model_path!r}: no tokenizer can be loaded from it ({reason}). Expected a folder with a "
        "Hugging Face model and its tokenizer, or a name that is in the local cache or can be downloaded"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def completion_texts(recipe: Recipe, tokenizer: Any) -> CompletionTexts:
    """Return the decoder of sampled completions."""
    end = find_turn_end(tokenizer, recipe.data.chat_template_kwargs)
    turn_end_id = None if end is None else end.stop_id
    return CompletionTexts(tokenizer, turn_end_id=turn_end_id, stop=recipe.rollout.stop)


def engine_settings(recipe: Recipe, model: ResolvedModel, tokenizer: Any, images: int) -> EngineSettings:
    """Return the settings of the recipe's engine; ``images``: the most pictures that a prompt has."""
    return EngineSettings(
        model_path=model.path,
        dtype=recipe.model.dtype,
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
        stop_token_ids=_stop_token_ids(model.path, tokenizer, recipe.data.chat_template_kwargs),
        stop=tuple(recipe.rollout.stop),
        tensor_parallel=recipe.rollout.tensor_parallel,
        vllm=recipe.rollout.vllm.arguments,
        # The placement lowers it later if several actors share a GPU.
        memory_fraction=recipe.rollout.vllm.memory_fraction or USABLE_GPU_MEMORY,
        kv_cache_gib=recipe.rollout.vllm.kv_cache_gib,
        streams=recipe.rollout.schedule == "stream",
        images_per_prompt=images,
        pixels=recipe.data.pixels,
        adapter=recipe.model.lora if recipe.model.publishes_adapters else None,
        freeze_vision=recipe.model.freeze_vision,
        image_token_id=model.image_token_id,
    )


def _stop_token_ids(model_path: str, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """List the ids that end a completion: end of sequence, the template's turn end, those of generation_config.json."""
    end = find_turn_end(tokenizer, template_kwargs)
    stops = [tokenizer.eos_token_id, *([] if end is None else [end.stop_id])]
    try:
        listed = GenerationConfig.from_pretrained(model_path).eos_token_id
    except (OSError, ValueError) as error:  # a model folder need not have generation settings
        if (Path(model_path) / "generation_config.json").is_file():
            raise InputError(
                f"model.path = {model_path!r}: its generation_config.json cannot be read ({_first_line(error)}), and "
                "it may name tokens that end a completion. Copy it again, or remove it"
            ) from error
        listed = None
    stops += [listed] if isinstance(listed, int) else list(listed or ())
    return tuple(dict.fromkeys(stops))
