"""`rlkl generate`: let a policy answer one prompt."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any, TextIO

from rlkl.commands.eval_inputs import policy_of
from rlkl.data.answers import AnswerEncoder
from rlkl.data.report import BadPrompt
from rlkl.data.rows import Encoder, RowReader
from rlkl.data.vision import load_picture_processor
from rlkl.errors import InputError
from rlkl.models.resolve import resolve_models
from rlkl.recipe import Recipe
from rlkl.recipe.io import read_values, recipe_from
from rlkl.recipe.model_limits import check_limits, most_tokens
from rlkl.rollout.alone import generate_alone
from rlkl.rollout.collect import with_text
from rlkl.rollout.engine import Request
from rlkl.rollout.settings import completion_texts, engine_settings, load_tokenizer
from rlkl.seeds import derive_seed
from rlkl.system.machine import this_machine
from rlkl.types import Prompt

NEW_TOKENS = 256
"""Most tokens of a completion, unless the option or a run's recipe says otherwise."""
_OF_DATA = ("system_prompt", "chat_template_kwargs", "min_pixels", "max_pixels")
_OF_ROLLOUT = ("engine", "threads", "max_new_tokens", "stop", "temperature", "vllm")
"""Keys that are taken from the recipe of a run."""


def run(options: Namespace) -> int:
    """Print the completions, several ones numbered, and return 0.

    Raises `InputError` for a model, a picture or a number that cannot be used.
    """
    samples = 1 if options.samples is None else options.samples
    temperature = options.temperature
    if samples < 1 or (temperature is not None and temperature < 0):
        raise InputError(
            f"--samples {samples}, --temperature {temperature}: expected at least one sample, and a temperature of 0 "
            "(the most probable token each time) or more"
        )
    recipe = _recipe(options)
    model = resolve_models(recipe).policy
    tokenizer = load_tokenizer(model.path, model.vocabulary)
    pictures = load_picture_processor(model, recipe.data.pixels)
    prompt, recipe = _encoded(options, recipe, Encoder(tokenizer=tokenizer, pictures=pictures))
    recipe = _fitted(recipe, prompt, model.path, asked=options.max_new_tokens is not None)
    requests = [
        Request(
            prompt_token_ids=prompt.token_ids,
            images=prompt.images,
            seed=derive_seed(recipe.seed, "generate", sample),
            temperature=recipe.rollout.temperature if temperature is None else temperature,
        )
        for sample in range(samples)
    ]
    settings = engine_settings(recipe, model, tokenizer, len(prompt.images))
    sampled = generate_alone(recipe.rollout.engine, settings, requests, threads=recipe.rollout.threads)
    for number, completion in enumerate(with_text(sampled, completion_texts(recipe, tokenizer)), start=1):
        heading = f"--- {number} of {samples}\n" if samples > 1 else ""
        sys.stdout.write(f"{heading}{shown(completion.text, sys.stdout)}\n")
    return 0


def shown(text: str, out: TextIO) -> str:
    """Return a text for ``out``. A terminal obeys control characters that a model wrote, so it gets none of them."""
    if not out.isatty():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _recipe(options: Namespace) -> Recipe:
    """Return a recipe of model, sampling and chat; from the run's, if the policy is a run."""
    policy, of_run = policy_of(options.policy)
    values: dict[str, Any] = {} if of_run is None else read_values(of_run)[0]
    data, rollout = values.get("data", {}), values.get("rollout", {})
    rollout = {name: rollout[name] for name in _OF_ROLLOUT if name in rollout}
    rollout.setdefault("max_new_tokens", NEW_TOKENS)
    if options.max_new_tokens is not None:
        rollout["max_new_tokens"] = options.max_new_tokens
    engine = options.engine
    if engine is None and rollout.get("engine", "vllm") == "vllm" and not this_machine().gpus:
        engine = "hf"  # on a CPU vLLM starts for longer than one prompt takes
    if engine is not None:
        rollout = {**rollout, "engine": engine, "vllm": {}}
    made = {
        "seed": values.get("seed", 0) if options.seed is None else options.seed,
        "model": {"path": policy, "dtype": values.get("model", {}).get("dtype", "float32")},
        "data": {"source": "the prompt", **{name: data[name] for name in _OF_DATA if name in data}},
        "rollout": rollout,
    }
    return recipe_from(made, "rlkl generate")


def _encoded(options: Namespace, recipe: Recipe, encoder: Encoder) -> tuple[Prompt, Recipe]:
    """Return the prompt, and the recipe with a limit that just takes it in."""
    tokenizer = encoder.tokenizer
    chat = tokenizer.chat_template is not None and not options.raw
    changed = {"as_chat": chat, "max_prompt_tokens": sys.maxsize}
    if not chat:
        changed |= {"system_prompt": None}
    section = recipe.data.model_copy(update=changed)
    for path in options.image:
        if not path.is_file():
            raise InputError(f"--image {path}: there is no such file")
    answers = AnswerEncoder(tokenizer, section.chat_template_kwargs)
    reader = RowReader(section=section, encoder=encoder, answers=answers, answer_columns=())
    images = [str(path.absolute()) for path in options.image]
    row = {section.prompt_column: options.prompt, section.image_column: images}
    try:
        prompt = reader.prompt(row)
    except BadPrompt as error:
        raise InputError(f"the prompt cannot be used: {error.detail}") from error
    data = section.model_copy(update={"max_prompt_tokens": len(prompt.token_ids)})
    return prompt, recipe.model_copy(update={"data": data})


def _fitted(recipe: Recipe, prompt: Prompt, model_path: str, *, asked: bool) -> Recipe:
    """Lower the number of new tokens to the model's limit, unless it was ``asked`` for; then raise `RecipeError`."""
    limit = most_tokens(model_path)
    room = sys.maxsize if limit is None else limit - len(prompt.token_ids)
    if not asked and 0 < room < recipe.rollout.max_new_tokens:
        rollout = recipe.rollout.model_copy(update={"max_new_tokens": room})
        recipe = recipe.model_copy(update={"rollout": rollout})
    check_limits(recipe, model_path, this_machine())
    return recipe
