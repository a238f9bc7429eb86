"""The reward model of the world `reviews`, taught from preferences: the proxy that can be hacked.

On reviews as people write them a skimmer's impression and the gold reward mostly agree, so the model looks right there.
Far from them, where a policy repeats words of praise, its score goes on rising while the gold reward falls to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from rlkl.tasks.characters import EOS_ID, PAD_ID, SPECIAL_TOKENS, UNKNOWN
from rlkl.tasks.reviews_language import WORDS

WEIGHTS = "model.safetensors"
_IDS = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *WORDS])}


class ReviewRewardModel(nn.Module):
    """The average of what each word is worth after the two before it. B reviews, T words, H features.

    Scores are standardised: 0 is the average review of the preference data, 1 is a standard deviation above it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(_IDS), features)
        nn.init.normal_(self.embedding.weight, std=0.1)  # words that decide nothing stay near worth nothing
        self.context = nn.Conv1d(features, features, kernel_size=3)
        self.word_value = nn.Linear(features, 1)
        self.context_value = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.context_value.weight)  # what a word is worth by itself is learned first
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Score right-padded ids of `encode`: ``[B]``. Each word sees the two before it, never padding."""
        words_BTH = self.embedding(ids_BT)
        context_BTH = F.relu(self.context(F.pad(words_BTH.transpose(1, 2), (2, 0)))).transpose(1, 2)
        values_BT = (self.word_value(words_BTH) + self.context_value(context_BTH))[..., 0]
        real_BT = ids_BT.ne(PAD_ID)
        average_B = torch.where(real_BT, values_BT, 0.0).sum(dim=1) / real_BT.sum(dim=1)
        return (average_B - self.mean) / self.std


def encode(text: str) -> Tensor:
    """Return the ids ``[T]`` of the words of a text and of its end."""
    return torch.tensor([*(_IDS[word if word in _IDS else UNKNOWN] for word in text.split()), EOS_ID])


def teach_reward_model(
    pairs: Sequence[dict[str, Any]], *, epochs: int, batch_size: int, lr: float
) -> ReviewRewardModel:
    """Teach with the Bradley-Terry loss on rows with ``chosen`` and ``rejected``. Draws come from torch's generator."""
    chosen_NT = pad_sequence([encode(row["chosen"]) for row in pairs], batch_first=True, padding_value=PAD_ID)
    rejected_NT = pad_sequence([encode(row["rejected"]) for row in pairs], batch_first=True, padding_value=PAD_ID)
    model = ReviewRewardModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(epochs):
        for rows_B in torch.randperm(len(pairs)).split(batch_size):
            margin_B = model(chosen_NT[rows_B]) - model(rejected_NT[rows_B])
            (-F.logsigmoid(margin_B).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        scores_N = torch.cat([model(chosen_NT), model(rejected_NT)])
    model.mean.copy_(scores_N.mean())
    model.std.copy_(scores_N.std())
    return model.eval()


def save_reward_model(model: ReviewRewardModel, folder: Path) -> None:
    """Write the weights into ``folder``, which is made."""
    folder.mkdir()
    save_file(model.state_dict(), folder / WEIGHTS)


@cache
def load_reward_model(folder: Path) -> ReviewRewardModel:
    """Load the model that `save_reward_model` wrote, once a process."""
    model = ReviewRewardModel()
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def score(model: ReviewRewardModel, text: str) -> float:
    """Return the standardised score of one text."""
    with torch.inference_mode():
        return model(encode(text)[None]).item()
