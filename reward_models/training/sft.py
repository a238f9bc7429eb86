"""``rlkl sft``: a language model learns demonstrations, as the warm start of reinforcement."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reward_models.training.demonstrations import Demonstration, load_demonstrations, training_rows
from reward_models.training.recipe import SftRecipe
from reward_models.training.split import split_by_prompt
from rlkl.errors import InputError, LearnerError
from rlkl.recipe.io import dump_recipe
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.seeds import derive_seed
from rlkl.system.compat import ensure_torch_extras
from rlkl.system.telemetry import silence_telemetry

logger = logging.getLogger(__name__)

POLICY = "policy"
REPORT = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """On the rows that were not learned, over the tokens that would have been."""

    nats_per_token: float
    token_accuracy: float
    """Share of tokens that the model thinks likeliest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftReport:
    """The content of ``report.json``."""

    trained_on: int
    held_out: int
    before: HeldOutLoss
    after: HeldOutLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class SftResult:
    run_dir: Path
    report: SftReport


def train_sft(recipe: SftRecipe) -> SftResult:
    """Run a recipe to its end.

    Raises an `InputError` for whatever is wrong with recipe, model or data, before the model is loaded.
    """
    ensure_torch_extras()
    silence_telemetry()
    from reward_models.training.start import load_tokenizer, model_folder, on_threads, open_run

    path = model_folder(recipe.model.path)
    tokenizer = load_tokenizer(path)
    rows = load_demonstrations(recipe.data, tokenizer)
    held_out, (trained,) = split_by_prompt(
        [row.prompt for row in rows], held_out_fraction=recipe.split.held_out_fraction, parts=1, seed=recipe.seed
    )
    check_no_secrets(recipe)
    run_dir = open_run(recipe, dump_recipe(recipe))
    with on_threads(recipe.learner):
        before, after = _train(
            recipe, path, tokenizer, [[rows[row] for row in part] for part in (trained, held_out)], run_dir
        )
    report = SftReport(trained_on=len(trained), held_out=len(held_out), before=before, after=after)
    (run_dir / REPORT).write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n")
    return SftResult(run_dir=run_dir, report=report)


def _train(
    recipe: SftRecipe, path: str, tokenizer: Any, parts: Sequence[Sequence[Demonstration]], run_dir: Path
) -> tuple[HeldOutLoss, HeldOutLoss]:
    """Learn the first part and save the policy; returns how well it knew the second before and after."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from reward_models.training.start import TrainingLog, lora_config, merged, save_model, trl_settings

    learned, held_out = (
        Dataset.from_dict(training_rows(part, train_on_prompt=recipe.learner.train_on_prompt)) for part in parts
    )
    with tempfile.TemporaryDirectory(dir=run_dir, prefix=".trainer-") as scratch:
        settings = SFTConfig(
            output_dir=scratch, **trl_settings(recipe.model, recipe.learner, derive_seed(recipe.seed, "sft"))
        )
        try:
            trainer = SFTTrainer(
                model=path,
                args=settings,
                train_dataset=learned,
                eval_dataset=held_out,
                processing_class=tokenizer,
                peft_config=lora_config(recipe.model, "CAUSAL_LM"),
                callbacks=[TrainingLog(run_dir / "training.jsonl")],
            )
        except (OSError, ValueError) as error:
            raise InputError(f"model.path = {recipe.model.path!r} cannot be trained: {error}") from error
        trainer.remove_callback(PrinterCallback)
        before = _held_out_loss(trainer.evaluate())
        trainer.train()
        after = _held_out_loss(trainer.evaluate())
    save_model(merged(trainer.model), tokenizer, run_dir / POLICY)
    return before, after


def _held_out_loss(metrics: dict[str, float]) -> HeldOutLoss:
    if not math.isfinite(metrics["eval_loss"]):
        raise LearnerError(f"the loss on held-out rows is {metrics['eval_loss']}; a lower learner.lr is the usual cure")
    return HeldOutLoss(nats_per_token=metrics["eval_loss"], token_accuracy=metrics["eval_mean_token_accuracy"])
