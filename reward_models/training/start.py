"""Steps before and after training that both commands share: folders, tokenizers, TRL's settings, log, result."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from reward_models.training.recipe import LearnerSection, StartSection
from rlkl.models.resolve import locate_model
from rlkl.recipe.resolved_model import ModelName, check_weights, read_model
from rlkl.recipe.run_dir import HasRun, claim_run_dir, write_recipe
from rlkl.rollout import settings
from rlkl.tasks.teaching import threads

logger = logging.getLogger(__name__)

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""The names that transformers has for them."""


def model_folder(path: str) -> str:
    """Return the folder of ``model.path``, or its name on huggingface.co; build a built-in model if it is not built.

    Raises `RecipeError` if there is no such model.
    """
    name = ModelName(key="model.path", value=path)
    path = read_model(locate_model(name), name).path
    check_weights(path, name)
    return path


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer; raises `InputError` if there is none, or if it cannot end a sequence."""
    tokenizer: PreTrainedTokenizerBase = settings.load_tokenizer(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_run(recipe: HasRun, dumped: str) -> Path:
    """Make the folder of a new run and write its recipe there; no run that starts at the same time gets that folder."""
    with claim_run_dir(recipe, resumable=False) as lock:
        write_recipe(lock.run_dir, dumped)
        return lock.run_dir


def trl_settings(model: StartSection, learner: LearnerSection, seed: int) -> dict[str, Any]:
    """Return settings that TRL's trainers share. The trainer itself saves, reports and evaluates nothing."""
    return {
        "num_train_epochs": float(learner.epochs),
        "max_steps": learner.max_steps or -1,
        "per_device_train_batch_size": learner.micro_batch_size,
        "per_device_eval_batch_size": learner.micro_batch_size,
        "gradient_accumulation_steps": learner.batch_size // learner.micro_batch_size,
        "learning_rate": learner.lr,
        "lr_scheduler_type": SCHEDULES[learner.schedule],
        "warmup_steps": learner.warmup_steps,
        "weight_decay": learner.weight_decay,
        "max_grad_norm": learner.max_grad_norm,
        "use_cpu": learner.device == "cpu",
        "bf16": model.dtype == "bfloat16",
        "gradient_checkpointing": model.gradient_checkpointing,
        "max_length": None,
        "logging_steps": learner.log_every,
        "logging_first_step": True,
        "seed": seed % 2**32,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": learner.device != "cpu" and torch.cuda.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),
    }


def lora_config(model: StartSection, task_type: str) -> Any:
    """Return peft's settings, or None. A scoring head is always trained whole."""
    if model.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type=task_type,
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=model.lora.target_modules,
        lora_dropout=0.0,
    )


def on_threads(learner: LearnerSection) -> Any:
    """Let torch use as many CPU threads as the recipe names."""
    return threads(learner.threads) if learner.threads is not None else nullcontext()


class TrainingLog(TrainerCallback):
    """Writes what TRL logs to a file of JSON lines, ``step`` first, and to the log."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:  # the summary at the end
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        shown = ", ".join(
            f"{key} {logs[key]:.3f}" for key in ("loss", "accuracy", "mean_token_accuracy") if key in logs
        )
        logger.info("step %d of %d: %s", state.global_step, state.max_steps, shown)


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """Make a folder to write into. It becomes ``folder`` if the block ends well, and is removed otherwise."""
    aside = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def merged(model: Any) -> Any:
    """Merge the adapters of a trained model, if it has some, into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a Hugging Face folder."""
    with complete_or_absent(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
