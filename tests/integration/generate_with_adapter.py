"""Prints what vLLM generates with an exported adapter: ``python -m tests.integration.generate_with_adapter BASE DIR``

A process of its own, because vLLM keeps one engine a process for good. It is loaded from files, as a user would.
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        sys.argv[1], dtype="bfloat16", enable_lora=True, max_lora_rank=16, max_model_len=64, enforce_eager=True, seed=0
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=16, logprobs=0, ignore_eos=True)
    outputs = llm.generate("7+12=", greedy, lora_request=LoRARequest("policy", 1, sys.argv[2]))
    assert outputs is not None
    output = outputs[0]
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    positions = [position or {} for position in logprobs]
    chosen = [position[token].logprob for position, token in zip(positions, output.outputs[0].token_ids, strict=True)]
    print(json.dumps([list(output.prompt_token_ids or ()), list(output.outputs[0].token_ids), chosen]))
