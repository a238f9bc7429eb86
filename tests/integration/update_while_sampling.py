"""Run as a script: a vLLM gets new weights while it samples. Write what it sampled, and the learners' log-probs of it.

python -m tests.integration.update_while_sampling MODEL_FOLDER STOP_TEXT ANSWERS.json

The engine samples 4 completions at one time, so most of them wait. Probes must not wait with them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from rlkl.models.policy import Policy
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.vllm_engine import VllmEngine
from rlkl.types import Completion, Probe
from tests.integration.publish_to_vllm import move, policy_of

REQUESTS = 12
STEPS_BEFORE = (3, 40, 45)
"""Steps of the engine before each version of the weights."""


def main(folder: str, stop: str, answers: str) -> None:
    """Sample while three versions arrive, each with a probe that is scored among the running completions."""
    settings = EngineSettings(
        model_path=folder,
        dtype="float32",
        max_prompt_tokens=32,
        max_new_tokens=48,
        temperature=1.0,
        stop_token_ids=(1,),
        memory_fraction=0.3,
        kv_cache_gib=1,
        stop=(stop,) if stop else (),
        streams=True,
        vllm={"max_num_seqs": 4},
    )
    engine = VllmEngine(settings)
    policies = [_moved(folder, times) for times in range(len(STEPS_BEFORE) + 1)]
    generator = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(3, 60, (n + 4,), generator=generator).tolist()) for n in range(REQUESTS)]
    requests = [Request(prompt_token_ids=prompt, seed=n) for n, prompt in enumerate(prompts)]
    probe = prompts[10] + prompts[11]

    calls = Counted(engine._llm.llm_engine)
    engine.add(list(enumerate(requests)))
    found: dict[int, Completion] = {}
    gaps: list[float] = []
    waited: list[int] = []
    for version, steps in enumerate(STEPS_BEFORE, start=1):
        for _ in range(steps):
            found |= dict(engine.step())
        engine.begin_version(version)
        assert not engine.load_weights(list(policies[version].published()))
        steps_before = calls.count
        (sampler,) = engine.score([Probe(token_ids=probe)])
        waited.append(calls.count - steps_before)
        gaps.append(max(abs(a - b) for a, b in zip(sampler, _scores(policies[version], probe), strict=True)))
    while engine.is_busy:
        found |= dict(engine.step())
    report = {
        "gaps": gaps,
        "waited": waited,
        "completions": [
            {
                "tokens": found[n].token_ids,
                "logprobs": found[n].logprobs,
                "finish_reason": found[n].finish_reason,
                "versions": found[n].versions or [(found[n].weights_version, 0)],
                "learners": [_scores(policy, prompt + found[n].token_ids)[len(prompt) - 1 :] for policy in policies],
            }
            for n, prompt in enumerate(prompts)
        ],
        "again": [completion.token_ids for completion in engine.generate(requests)],
    }
    Path(answers).write_text(json.dumps(report))


class Counted:
    """Counts the steps of a vLLM."""

    def __init__(self, engine: Any) -> None:
        self.count = 0
        self._step = engine.step
        engine.step = self

    def __call__(self) -> Any:
        self.count += 1
        return self._step()


def _moved(folder: str, times: int) -> Policy:
    policy = policy_of(folder, "float32", None)
    for _ in range(times):
        move(policy)
    return policy


@torch.no_grad()
def _scores(policy: Policy, token_ids: tuple[int, ...]) -> list[float]:
    ids_1T = torch.tensor([token_ids])
    logprobs_TV = policy.head(policy.hidden(ids_1T)[0, :-1]).float().log_softmax(-1)
    return logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
