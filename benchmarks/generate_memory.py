"""Measure the peak memory of sampling with the hf engine at a vocabulary of 150k.

``all logits`` keeps the logits of every step until the end, as ``generate`` does with ``output_logits``; ``engine`` is
rlkl's engine, which keeps only the log-prob of each sampled token.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3ForCausalLM

from benchmarks.peak_memory import VOCABULARY, compare, report_growth
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.hf_engine import GumbelNoise, HfEngine
from rlkl.tasks.characters import small_qwen3_config

ROWS, TOKENS = 32, 32
WAYS = ("all logits", "engine")


def measure(way: str) -> None:
    """Print one way's cost; see `report_growth`."""
    with tempfile.TemporaryDirectory() as folder:
        Qwen3ForCausalLM(small_qwen3_config(tied=True, vocabulary=VOCABULARY)).save_pretrained(folder)
        settings = EngineSettings(
            model_path=str(Path(folder)),
            dtype="float32",
            max_prompt_tokens=8,
            max_new_tokens=TOKENS,
            temperature=1.0,
            stop_token_ids=(1,),
            memory_fraction=0.5,
            kv_cache_gib=1,
        )
        engine = HfEngine(settings)
        requests = [Request(prompt_token_ids=(4, 5, 6), seed=seed) for seed in range(ROWS)]
        sample: dict[str, Callable[[], object]] = {
            "all logits": lambda: _all_logits(engine, requests),
            "engine": lambda: engine.generate(requests),
        }
        report_growth(sample[way])


@torch.no_grad()
def _all_logits(engine: HfEngine, requests: list[Request]) -> list[list[float]]:
    output = engine._model.generate(
        torch.tensor([request.prompt_token_ids for request in requests]),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=TOKENS,
            eos_token_id=1,
            pad_token_id=1,
            output_logits=True,
            return_dict_in_generate=True,
        ),
        logits_processor=[GumbelNoise([request.seed for request in requests], 1.0)],
    )
    logits_BTV = torch.stack(output.logits, dim=1).float()
    return logits_BTV.log_softmax(-1).gather(-1, output.sequences[:, 3:, None])[..., 0].tolist()


def main() -> None:
    """Measure both ways and print a table."""
    print(f"{ROWS} completions of {TOKENS} tokens, vocabulary {VOCABULARY}, float32")
    compare("benchmarks.generate_memory", WAYS)


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
