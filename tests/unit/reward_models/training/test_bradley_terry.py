"""The loss on numbers computed by hand, through TRL's trainer."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Qwen3ForSequenceClassification
from trl.trainer.reward_config import RewardConfig

from reward_models.training.bradley_terry import BradleyTerryTrainer, LabelledPairs, soft_label_term
from rlkl.tasks.characters import EOS_ID, PAD_ID, character_tokenizer, small_qwen3_config

CHOSEN, REJECTED = [1.0, -0.5], [0.25, 0.5]
"""Differences 0.75 and -1."""


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


class Answers(nn.Module):
    """Stands for the model: gives the scores above, whatever it is shown, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([*CHOSEN, *REJECTED])[:, None])
        self.seen: dict[str, Any] = {}

    def forward(self, **inputs: Any) -> SimpleNamespace:
        self.seen = inputs
        return SimpleNamespace(logits=self.scores)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> BradleyTerryTrainer:
    config = small_qwen3_config(tied=False)
    config.num_labels = 1
    rows = {"chosen_ids": [[5, EOS_ID]] * 2, "rejected_ids": [[6, EOS_ID]] * 2, "probability": [0.9, 0.6]}
    return BradleyTerryTrainer(
        model=Qwen3ForSequenceClassification(config),
        args=RewardConfig(
            output_dir=str(tmp_path_factory.mktemp("trainer")),
            report_to="none",
            bf16=False,
            use_cpu=True,
            max_length=None,
        ),
        data_collator=LabelledPairs(pad_token_id=PAD_ID),
        train_dataset=Dataset.from_dict(rows),
        processing_class=character_tokenizer(),
    )


def loss(trainer: BradleyTerryTrainer, model: Answers, **labels: Tensor) -> Tensor:
    ids = torch.ones(4, 2, dtype=torch.long)
    return trainer.compute_loss(model, {"input_ids": ids, "attention_mask": ids, **labels})


def test_without_labels_it_is_bradley_and_terrys(trainer):
    expected = -(log_sigmoid(0.75) + log_sigmoid(-1.0)) / 2
    assert loss(trainer, Answers()).item() == pytest.approx(expected)


def test_a_margin_is_taken_off_the_difference(trainer):
    expected = -(log_sigmoid(0.75 - 0.5) + log_sigmoid(-1.0 - 2.0)) / 2
    assert loss(trainer, Answers(), margin=torch.tensor([0.5, 2.0])).item() == pytest.approx(expected)


def test_a_soft_label_weighs_both_orders(trainer):
    first = 0.9 * log_sigmoid(0.75) + 0.1 * log_sigmoid(-0.75)
    second = 0.6 * log_sigmoid(-1.0) + 0.4 * log_sigmoid(1.0)
    model = Answers()
    found = loss(trainer, model, probability=torch.tensor([0.9, 0.6]))
    assert found.item() == pytest.approx(-(first + second) / 2)
    assert "probability" not in model.seen
    found.backward()
    gradient = [(1 / (1 + math.exp(-d)) - q) / 2 for d, q in ((0.75, 0.9), (-1.0, 0.6))]
    assert model.scores.grad is not None
    assert model.scores.grad[:, 0].tolist() == pytest.approx([*gradient, *(-g for g in gradient)])


def test_a_sure_soft_label_changes_nothing(trainer):
    sure = loss(trainer, Answers(), probability=torch.ones(2))
    assert sure.item() == pytest.approx(loss(trainer, Answers()).item())
    assert soft_label_term(torch.tensor([1.0, 2.0]), torch.tensor([1.0])).item() == 0.0


def test_probabilities_reach_the_loss_through_trls_batches(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(batch["probability"].tolist()) == pytest.approx([0.6, 0.9])
    assert batch["input_ids"].tolist() == [[5, EOS_ID], [5, EOS_ID], [6, EOS_ID], [6, EOS_ID]]


def test_batches_without_probabilities_have_none():
    batch = LabelledPairs(pad_token_id=PAD_ID)([{"chosen_ids": [5, 6], "rejected_ids": [7]}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, PAD_ID]]
    assert "probability" not in batch
