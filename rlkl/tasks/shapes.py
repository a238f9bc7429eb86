"""Pictures of coloured shapes and questions about them: a world in which one can look, or guess.

A question's wording suggests an answer (what is at the top is usually red), which is right in most rows of
``task:shapes``. Guessing by it earns that share of the reward without a look. The rest, the rows marked
``vision_dependent``, distinguishes seeing from guessing; ``task:shapes/test`` has them for half of its rows.

The base model learns to see by describing scenes, then to answer from demonstrations of which some were given without a
look. So it can look, and guesses about as often.

- ``task:shapes`` as data: rows with the columns ``prompt``, ``images``, ``answer``, ``kind``, ``usual`` and
  ``vision_dependent``; as a reward: 1 for the answer, else 0.
- ``task:shapes/vision`` as a reward: the same on vision-dependent rows, and none on others. ``task:shapes/guess``: 1 on
  these rows for what the wording suggests.
- ``task:shapes/unlearn`` and ``task:shapes/unlearn/test`` as data, and the rewards ``task:shapes/efficacy``,
  ``generality``, ``specificity`` and ``fluency``: forgetting triangles (`rlkl.tasks.unlearning`).

Answers are one word and an end: ``rollout.max_new_tokens: 4``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.seeds import derive_seed
from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks import unlearning
from rlkl.tasks.base import Task
from rlkl.tasks.characters import EOS, EOS_ID, MAX_POSITIONS, PAD_ID, word_tokenizer
from rlkl.tasks.shapes_scenes import CELL, DESCRIBE, KINDS, SIDE, WORDS, Scene, ask, describe, draw_scene, png, render
from rlkl.tasks.teaching import IGNORED, threads

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
"""The placeholder of a picture in a prompt."""
Shown = tuple[Scene, str, str]
"""A scene, the question about it, and the answer of a demonstration."""
_SPECIAL = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes(Task):
    """The world, and how its base model is taught."""

    count: int = 1024
    """Rows to train on."""
    test_count: int = 512
    usual_fraction: float = 0.6
    """Share of the rows whose wording suggests the right answer, in the demonstrations too."""
    guess_fraction: float = 0.5
    """Share of the later demonstrations whose answer is the one that the wording suggests, right or wrong."""
    steps: int = 900
    seeing_steps: int = 650
    """The first ones of these: half descriptions, half right answers."""
    batch_size: int = 64
    lr: float = 4e-3
    """Peak of a one-cycle schedule."""
    threads: int = 1
    """CPU threads while teaching: fixed, because float32 sums depend on how they are split."""
    seed: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return questions to train on. The wording suggests the right answer in ``usual_fraction`` of them."""
        return self._rows("train", self.count, self.usual_fraction)

    def test_rows(self) -> list[dict[str, Any]]:
        """Return other questions. The wording suggests the right answer in exactly half of them."""
        return self._rows("test", self.test_count, 0.5)

    def reward(self, completion: str, answer: str) -> float:
        """Return 1 for exactly the answer, else 0."""
        return float(completion == answer)

    def vision(self, completion: str, answer: str, vision_dependent: bool) -> float | None:
        """Score vision-dependent questions as `reward` does; abstain from others."""
        return float(completion == answer) if vision_dependent else None

    def guess(self, completion: str, usual: str, vision_dependent: bool) -> float | None:
        """Return 1 for the answer that the wording suggests, else 0; abstain if the question needs no picture."""
        return float(completion == usual) if vision_dependent else None

    def further_rows(self) -> Mapping[str, Callable[[], list[dict[str, Any]]]]:
        return {
            "test": self.test_rows,
            "unlearn": lambda: unlearning.trained_rows(self.seed, IMAGE),
            "unlearn/test": lambda: unlearning.evaluation_rows(self.seed, IMAGE),
        }

    def further_rewards(self) -> Mapping[str, Callable[..., float | None]]:
        return {"vision": self.vision, "guess": self.guess, **unlearning.REWARDS}

    def _rows(self, part: str, count: int, usual_fraction: float) -> list[dict[str, Any]]:
        rng = random.Random(derive_seed(self.seed, f"shapes/{part}"))
        questions = [
            ask(rng, KINDS[number % len(KINDS)], usual=number < usual_fraction * count) for number in range(count)
        ]
        return [
            {
                "id": f"{part}-{number}",
                "prompt": f"{IMAGE} {question.text}",
                "images": [png(scene)],
                "answer": question.answer,
                "kind": question.kind,
                "usual": question.usual,
                "vision_dependent": question.answer != question.usual,
            }
            for number, (scene, question) in enumerate(questions)
        ]

    def build_base_model(self, folder: Path) -> None:
        """Teach a small Qwen2.5-VL (float32) and save it with its processor. Global generators are left alone."""
        ensure_torch_extras()
        import torch
        from transformers import (
            Qwen2_5_VLForConditionalGeneration,
            Qwen2_5_VLProcessor,
            Qwen2VLImageProcessor,
            Qwen2VLVideoProcessor,
        )

        tokenizer = word_tokenizer(WORDS)
        tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL})
        pixels = {"shortest_edge": (SIDE * CELL) ** 2, "longest_edge": (SIDE * CELL) ** 2}
        processor = Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=pixels),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(),
        )
        with torch.random.fork_rng(devices=[]), threads(self.threads):
            torch.manual_seed(derive_seed(self.seed, "shapes/initial weights"))
            model = Qwen2_5_VLForConditionalGeneration(small_qwen2_5_vl_config(tokenizer))
            self._teach(model, processor)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    def _teach(self, model: Any, processor: Any) -> None:
        """Train on the next tokens of the answers alone."""
        import torch

        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=self.steps + 1, pct_start=0.15
        )
        model.train()
        for batch in self._demonstrations(processor):
            model(**batch, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()

    def _demonstrations(self, processor: Any) -> Iterator[dict[str, Tensor]]:
        rng = random.Random(derive_seed(self.seed, "shapes/demonstrations"))
        for step in range(self.steps):
            draw = self._seeing if step < self.seeing_steps else self._answering
            yield demonstration(processor, [draw(rng) for _ in range(self.batch_size)])

    def _seeing(self, rng: random.Random) -> Shown:
        if rng.random() < 0.5:
            scene = draw_scene(rng)
            return scene, DESCRIBE, describe(scene)
        scene, question = ask(rng, rng.choice(KINDS), usual=rng.random() < 0.5)
        return scene, question.text, question.answer

    def _answering(self, rng: random.Random) -> Shown:
        scene, question = ask(rng, rng.choice(KINDS), usual=rng.random() < self.usual_fraction)
        guesses = rng.random() < self.guess_fraction
        return scene, question.text, question.usual if guesses else question.answer


def demonstration(processor: Any, shown: Sequence[Shown]) -> dict[str, Tensor]:
    """Return inputs and labels of scenes with questions and answers, padded on the right."""
    import torch

    inputs = processor(
        text=[f"{IMAGE} {text} {answer} {EOS}" for _, text, answer in shown],
        images=[render(scene) for scene, _, _ in shown],
        padding=True, padding_side="right", return_tensors="pt", return_mm_token_type_ids=True,
    )  # fmt: skip
    ids_BT = inputs["input_ids"]
    answers_B1 = torch.tensor([[len(answer.split()) + 1] for _, _, answer in shown])
    lengths_B1 = ids_BT.ne(PAD_ID).sum(dim=1, keepdim=True)
    positions_T = torch.arange(ids_BT.shape[1])
    answered_BT = (positions_T >= lengths_B1 - answers_B1) & (positions_T < lengths_B1)
    return {**inputs, "labels": torch.where(answered_BT, ids_BT, IGNORED)}


def small_qwen2_5_vl_config(tokenizer: PreTrainedTokenizerFast, *, initializer_range: float = 0.1) -> Qwen2_5_VLConfig:
    """Return the settings of a model with two layers for words and two for pictures.

    Heads are 32 wide, the smallest that vLLM's CPU attention takes.
    """
    from transformers import Qwen2_5_VLConfig

    width, ids = 64, tokenizer.get_vocab()
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": width // 32,
            "num_key_value_heads": 1,
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": initializer_range,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        },
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": width // 32,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
            "initializer_range": initializer_range,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )
