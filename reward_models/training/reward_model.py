"""``rlkl reward-model``: one reward model, or two from disjoint halves of the preferences, and a report on them."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reward_models.training.judging import Agreement, Judgement, ScoredPair, agreement, judge
from reward_models.training.pairs import Pair, load_pairs, training_rows
from reward_models.training.recipe import RewardModelRecipe
from reward_models.training.split import split_by_prompt
from rlkl.errors import InputError
from rlkl.recipe.io import dump_recipe
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.seeds import derive_seed
from rlkl.system.compat import ensure_torch_extras
from rlkl.system.telemetry import silence_telemetry

logger = logging.getLogger(__name__)

REWARD_MODEL = "reward_model"
HELD_OUT_REWARD_MODEL = "held_out_reward_model"
"""The model of the second half; for a monitor, never for training."""
REPORT = "report.json"
TEXT_KEY, TEXT = "rlkl_text", "sampled"
"""Entry of a model's config: it was taught the ids of the prompt, of the answer and of the answer's end.
`reward_models.SequenceClassifier` reads it."""
TEMPLATE_KEY = "rlkl_chat_template_kwargs"
"""Entry of a model's config: ``data.chat_template_kwargs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelReport:
    """The content of ``report.json``. Everything is measured on the same held-out pairs."""

    pairs: int
    prompts: int
    trained_on: dict[str, int]
    """Pairs that each model was trained on, by its folder."""
    held_out: dict[str, Judgement]
    agreement: Agreement | None
    """Between the two models, where there are two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelResult:
    run_dir: Path
    report: RewardModelReport


def train_reward_model(recipe: RewardModelRecipe) -> RewardModelResult:
    """Run a recipe to its end.

    Raises an `InputError` for whatever is wrong with recipe, model or data, before the model is loaded.
    """
    ensure_torch_extras()
    silence_telemetry()
    from reward_models.training.start import load_tokenizer, model_folder, on_threads, open_run

    path = model_folder(recipe.model.path)
    tokenizer = load_tokenizer(path)
    pairs = load_pairs(recipe.data, tokenizer)
    names = [REWARD_MODEL, HELD_OUT_REWARD_MODEL] if recipe.split.halves else [REWARD_MODEL]
    held_out, parts = split_by_prompt(
        [pair.prompt for pair in pairs],
        held_out_fraction=recipe.split.held_out_fraction,
        parts=len(names),
        seed=recipe.seed,
    )
    check_no_secrets(recipe)
    run_dir = open_run(recipe, dump_recipe(recipe))
    judged = [pairs[row] for row in held_out]
    scored: dict[str, list[ScoredPair]] = {}
    with on_threads(recipe.learner):
        for name, rows in zip(names, parts, strict=True):
            logger.info("training %s on %d pairs, judged by %d others", name, len(rows), len(judged))
            model = _train(recipe, path, tokenizer, [pairs[row] for row in rows], run_dir / name)
            scored[name] = score_pairs(model, judged, tokenizer.pad_token_id, recipe.learner.micro_batch_size)
    report = RewardModelReport(
        pairs=len(pairs),
        prompts=len({pair.prompt for pair in pairs}),
        trained_on={name: len(rows) for name, rows in zip(names, parts, strict=True)},
        held_out={name: judge(found) for name, found in scored.items()},
        agreement=agreement(*scored.values()) if len(scored) == 2 else None,
    )
    (run_dir / REPORT).write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n")
    return RewardModelResult(run_dir=run_dir, report=report)


def _train(recipe: RewardModelRecipe, path: str, tokenizer: Any, pairs: Sequence[Pair], folder: Path) -> Any:
    """Train one model on ``pairs`` and save it to ``folder``; returns it as it was saved."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.reward_config import RewardConfig

    from reward_models.training.bradley_terry import BradleyTerryTrainer, LabelledPairs
    from reward_models.training.start import TrainingLog, lora_config, merged, save_model, trl_settings

    seed = derive_seed(recipe.seed, "reward model", folder.name)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".trainer-") as scratch:
        settings = RewardConfig(
            output_dir=scratch,
            center_rewards_coefficient=recipe.learner.center_coef or None,
            **trl_settings(recipe.model, recipe.learner, seed),
        )
        try:
            trainer = BradleyTerryTrainer(
                model=path,
                args=settings,
                data_collator=LabelledPairs(pad_token_id=tokenizer.pad_token_id),
                train_dataset=Dataset.from_dict(training_rows(pairs)),
                processing_class=tokenizer,
                peft_config=lora_config(recipe.model, "SEQ_CLS"),
                callbacks=[TrainingLog(folder.with_name(f"{folder.name}_training.jsonl"))],
            )
        except (OSError, ValueError) as error:
            raise InputError(f"model.path = {recipe.model.path!r} cannot become a reward model: {error}") from error
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model = merged(trainer.model)
    model.config.update({TEXT_KEY: TEXT, TEMPLATE_KEY: recipe.data.chat_template_kwargs})
    save_model(model, tokenizer, folder)
    return model


def score_pairs(model: Any, pairs: Sequence[Pair], pad_token_id: Any, batch_size: int) -> list[ScoredPair]:
    """Score both answers of each pair. Padding is on the right, so a score does not depend on its batch."""
    sequences = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    scores = score_sequences(model, sequences, pad_token_id, batch_size)
    return [
        ScoredPair(
            chosen=scores[2 * number],
            rejected=scores[2 * number + 1],
            probability=1.0 if pair.probability is None else pair.probability,
        )
        for number, pair in enumerate(pairs)
    ]


def score_sequences(
    model: Any, sequences: Sequence[tuple[int, ...]], pad_token_id: int, batch_size: int
) -> list[float]:
    """Score each sequence, in order. A batch holds sequences of similar length."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    model.eval()
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    scores = [0.0] * len(sequences)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = [torch.tensor(sequences[number]) for number in numbers]
            ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad_token_id).to(model.device)
            lengths_B1 = torch.tensor([[len(row)] for row in rows], device=model.device)
            attention_BT = torch.arange(ids_BT.shape[1], device=model.device) < lengths_B1
            logits_B = model(input_ids=ids_BT, attention_mask=attention_BT.long()).logits[:, 0].float()
            for number, score in zip(numbers, logits_B.tolist(), strict=True):
                scores[number] = score
    return scores
