"""Lists of scored answers: how they are read, and their losses through TRL's trainer, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3ForSequenceClassification
from trl.trainer.reward_config import RewardConfig

from reward_models.training.list_recipe import ListLosses
from reward_models.training.list_trainer import ListCollator, ListTrainer
from reward_models.training.lists import AnswerList, load_comparisons, load_lists, training_columns
from reward_models.training.pairs import Pair
from reward_models.training.recipe import PairsSection, RewardModelRecipe
from reward_models.training.reward_model import count_pairs
from rlkl.errors import DataError, RecipeError
from rlkl.recipe.io import load_section
from rlkl.tasks.characters import EOS_ID, PAD_ID, character_tokenizer, small_qwen3_config, word_tokenizer
from rlkl.tasks.reviews_language import WORDS

LISTS = ("data.score_column=score", "learner.loss=ranknet")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


def rows(folder: Path, *answers: tuple[str, str, Any]) -> str:
    path = folder / "answers.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": text, "score": score}) for prompt, text, score in answers]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows_of_a_prompt_are_a_list(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = rows(
        tmp_path,
        ("the plot was", "superb .", 2),
        ("the cast was", "dull", 0.5),
        ("the plot was", "dull", -1.5),
        ("the cast was", "superb", 0.5),
        ("the music was", "solid", 3),
    )
    (found,) = load_lists(PairsSection(source=source, score_column="score"), tokenizer)
    prompt = tokenizer.encode("the plot was")
    assert found.prompt == "the plot was"
    assert found.scores == (2.0, -1.5)
    assert [list(ids) for ids in found.sequences] == [
        [*prompt, *tokenizer.encode(text), EOS_ID] for text in ("superb .", "dull")
    ]
    assert training_columns([found])["scores"] == [[2.0, -1.5]]


def test_long_lists_are_cut_evenly(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = rows(tmp_path, *(("the plot was", word, number) for number, word in enumerate(WORDS[:9])))
    lists = load_lists(PairsSection(source=source, score_column="score", list_size=4), tokenizer)
    assert [one.scores for one in lists] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    equal = rows(tmp_path, ("the plot was", "superb", 1), ("the plot was", "dull", 1), ("the cast was", "dull", 0))
    with pytest.raises(DataError, match=r"no prompt has two answers of different data.score_column = 'score'"):
        load_lists(PairsSection(source=equal, score_column="score"), tokenizer)
    broken = rows(tmp_path, ("the plot was", "superb", 1), ("the plot was", "dull", None))
    with pytest.raises(DataError, match=r"data.score_column = 'score': row-1 has None there, expected a number"):
        load_lists(PairsSection(source=broken, score_column="score"), tokenizer)


def test_pairs_of_unequal_scores_are_judged() -> None:
    one = AnswerList(prompt="p", sequences=((1,), (2,), (3,)), scores=(1.0, 0.0, 1.0))
    assert [(pair.chosen, pair.rejected) for pair in one.judged([0.3, 0.2, 0.1])] == [(0.3, 0.2), (0.1, 0.2)]
    pair = Pair(prompt="p", chosen_ids=(1,), rejected_ids=(2,), probability=0.7)
    assert [(found.chosen, found.probability) for found in pair.judged([0.3, 0.2])] == [(0.3, 0.7)]
    assert count_pairs([one, pair]) == 3


def test_without_a_score_column_rows_are_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "the plot was", "chosen": "superb", "rejected": "dull"}) + "\n")
    assert isinstance(load_comparisons(PairsSection(source=str(path)), tokenizer)[0], Pair)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.loss=ranknet"], "learner.loss = ranknet compares the answers of a list by their scores"),
        (["learner.kl_weight=0.1"], "learner.kl_weight = 0.1 compares the answers of a list"),
        (["data.score_column=score"], "learner.loss = bradley_terry is the loss of pairs"),
        ([*LISTS, "data.margin_column=m"], "data.score_column and data.margin_column exclude each other"),
        ([*LISTS, "data.list_size=1"], "data.list_size = 1"),
    ],
)
def test_losses_that_do_not_fit_the_data_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_section(RewardModelRecipe, "reviews_reward_model", *overrides)


@pytest.mark.parametrize("overrides", [LISTS, ("data.score_column=score", "learner.kl_weight=1")])
def test_losses_that_fit_are_taken(overrides: tuple[str, ...]) -> None:
    assert load_section(RewardModelRecipe, "reviews_reward_model", *overrides).data.score_column == "score"


TEACHER = [[2.0, 0.0, 1.0], [0.0, 1.0]]
SCORES = [1.0, 0.0, -0.5, 0.3, 0.9]


class Answers(nn.Module):
    """Stands for the model: gives `SCORES`, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(SCORES)[:, None])

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.scores)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> ListTrainer:
    config = small_qwen3_config(tied=False)
    config.num_labels = 1
    answers = [[[5, EOS_ID], [6, 7, EOS_ID], [8, EOS_ID]], [[9, EOS_ID], [5, 6, EOS_ID]]]
    lists = [
        AnswerList(prompt=str(number), sequences=tuple(map(tuple, ids)), scores=tuple(scores))
        for number, (ids, scores) in enumerate(zip(answers, TEACHER, strict=True))
    ]
    return ListTrainer(
        model=Qwen3ForSequenceClassification(config),
        args=RewardConfig(
            output_dir=str(tmp_path_factory.mktemp("trainer")),
            report_to="none",
            bf16=False,
            use_cpu=True,
            max_length=None,
            max_steps=2,
            logging_steps=1,
        ),
        losses=ListLosses(loss="ranknet"),
        data_collator=ListCollator(PAD_ID),
        train_dataset=Dataset.from_dict(training_columns(lists)),
        processing_class=character_tokenizer(),
    )


def loss(trainer: ListTrainer, **losses: Any) -> float:
    trainer._losses = ListLosses(**losses)
    teacher = torch.tensor([score for one in TEACHER for score in one], dtype=torch.float64)
    ids = torch.ones(5, 2, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids, "list_B": torch.tensor([0, 0, 0, 1, 1]), "teacher_B": teacher}
    return trainer.compute_loss(Answers(), inputs).item()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def kl(temperature: float) -> float:
    total = 0.0
    for teacher, scores in zip(TEACHER, (SCORES[:3], SCORES[3:]), strict=True):
        t, s = ([math.exp(x / temperature) for x in row] for row in (teacher, scores))
        total += sum(a / sum(t) * math.log((a / sum(t)) / (b / sum(s))) for a, b in zip(t, s, strict=True))
    return temperature**2 * total / 2


def test_ranknet_with_hard_and_with_soft_labels(trainer: ListTrainer) -> None:
    hard = (log_sigmoid(1.0) + log_sigmoid(1.5) + log_sigmoid(-0.5)) / 3 + log_sigmoid(0.6)
    assert loss(trainer, loss="ranknet", soft_labels=False) == pytest.approx(-hard / 2)

    def soft(gap: float, difference: float) -> float:
        p = 1 / (1 + math.exp(-gap))
        return p * log_sigmoid(difference) + (1 - p) * log_sigmoid(-difference)

    wanted = (soft(2, 1.0) + soft(1, 1.5) + soft(-1, 0.5)) / 3 + soft(1, 0.6)
    assert loss(trainer, loss="ranknet") == pytest.approx(-wanted / 2)


def test_plackett_luce(trainer: ListTrainer) -> None:
    """Orders: 1, 3, 2 with alpha = softmax(2, 1, 0) / tau 0.5, and 2, 1 with alpha = softmax(1, 0) / 0.5."""
    e = math.exp
    alpha = [e(4) / (e(4) + e(2) + 1), e(2) / (e(4) + e(2) + 1), e(2) / (e(2) + 1)]
    first = alpha[0] * (math.log(e(1.0) + 1 + e(-0.5)) - 1.0) + alpha[1] * (math.log(1 + e(-0.5)) + 0.5)
    wanted = (first - alpha[2] * log_sigmoid(0.6)) / 2
    assert loss(trainer, loss="plackett_luce", tau=0.5) == pytest.approx(wanted)


def test_the_kl_alone_and_mixed(trainer: ListTrainer) -> None:
    assert loss(trainer, kl_weight=1.0) == pytest.approx(kl(2.0))
    main = loss(trainer, loss="ranknet")
    assert loss(trainer, loss="ranknet", kl_weight=0.1, temperature=3.0) == pytest.approx(0.9 * main + 0.1 * kl(3.0))


def test_centring_adds_the_square_of_twice_the_mean(trainer: ListTrainer) -> None:
    plain = loss(trainer, loss="ranknet")
    arguments: Any = trainer.args
    arguments.center_rewards_coefficient = 0.1
    try:
        wanted = plain + 0.1 * ((2 * 0.5 / 3) ** 2 + (0.3 + 0.9) ** 2) / 2
        assert loss(trainer, loss="ranknet") == pytest.approx(wanted)
    finally:
        arguments.center_rewards_coefficient = None


def test_lists_reach_the_loss_through_trls_batches_and_are_learned(trainer: ListTrainer) -> None:
    trainer._losses = ListLosses(loss="ranknet")
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(batch) == ["attention_mask", "input_ids", "list_B", "teacher_B"]
    assert batch["input_ids"].shape == (5, 3)
    assert batch["attention_mask"].sum().item() == 12
    assert sorted(batch["teacher_B"].tolist()) == [0.0, 0.0, 1.0, 1.0, 2.0]
    trainer.train()
    logged = [line for line in trainer.state.log_history if "accuracy" in line]
    assert len(logged) == 2
    assert {"loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"} <= logged[0].keys()
