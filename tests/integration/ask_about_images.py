"""Run as a script: a vision-language model samples in vLLM and is scored by transformers, in one process.

python -m tests.integration.ask_about_images MODEL_FOLDER ANSWERS.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm import LLM, SamplingParams

from tests.models import IMAGE

NEW_TOKENS = 4
QUESTION = "1+1="
IMAGES = {"red": Image.new("RGB", (56, 56), "red"), "gradient": Image.linear_gradient("L").resize((56, 56))}
PROMPTS = {"red": IMAGE + QUESTION, "gradient": IMAGE + QUESTION, "none": QUESTION}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What vLLM sampled for one prompt; log-probs in nats."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]


def sample(folder: str) -> dict[str, Answer]:
    """A few tokens for each of `PROMPTS`, which go out as token ids."""
    engine = LLM(
        model=folder,
        dtype="float32",
        max_model_len=64,
        limit_mm_per_prompt={"image": 1},
        enforce_eager=not torch.cuda.is_available(),
    )
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    inputs: list[Any] = [
        {"prompt_token_ids": tokenizer.encode(text)}
        | ({"multi_modal_data": {"image": IMAGES[name]}} if name in IMAGES else {})
        for name, text in PROMPTS.items()
    ]
    parameters = SamplingParams(
        max_tokens=NEW_TOKENS,
        seed=0,
        logprobs=0,
        ignore_eos=True,
        detokenize=False,
        allowed_token_ids=list(range(tokenizer.vocab_size)),  # a sampled <|image_pad|> would ask for one more image
    )
    outputs = engine.generate(inputs, parameters, use_tqdm=False)
    return {name: _answer(output) for name, output in zip(PROMPTS, outputs, strict=True)}


def _answer(output: Any) -> Answer:
    drawn = output.outputs[0]
    return Answer(
        prompt_token_ids=list(output.prompt_token_ids),
        token_ids=list(drawn.token_ids),
        logprobs=[position[token].logprob for position, token in zip(drawn.logprobs, drawn.token_ids, strict=True)],
    )


@torch.no_grad()
def score(folder: str, answers: dict[str, Answer]) -> dict[str, dict[str, list[float]]]:
    """Log-probs by transformers: of each prompt's sampled tokens, after each of `PROMPTS`."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in answers}
    for given, text in PROMPTS.items():
        inputs = processor(text=[text], images=IMAGES.get(given), return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == answers[given].prompt_token_ids
        for name, answer in answers.items():
            new_1T = torch.tensor([answer.token_ids])
            whole = inputs | {
                "input_ids": torch.cat([inputs["input_ids"], new_1T], dim=1),
                "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new_1T)], dim=1),
                "attention_mask": None,
            }
            logprobs_TV = model(**whole).logits[0, -1 - NEW_TOKENS : -1].log_softmax(dim=-1)
            scores[name][given] = logprobs_TV.gather(1, new_1T.T)[:, 0].tolist()
    return scores


if __name__ == "__main__":
    sampled = sample(sys.argv[1])
    scores = score(sys.argv[1], sampled)
    report = {"sampled": {name: asdict(answer) for name, answer in sampled.items()}, "scores": scores}
    Path(sys.argv[2]).write_text(json.dumps(report))
