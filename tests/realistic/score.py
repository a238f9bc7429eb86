"""Print vLLM's log-probs of sequences: ``python -m tests.realistic.score FOLDER DTYPE TOKEN_IDS.json``.

It is a process of its own, because vLLM keeps one engine a process for good.
"""

import json
import sys
from pathlib import Path

from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.vllm_engine import VllmEngine
from rlkl.types import Probe

if __name__ == "__main__":
    sequences = json.loads(Path(sys.argv[3]).read_text())
    engine = VllmEngine(
        EngineSettings(
            model_path=sys.argv[1],
            dtype=sys.argv[2],
            max_prompt_tokens=max(map(len, sequences)),
            max_new_tokens=1,
            temperature=1.0,
            stop_token_ids=(1,),
            memory_fraction=0.5,
            kv_cache_gib=1,
        )
    )
    print(json.dumps(engine.score([Probe(token_ids=tuple(sequence)) for sequence in sequences])))
