"""TRL's RewardTrainer for lists of answers with a teacher's scores (DeAR, arXiv 2508.16998, and Plackett-Luce).

L lists, G answers of the longest one, B all answers. With the model's scores s and the teacher's t, the loss of a list
is

    (1 - kl_weight) main + kl_weight T^2 KL(softmax(t / T) || softmax(s / T))

where main is RankNet's or Plackett-Luce's (`rlkl.functional.listwise`). It is averaged over the lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.reward_trainer import RewardTrainer

from reward_models.training.list_recipe import ListLosses
from rlkl.functional import listwise


@dataclass(frozen=True, slots=True)
class ListCollator:
    """Makes batches of all answers of some lists, padded on the right."""

    pad_token_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` ``[B, T]``, the list's number and the score of each answer."""
        rows = [torch.tensor(ids) for example in examples for ids in example["answers"]]
        lengths_B1 = torch.tensor([[len(row)] for row in rows])
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        return {
            "input_ids": ids_BT,
            "attention_mask": (torch.arange(ids_BT.shape[1]) < lengths_B1).long(),
            "list_B": torch.tensor([number for number, one in enumerate(examples) for _ in one["answers"]]),
            "teacher_B": torch.tensor([score for one in examples for score in one["scores"]], dtype=torch.float64),
        }


class ListTrainer(RewardTrainer):
    """TRL's trainer with the loss above. ``learner.center_coef`` multiplies the square of twice a list's mean score."""

    def __init__(self, *args: Any, losses: ListLosses, **named: Any) -> None:
        super().__init__(*args, **named)
        self._losses = losses

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        list_B, teacher_B = inputs.pop("list_B"), inputs.pop("teacher_B")
        outputs = model(**inputs, use_cache=False)
        rows_LG, present_LG = listwise.list_rows(list_B)
        scores_LG, teacher_LG = outputs.logits[:, 0].float()[rows_LG], teacher_B[rows_LG]
        loss = list_losses(scores_LG, teacher_LG, present_LG, self._losses).mean().float()
        arguments: Any = self.args
        if arguments.center_rewards_coefficient is not None:
            sums_L = torch.where(present_LG, scores_LG, 0.0).sum(dim=1)
            loss = loss + arguments.center_rewards_coefficient * (2 * sums_L / present_LG.sum(dim=1)).square().mean()
        self._note(scores_LG.detach(), teacher_LG, present_LG)
        return (loss, outputs) if return_outputs else loss

    def _note(self, scores_LG: Tensor, teacher_LG: Tensor, present_LG: Tensor) -> None:
        """Add the micro-batch's figures to TRL's log, by TRL's names."""
        wins_LGG = present_LG[:, :, None] & present_LG[:, None] & (teacher_LG[:, :, None] > teacher_LG[:, None])
        gaps_N = (scores_LG[:, :, None] - scores_LG[:, None])[wins_LGG]
        figures = {
            "min_reward": scores_LG[present_LG].min(),
            "mean_reward": scores_LG[present_LG].mean(),
            "max_reward": scores_LG[present_LG].max(),
            "accuracy": (gaps_N > 0).float().mean(),
            "margin": gaps_N.mean(),
        }
        model: Any = self.model
        for name, value in figures.items():
            self._metrics["train" if model.training else "eval"][name].append(value.item())

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["answers", "scores"]


def list_losses(scores_LG: Tensor, teacher_LG: Tensor, present_LG: Tensor, losses: ListLosses) -> Tensor:
    """Return the loss of each list, ``[L]``."""
    total_L = torch.zeros_like(teacher_LG[:, 0])
    if losses.kl_weight > 0:
        kl_L = listwise.list_kl_losses(scores_LG, teacher_LG, present_LG, temperature=losses.temperature)
        total_L = total_L + losses.kl_weight * kl_L
    if losses.kl_weight < 1:
        total_L = total_L + (1 - losses.kl_weight) * _main_losses(scores_LG, teacher_LG, present_LG, losses)
    return total_L


def _main_losses(scores_LG: Tensor, teacher_LG: Tensor, present_LG: Tensor, losses: ListLosses) -> Tensor:
    if losses.loss == "plackett_luce":
        tau_L = torch.full_like(teacher_LG[:, 0], losses.tau)
        weights_LG = listwise.place_weights(teacher_LG, present_LG, tau_L=tau_L)
        return listwise.plackett_luce_losses(scores_LG, teacher_LG, weights_LG, present_LG)
    label = listwise.soft_preferences if losses.soft_labels else listwise.hard_preferences
    return listwise.ranknet_losses(scores_LG, label(teacher_LG), present_LG)
