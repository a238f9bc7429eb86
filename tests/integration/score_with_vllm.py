"""Prints vLLM's log-probs of a sequence: ``python -m tests.integration.score_with_vllm FOLDER TOKEN_ID ...``

A process of its own, because vLLM keeps one engine a process for good.
"""

import json
import sys

from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.vllm_engine import VllmEngine
from rlkl.types import Probe

if __name__ == "__main__":
    engine = VllmEngine(
        EngineSettings(
            model_path=sys.argv[1],
            dtype="float32",
            max_prompt_tokens=16,
            max_new_tokens=8,
            temperature=1.0,
            stop_token_ids=(1,),
            memory_fraction=0.5,
            kv_cache_gib=1,
        )
    )
    print(json.dumps(engine.score([Probe(token_ids=tuple(map(int, sys.argv[2:])))])[0]))
