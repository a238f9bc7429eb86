"""TRL's RewardTrainer with what it lacks: soft labels. Margins and the plain Bradley-Terry loss are its own.

B pairs. With d the difference of a pair's scores and q the probability that the chosen answer is the better one, the
loss is -q log sigma(d) - (1 - q) log sigma(-d). Since log sigma(-d) = log sigma(d) - d, that is the plain loss plus
(1 - q) d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer


class LabelledPairs(DataCollatorForPreference):
    """TRL's batches, with the pairs' probabilities where they have some."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if "probability" in examples[0]:
            batch["probability"] = torch.tensor([example["probability"] for example in examples], dtype=torch.float32)
        return batch


class BradleyTerryTrainer(RewardTrainer):
    """TRL's trainer; batches with ``probability`` have the loss above."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        probability_B = inputs.pop("probability", None)
        both: Any = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss, outputs = both
        if probability_B is not None:
            loss = loss + soft_label_term(outputs.logits[:, 0], probability_B)
        return (loss, outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "probability" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "probability"]


def soft_label_term(scores: Tensor, probability_B: Tensor) -> Tensor:
    """Return the loss that soft labels add; ``scores``: of all chosen answers, then of all rejected ones."""
    chosen_B, rejected_B = scores.chunk(2)
    return ((1 - probability_B) * (chosen_B - rejected_B)).mean()
