"""Check a recipe against the limits of its model, of vLLM on a CPU, and of what is installed. Loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rlkl.costs.find import config_of
from rlkl.errors import EnvironmentProblem, RecipeError
from rlkl.recipe import Recipe
from rlkl.system.machine import Machine

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 computes on a CPU; others fail when the first tokens are sampled."""


def check_limits(recipe: Recipe, model: str, machine: Machine) -> None:
    """Raise `RecipeError` if sequences are longer than the model allows, or if vLLM cannot run it.

    ``model``: a folder or a name on huggingface.co. Without its config.json on this machine the model is not checked.
    Raises `EnvironmentProblem` if the package of ``learner.optimizer`` is missing.
    """
    _check_optimizer(recipe)
    config = config_of(model)
    if config is None:
        return
    text = config.get("text_config") or config
    _check_length(recipe, model, config)
    _check_head(recipe, model, text, machine)
    _check_parts(recipe, model, text)


def _check_optimizer(recipe: Recipe) -> None:
    is_here = recipe.cluster.address is None  # else the learner's machine has packages of its own
    if recipe.learner.optimizer == "adamw_8bit" and is_here and find_spec("bitsandbytes") is None:
        raise EnvironmentProblem(
            "learner.optimizer = 'adamw_8bit' needs the package bitsandbytes: pip install 'rlkl[8bit]', or set "
            "learner.optimizer=adamw"
        )


def _check_length(recipe: Recipe, model: str, config: Mapping[str, Any]) -> None:
    longest = recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens
    limit = _limit(config)
    if limit is not None and longest > limit:
        raise RecipeError(
            f"data.max_prompt_tokens + rollout.max_new_tokens = {recipe.data.max_prompt_tokens} + "
            f"{recipe.rollout.max_new_tokens} = {longest} tokens, but the model at {model!r} takes at most {limit} "
            "(max_position_embeddings); lower one of the two"
        )


def most_tokens(model: str) -> int | None:
    """Return the most tokens that a model takes, prompt and completion together; None if it is not known here."""
    config = config_of(model)
    return None if config is None else _limit(config)


def _limit(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config") or config
    return next((text[key] for key in _POSITIONS if text.get(key)), None) or _usual_length(config)


def _usual_length(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens of a model whose config.json leaves that out, by its class in transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        text = AutoConfig.for_model(**{key: x for key, x in config.items() if x is not None}).get_text_config()
    except (
        ValueError,
        TypeError,
        KeyError,
        StrictDataclassError,
    ):  # transformers does not know it; loading will say so
        return None
    return getattr(text, _POSITIONS[0], None)


def _check_head(recipe: Recipe, model: str, text: Mapping[str, Any], machine: Machine) -> None:
    on_cpu = recipe.cluster.address is None and (not machine.gpus or recipe.rollout.gpus_per_worker == 0)
    if recipe.rollout.engine != "vllm" or not on_cpu or not recipe.rollout.workers:
        return
    hidden, heads = (text.get(key) or text.get(short) for key, short in _SIZES)
    size = text.get("head_dim") or (hidden // heads if hidden and heads else None)
    if size is not None and size not in CPU_HEAD_SIZES:
        raise RecipeError(
            f"rollout.engine = 'vllm' on a CPU with the model at {model!r}: its attention heads have {size} numbers, "
            f"and vLLM's attention on a CPU takes {', '.join(map(str, CPU_HEAD_SIZES))}. Set rollout.engine=hf"
        )


def _check_parts(recipe: Recipe, model: str, text: Mapping[str, Any]) -> None:
    """Raise `RecipeError` if the attention heads cannot be shared out among the processes of an engine."""
    parts, heads = recipe.rollout.tensor_parallel, next((text[key] for key in _SIZES[1] if text.get(key)), None)
    if heads is not None and heads % parts:
        fitting = [str(number) for number in range(1, heads + 1) if heads % number == 0]
        raise RecipeError(
            f"rollout.tensor_parallel = {parts}, but the model at {model!r} has {heads} attention heads, which "
            f"cannot be shared out evenly; expected one of {', '.join(fitting)}"
        )


_POSITIONS = ("max_position_embeddings", "n_positions")
_SIZES = (("hidden_size", "n_embd"), ("num_attention_heads", "n_head"))
"""Keys of config.json, and the short ones of GPT-2."""
