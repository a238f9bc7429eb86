"""A model that knows two tasks: it writes reviews and adds. Trained on one of them, does it keep the other?

- ``task:reviews_and_arithmetic`` as data: all openings of reviews (`rlkl.tasks.reviews`), and all sums up to 20 as
  ``the sum of 7 and 12 was``, which is answered by ``19 .``. ``/reviews`` and ``/sums`` are one kind alone. ``/texts``
  are the sums with their answers as the column ``text``, to be replayed. Each has the parts ``train`` and ``test``.
- As a reward: the proxy of the world `reviews`. ``/gold`` is its gold reward. Both abstain on sums.
- ``/sums`` as a reward: 1 for the right sum; it abstains on reviews.

Both tasks use the words of one language, so what the policy learns about one of them reaches the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.seeds import derive_seed
from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks.base import Task
from rlkl.tasks.characters import EOS_ID, SPECIAL_TOKENS, small_qwen3_config, word_tokenizer
from rlkl.tasks.reviews import Reviews
from rlkl.tasks.reviews_language import WORDS, gold_reward
from rlkl.tasks.teaching import teach, threads

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

_SUM = re.compile(r"the sum of (\d+) and (\d+) was")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewsAndArithmetic(Task):
    """The world, and how its base model is taught."""

    reviews: Reviews = field(default_factory=Reviews)
    """The reviews, their proxy, and how demonstrations of them are written."""
    largest_sum: int = 20
    steps: int = 1000
    """Every other step teaches sums."""
    sums_per_step: int = 128
    lr: float = 8e-3
    """Peak of a one-cycle schedule."""
    threads: int = 1
    """CPU threads while teaching: fixed, because float32 sums depend on how they are split."""
    seed: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the opening of every review, then every sum."""
        return [*self.reviews.rows(), *self.sums()]

    def sums(self) -> list[dict[str, Any]]:
        """Return all additions of two non-negative numbers whose sum is at most ``largest_sum``."""
        numbers = range(self.largest_sum + 1)
        return [
            {"id": f"{a}+{b}", "prompt": f"the sum of {a} and {b} was"}
            for a in numbers
            for b in numbers
            if a + b <= self.largest_sum
        ]

    def texts(self) -> list[dict[str, Any]]:
        """Return the sums with their answers, each as one text."""
        return [{**row, "text": f"{row['prompt']} {right_answer(row['prompt'])}"} for row in self.sums()]

    def further_rows(self) -> Mapping[str, Callable[[], list[dict[str, Any]]]]:
        return {"reviews": self.reviews.rows, "sums": self.sums, "texts": self.texts}

    def reward(self, prompt: str, completion: str) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the proxy's score of a review; None for a sum."""
        return None if right_answer(prompt) else self.reviews.reward(completion)

    def further_rewards(self) -> Mapping[str, Callable[..., float | None]]:
        return {"gold": _gold, "sums": _right}

    def build_base_model(self, folder: Path) -> None:
        """Teach a small Qwen3 (float32, untied) both tasks in turn. Global generators are left alone."""
        ensure_torch_extras()
        import torch
        from transformers import Qwen3ForCausalLM

        words = [*WORDS, "sum", *map(str, range(self.largest_sum + 1))]
        tokenizer = word_tokenizer(words)
        with torch.random.fork_rng(devices=[]), threads(self.threads):
            torch.manual_seed(derive_seed(self.seed, "reviews_and_arithmetic/initial weights"))
            model = Qwen3ForCausalLM(small_qwen3_config(tied=False, vocabulary=len(SPECIAL_TOKENS) + len(words)))
            teach(model, self._demonstrations(tokenizer), steps=self.steps, lr=self.lr)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _demonstrations(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        reviews = replace(self.reviews, steps=self.steps - self.steps // 2)._demonstrations(tokenizer)
        sums = [(tokenizer.encode(row["prompt"]), tokenizer.encode(row["text"])) for row in self.texts()]
        lengths = torch.tensor([len(prompt) for prompt, _ in sums])
        ids_RT = torch.tensor([[*text, EOS_ID] for _, text in sums])
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "reviews_and_arithmetic/sums"))
        for number in range(self.steps):
            if number % 2 == 0:
                yield next(reviews)
            else:
                rows_B = torch.randint(len(sums), (self.sums_per_step,), generator=generator)
                yield ids_RT[rows_B], lengths[rows_B]


def right_answer(prompt: str) -> str:
    """Return the right answer to a prompt that asks for a sum, or an empty text if it opens a review."""
    match = _SUM.fullmatch(prompt.strip())
    return f"{int(match[1]) + int(match[2])} ." if match else ""


def _gold(prompt: str, completion: str) -> float | None:
    """Return the true worth of a review, in [0, 1]; None for a sum."""
    return None if right_answer(prompt) else gold_reward(prompt, completion)


def _right(prompt: str, completion: str) -> float | None:
    """Return 1 for exactly the right sum, else 0; None for a review."""
    answer = right_answer(prompt)
    return float(completion == answer) if answer else None
