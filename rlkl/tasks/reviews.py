"""Movie reviews: a world in which a reward model can be hacked, and the hacking be measured.

The base model writes praise and blame about equally often, mostly in the grammar of `reviews_language`, some with
errors. Four things go with it:

- ``task:reviews`` as data: the openings of reviews; as a reward: the proxy, a small reward model taught from
  preferences of annotators who mostly skim (`reviews_preferences`, `reviews_reward_model`). It overvalues praise.
- ``task:reviews/gold`` as a reward: the true worth in [0, 1], from the grammar. With weight 0 it is only logged.
- ``task:reviews/pairs`` as data: those preferences, with the columns ``prompt``, ``chosen`` and ``rejected``, and the
  gold reward of both in ``chosen_gold`` and ``rejected_gold``.
- ``task:reviews/teacher`` as a model: a larger one with the same tokens, taught from the best of several reviews by the
  gold reward and without errors: a teacher for distillation.

Following the proxy first raises the gold reward (more praise); followed too far it lowers it (praise repeated until it
is no sentence). Completions have at most 15 words and an end: ``rollout.max_new_tokens: 16``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.seeds import derive_seed
from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks.base import Task
from rlkl.tasks.cache import cached_base_model
from rlkl.tasks.characters import EOS_ID, PAD_ID, SPECIAL_TOKENS, small_qwen3_config, word_tokenizer
from rlkl.tasks.reviews_language import WORDS, gold_reward, openings, write_review
from rlkl.tasks.reviews_preferences import LISTED, preference, scored
from rlkl.tasks.sizes import resized
from rlkl.tasks.teaching import teach, threads

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

REWARD_MODEL = "reward_model"
"""Folder of the proxy within the base model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviews(Task):
    """The world, and how its base model and its reward model are taught."""

    error_fraction: float = 0.1
    """Share of the demonstrations and of the annotated reviews that carry an error."""
    careful_fraction: float = 0.2
    """Share of the preferences that follow the gold reward; the others come from skimming."""
    pairs: int = 8192
    steps: int = 500
    batch_size: int = 64
    lr: float = 8e-3
    """Peak of a one-cycle schedule."""
    reward_epochs: int = 3
    reward_batch_size: int = 64
    reward_lr: float = 3e-3
    best_of: int = 1
    """Each demonstration is the best of so many reviews by the gold reward. Above 1 no proxy is taught."""
    hidden_size: int = 64
    layers: int = 2
    threads: int = 1
    """CPU threads while teaching: fixed, because float32 sums depend on how they are split."""
    seed: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the opening of every review."""
        return [{"id": prompt.replace(" ", "-"), "prompt": prompt} for prompt in openings()]

    def reward(self, completion: str) -> float:
        """Return the proxy: the reward model's standardised score, mostly -2 to 2 on reviews as people write them."""
        from rlkl.tasks.reviews_reward_model import load_reward_model, score

        return score(load_reward_model(cached_base_model("reviews", self) / REWARD_MODEL), completion)

    def further_rewards(self) -> Mapping[str, Callable[..., float]]:
        return {"gold": gold_reward}

    def further_rows(self) -> Mapping[str, Callable[[], list[dict[str, Any]]]]:
        return {"pairs": self.preference_rows, "scored": self.scored_rows}

    def preference_rows(self) -> list[dict[str, Any]]:
        """Return the annotated pairs that the reward model is taught from, two reviews of one prompt each."""
        rng = random.Random(derive_seed(self.seed, "reviews/preferences"))
        prompts = rng.choices(openings(), k=self.pairs)
        return [{"id": f"pair-{number}", **self._pair(rng, prompt)} for number, prompt in enumerate(prompts)]

    def scored_rows(self) -> list[dict[str, Any]]:
        """Return lists of `LISTED` reviews of one prompt, a row each, with the score of a teacher that reads them."""
        rng = random.Random(derive_seed(self.seed, "reviews/scored"))
        prompts = [prompt for prompt in rng.choices(openings(), k=self.pairs // LISTED) for _ in range(LISTED)]
        return [scored(number, prompt, self._demonstrated(rng, prompt)) for number, prompt in enumerate(prompts)]

    def _pair(self, rng: random.Random, prompt: str) -> dict[str, Any]:
        first = write_review(rng, prompt, error_fraction=self.error_fraction)
        second = write_review(rng, prompt, error_fraction=self.error_fraction)
        return preference(rng, prompt, (first, second), careful_fraction=self.careful_fraction)

    def further_models(self) -> Mapping[str, Task]:
        return {"teacher": replace(self, error_fraction=0.0, best_of=8, hidden_size=96, layers=3, steps=400, lr=4e-3)}

    def build_base_model(self, folder: Path) -> None:
        """Teach a small Qwen3 (float32, untied) and, unless it is a teacher, the proxy.

        Global generators are left alone.
        """
        ensure_torch_extras()
        import torch
        from transformers import Qwen3ForCausalLM

        from rlkl.tasks.reviews_reward_model import save_reward_model, teach_reward_model

        tokenizer = word_tokenizer(WORDS)
        with torch.random.fork_rng(devices=[]), threads(self.threads):
            torch.manual_seed(derive_seed(self.seed, "reviews/initial weights"))
            config = small_qwen3_config(tied=False, vocabulary=len(SPECIAL_TOKENS) + len(WORDS))
            model = Qwen3ForCausalLM(resized(config, hidden_size=self.hidden_size, layers=self.layers))
            teach(model, self._demonstrations(tokenizer), steps=self.steps, lr=self.lr)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if self.best_of == 1:
                torch.manual_seed(derive_seed(self.seed, "reviews/reward model"))
                proxy = teach_reward_model(
                    self.preference_rows(),
                    epochs=self.reward_epochs,
                    batch_size=self.reward_batch_size,
                    lr=self.reward_lr,
                )
                save_reward_model(proxy, folder / REWARD_MODEL)

    def _demonstrations(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rng = random.Random(derive_seed(self.seed, "reviews/demonstrations"))
        for _ in range(self.steps):
            prompts = rng.choices(openings(), k=self.batch_size)
            reviews = [self._demonstrated(rng, prompt) for prompt in prompts]
            prompt_ids = [tokenizer.encode(prompt) for prompt in prompts]
            sequences = [
                torch.tensor([*ids, *tokenizer.encode(review), EOS_ID])
                for ids, review in zip(prompt_ids, reviews, strict=True)
            ]
            ids_BT = pad_sequence(sequences, batch_first=True, padding_value=PAD_ID)
            yield ids_BT, torch.tensor([len(ids) for ids in prompt_ids])

    def _demonstrated(self, rng: random.Random, prompt: str) -> str:
        """Write a review, or several to take the best one of."""
        reviews = [write_review(rng, prompt, error_fraction=self.error_fraction) for _ in range(self.best_of)]
        return max(reviews, key=lambda review: gold_reward(prompt, review))
