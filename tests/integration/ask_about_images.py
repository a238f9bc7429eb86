"""Run as a script: a vision-language model in vLLM and in transformers, asked about two images; the answers as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm import LLM, SamplingParams

from tests.models import IMAGE

NEW_TOKENS = 4
IMAGES = {
    "dark": Image.linear_gradient("L").resize((56, 56)).convert("RGB"),
    "red": Image.new("RGB", (84, 56), "red"),
}


def vllm_answers(folder: str) -> dict[str, Any]:
    """Sampled tokens with their log-probs, by image."""
    engine = LLM(
        model=folder,
        dtype="float32",
        max_model_len=128,
        limit_mm_per_prompt={"image": 1, "video": 0},
        logprobs_mode="processed_logprobs",
        enforce_eager=True,
    )
    tokenizer = engine.get_tokenizer()
    prompt = tokenizer.encode(f"{IMAGE}1+1=")
    sampling = SamplingParams(max_tokens=NEW_TOKENS, seed=0, logprobs=0, ignore_eos=True, detokenize=False)
    outputs = engine.generate(
        [{"prompt_token_ids": prompt, "multi_modal_data": {"image": image}} for image in IMAGES.values()],
        sampling,
        use_tqdm=False,
    )
    answers = {}
    for name, output in zip(IMAGES, outputs, strict=True):
        sample = output.outputs[0]
        logprobs = [position[token].logprob for position, token in zip(sample.logprobs, sample.token_ids)]
        answers[name] = {
            "prompt": list(output.prompt_token_ids),
            "tokens": list(sample.token_ids),
            "logprobs": logprobs,
        }
    return answers


@torch.no_grad()
def transformers_logprobs(folder: str, answers):
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    result = {}
    for name, image in IMAGES.items():
        inputs = processor(text=[f"{IMAGE}1+1="], images=[image], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == answers[name]["prompt"], (
            inputs["input_ids"][0].tolist(),
            answers[name]["prompt"],
        )
        new = torch.tensor([answers[name]["tokens"]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        lp = model(**inputs).logits[0, -1 - NEW_TOKENS : -1].log_softmax(-1)
        result[name] = lp.gather(1, new[0][:, None])[:, 0].tolist()
    return result


if __name__ == "__main__":
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind"
    )
    import time

    t = time.time()
    a = vllm_answers(sys.argv[1])
    print(time.time() - t, a)
    print(transformers_logprobs(sys.argv[1], a))
    print(time.time() - t)
    from transformers import AutoModelForCausalLM

    try:
        print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])))
    except Exception as e:
        print("CausalLM", e)
