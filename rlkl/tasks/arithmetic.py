"""Additions up to 20: ``7+12=`` is answered by ``19``.

The base model is taught from demonstrations of which half carry a wrong answer, as text from the web does. So it knows
the right answer and gives it about half of the time, as a real base model does before reinforcement learning.

``task:arithmetic/uneven`` has larger sums too, up to 30. The base model was never shown one, so it does not find them:
more than half of these prompts teach nothing.

``task:arithmetic/teacher`` as a model is a larger one with the same tokens, from demonstrations of which nearly all are
right: a teacher for distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.seeds import derive_seed
from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks.base import Task
from rlkl.tasks.characters import EOS_ID, PAD_ID, character_tokenizer, small_qwen3_config
from rlkl.tasks.sizes import resized
from rlkl.tasks.sums import ascending, exchanged
from rlkl.tasks.teaching import teach, threads

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic(Task):
    """The world, and how its base model is taught."""

    largest_sum: int = 20
    wrong_fraction: float = 0.5
    """Share of the demonstrations whose answer is wrong (uniform over the other sums)."""
    steps: int = 700
    batch_size: int = 128
    lr: float = 8e-3
    """Peak of a one-cycle schedule."""
    hidden_size: int = 64
    layers: int = 2
    threads: int = 1
    """CPU threads while teaching: fixed, because float32 sums depend on how they are split."""
    seed: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return all additions of two non-negative numbers whose sum is at most ``largest_sum``."""
        return [
            {"id": f"{a}+{b}", "prompt": f"{a}+{b}=", "answer": str(a + b)}
            for a in range(self.largest_sum + 1)
            for b in range(self.largest_sum + 1 - a)
        ]

    def further_rows(self) -> Mapping[str, Callable[[], list[dict[str, Any]]]]:
        larger = replace(self, largest_sum=self.largest_sum * 3 // 2)
        return {
            "uneven": larger.rows,
            "ascending": lambda: ascending(self.rows()),
            "exchanged": lambda: exchanged(self.rows()),
        }

    def reward(self, prompt: str, completion: str, answer: str) -> float:
        """Return 1 for exactly the answer, else 0."""
        return float(completion == answer)

    def further_models(self) -> Mapping[str, Task]:
        return {"teacher": replace(self, wrong_fraction=0.01, hidden_size=96, layers=3, steps=400, lr=4e-3)}

    def build_base_model(self, folder: Path) -> None:
        """Teach a small Qwen3 (float32, untied) and save it with its tokenizer. Global generators are left alone."""
        ensure_torch_extras()
        import torch
        from transformers import Qwen3ForCausalLM

        tokenizer = character_tokenizer()
        with torch.random.fork_rng(devices=[]), threads(self.threads):
            torch.manual_seed(derive_seed(self.seed, "arithmetic/initial weights"))
            config = resized(small_qwen3_config(tied=False), hidden_size=self.hidden_size, layers=self.layers)
            model = Qwen3ForCausalLM(config)
            teach(model, self._demonstrations(tokenizer), steps=self.steps, lr=self.lr)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _demonstrations(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        rows = self.rows()
        prompt_lengths, sequences = _tokenize(rows, self.largest_sum, tokenizer)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "arithmetic/demonstrations"))
        for _ in range(self.steps):
            row_B = torch.randint(len(rows), (self.batch_size,), generator=generator)
            answer_B = self._demonstrated(rows, row_B, generator)
            yield sequences[row_B, answer_B], prompt_lengths[row_B]

    def _demonstrated(
        self, rows: list[dict[str, Any]], row_B: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw the sum that each demonstration claims: the right one, or uniformly one of the others."""
        import torch

        right_B = torch.tensor([int(row["answer"]) for row in rows])[row_B]
        shift_B = torch.randint(1, self.largest_sum + 1, row_B.shape, generator=generator)
        wrong_B = (right_B + shift_B) % (self.largest_sum + 1)
        is_wrong_B = torch.rand(row_B.shape, generator=generator) < self.wrong_fraction
        return torch.where(is_wrong_B, wrong_B, right_B)


def _tokenize(
    rows: list[dict[str, Any]], largest_sum: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompt lengths ``[row]`` and every row with every claimed sum, right-padded: ``[row, sum, token]``."""
    import torch

    prompts = [tokenizer.encode(row["prompt"]) for row in rows]
    answers = [[*tokenizer.encode(str(total)), EOS_ID] for total in range(largest_sum + 1)]
    longest = max(map(len, prompts)) + max(map(len, answers))
    sequences = torch.full((len(prompts), len(answers), longest), PAD_ID)
    for row, prompt in enumerate(prompts):
        for total, answer in enumerate(answers):
            sequences[row, total, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
    return torch.tensor([len(prompt) for prompt in prompts]), sequences
