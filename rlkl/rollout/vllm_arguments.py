"""Check ``rollout.vllm`` before anything starts, without importing vllm."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlkl.errors import RecipeError, did_you_mean
from rlkl.recipe.engine_sections import VllmSection

_PRECISION = "the engine's weights would no longer be those that the learner publishes"
_OTHER_MODEL = "sampler and learner would be different models; set model.path"
_OTHER_DRAWS = "completions would not come from the distribution whose log-probs the learner computes"
_TOKENIZER = "rlkl passes token ids and decodes them itself"
_ADAPTERS = "rlkl publishes the weights itself; set model.lora"
_CODE = "rlkl runs no code from a model's folder"
_PICTURES = "the learner and the engine must cut pictures alike; set data.min_pixels and data.max_pixels"

REFUSED = {
    "model": "set model.path",
    "model_weights": _OTHER_MODEL,
    "hf_config_path": _OTHER_MODEL,
    "hf_overrides": _OTHER_MODEL,
    "model_class_overrides": _OTHER_MODEL,
    "revision": _OTHER_MODEL,
    "code_revision": _OTHER_MODEL,
    "runner": "rlkl samples and scores tokens, so the engine must be a generating one",
    "convert": "rlkl samples and scores tokens, so the engine must be a generating one",
    "dtype": "set model.dtype",
    "quantization": _PRECISION,
    "quantization_config": _PRECISION,
    "max_model_len": "it is data.max_prompt_tokens + rollout.max_new_tokens; set these",
    "gpu_memory_utilization": "set rollout.vllm.memory_fraction",
    "seed": "every completion has a seed of its own, derived from the recipe's; set seed",
    "tokenizer": _TOKENIZER,
    "tokenizer_mode": _TOKENIZER,
    "tokenizer_revision": _TOKENIZER,
    "skip_tokenizer_init": _TOKENIZER,
    "chat_template": "set data.chat_template_kwargs, or change the template in the model's folder",
    "generation_config": "the sampling settings of the model's folder would change the draws; set rollout.temperature",
    "override_generation_config": "the sampling settings would change the draws; set rollout.temperature",
    "logprobs_mode": "rlkl needs log-probs at the sampling temperature over the full vocabulary",
    "logits_processors": _OTHER_DRAWS,
    "speculative_config": "the draft model would not follow the published weights",
    "spec_method": "the draft model would not follow the published weights",
    "spec_model": "the draft model would not follow the published weights",
    "spec_tokens": "the draft model would not follow the published weights",
    "watermark_config": _OTHER_DRAWS,
    "enable_chunked_prefill": "rlkl turns it off on a CPU, where it breaks seeded draws",
    "enable_lora": _ADAPTERS,
    "max_loras": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "lora_dtype": _ADAPTERS,
    "limit_mm_per_prompt": "it follows from the pictures in the data",
    "mm_processor_kwargs": _PICTURES,
    "disable_chunked_mm_input": "rlkl sets it by the device",
    "language_model_only": "prompts with pictures need the vision tower",
    "video_pruning_rate": _OTHER_MODEL,
    "worker_cls": "rlkl's own worker extension takes in the published weights",
    "worker_extension_cls": "rlkl's own worker extension takes in the published weights",
    "weight_transfer_config": "rlkl's own worker extension takes in the published weights",
    "enable_sleep_mode": "set rollout.placement",
    "trust_remote_code": _CODE,
    "hf_token": "a recipe must not hold secrets; set the environment variable HF_TOKEN",
    "disable_log_stats": "rlkl records its own metrics",
    "data_parallel_size": "each engine takes in weights by itself; set rollout.workers",
    "tensor_parallel_size": "set rollout.tensor_parallel, which also reserves the GPUs",
    "pipeline_parallel_size": "rlkl divides an engine by tensors only; set rollout.tensor_parallel",
    "distributed_executor_backend": "it follows from rollout.tensor_parallel",
}
"""Engine arguments that rlkl sets itself, or that would make a run wrong, with the reason or the key to set."""


def check_vllm_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the names of the engine arguments in ``rollout.vllm``; rlkl's own settings there are not among them.

    Raises:
        RecipeError: rlkl sets an argument itself, or the installed vLLM has none of that name.
    """
    problems = [
        f"rollout.vllm.{name} is not allowed: {REFUSED[name]}"
        if name in REFUSED
        else f"rollout.vllm.{name}: vLLM has no such engine argument; {did_you_mean(name, known | own)}"
        for known, own in [(engine_arguments(), VllmSection.model_fields.keys())]
        for name in arguments
        if name in REFUSED or (known and name not in known)
    ]
    if problems:
        raise RecipeError("; ".join(problems))


@cache
def engine_arguments() -> frozenset[str]:
    """Read the names of vLLM's engine arguments from its source; empty if vLLM is not installed.

    Importing vllm would take ten seconds and touch the GPUs.
    """
    found = find_spec("vllm")
    if found is None or found.origin is None:
        return frozenset()
    source = Path(found.origin).parent / "engine" / "arg_utils.py"
    if not source.is_file():
        return frozenset()
    classes = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    return frozenset(
        field.target.id
        for node in classes
        if node.name == "EngineArgs"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id[0] != "_"
    )
