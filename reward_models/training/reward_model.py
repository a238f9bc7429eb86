"""``rlkl reward-model``: one reward model, or two from disjoint halves of the preferences, and a report on them."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_models.training.judging import Agreement, Judgement, ScoredPair, agreement, judge
from reward_models.training.lists import AnswerList, load_comparisons, training_columns
from reward_models.training.pairs import Pair, training_rows
from reward_models.training.recipe import RewardModelRecipe
from reward_models.training.split import split_by_prompt
from rlkl.errors import InputError
from rlkl.recipe.io import dump_recipe
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.seeds import derive_seed
from rlkl.system.compat import ensure_torch_extras
from rlkl.system.telemetry import silence_telemetry

if TYPE_CHECKING:
    from trl.trainer.reward_trainer import RewardTrainer

logger = logging.getLogger(__name__)

Examples = Sequence[Pair | AnswerList]

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
    """Pairs of answers, those of unequal scores in lists included."""
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
    pairs = load_comparisons(recipe.data, tokenizer)
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
    trained_on: dict[str, int] = {}
    with on_threads(recipe.learner):
        for name, rows in zip(names, parts, strict=True):
            part = [pairs[row] for row in rows]
            trained_on[name] = count_pairs(part)
            logger.info("training %s on %d pairs, judged by %d others", name, trained_on[name], count_pairs(judged))
            model = _train(recipe, path, tokenizer, part, run_dir / name)
            scored[name] = score_pairs(model, judged, tokenizer.pad_token_id, recipe.learner.micro_batch_size)
    report = RewardModelReport(
        pairs=count_pairs(pairs),
        prompts=len({pair.prompt for pair in pairs}),
        trained_on=trained_on,
        held_out={name: judge(found) for name, found in scored.items()},
        agreement=agreement(*scored.values()) if len(scored) == 2 else None,
    )
    (run_dir / REPORT).write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n")
    return RewardModelResult(run_dir=run_dir, report=report)


def _train(recipe: RewardModelRecipe, path: str, tokenizer: Any, pairs: Examples, folder: Path) -> Any:
    """Train one model on pairs or lists and save it to ``folder``; returns it as it was saved."""
    from transformers import PrinterCallback
    from trl.trainer.reward_config import RewardConfig

    from reward_models.training.start import TrainingLog, lora_config, merged, save_model, trl_settings

    seed = derive_seed(recipe.seed, "reward model", folder.name)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".trainer-") as scratch:
        settings = RewardConfig(
            output_dir=scratch,
            center_rewards_coefficient=recipe.learner.center_coef or None,
            **trl_settings(recipe.model, recipe.learner, seed),
        )
        try:
            trainer = _trainer_of(recipe, pairs, tokenizer.pad_token_id)(
                model=path,
                args=settings,
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


def _trainer_of(recipe: RewardModelRecipe, examples: Examples, pad_token_id: int) -> Callable[..., RewardTrainer]:
    """Return the trainer for pairs or for lists, with its batches and its rows."""
    from datasets import Dataset

    from reward_models.training.bradley_terry import BradleyTerryTrainer, LabelledPairs
    from reward_models.training.list_trainer import ListCollator, ListTrainer

    if lists := [one for one in examples if isinstance(one, AnswerList)]:
        rows = Dataset.from_dict(training_columns(lists))
        return partial(ListTrainer, losses=recipe.learner, data_collator=ListCollator(pad_token_id), train_dataset=rows)
    rows = Dataset.from_dict(training_rows([one for one in examples if isinstance(one, Pair)]))
    return partial(BradleyTerryTrainer, data_collator=LabelledPairs(pad_token_id=pad_token_id), train_dataset=rows)


def count_pairs(examples: Examples) -> int:
    """Return the number of pairs of answers that some pairs or lists compare."""
    return sum(one.comparisons for one in examples)


def score_pairs(model: Any, pairs: Examples, pad_token_id: Any, batch_size: int) -> list[ScoredPair]:
    """Score all answers; return each compared pair. Padding is on the right: no score depends on its batch."""
    sequences = [ids for pair in pairs for ids in pair.sequences]
    scores = iter(score_sequences(model, sequences, pad_token_id, batch_size))
    return [found for pair in pairs for found in pair.judged([next(scores) for _ in pair.sequences])]


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
