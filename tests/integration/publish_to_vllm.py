"""Run as a script: a learner publishes twice to a vLLM in one process, and both score the same tokens each time.

python -m tests.integration.publish_to_vllm MODEL_FOLDER DTYPE ANSWERS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlkl.models.policy import Policy
from rlkl.recipe import LoraSection, ModelSection
from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.vllm_engine import VllmEngine
from rlkl.types import Probe

LENGTHS = (40, 31, 8)


def main(folder: str, dtype: str, answers: str) -> None:
    """Write, for each moment, the log-probs of engine and learner."""
    settings = EngineSettings(
        model_path=folder,
        dtype=dtype,
        max_prompt_tokens=48,
        max_new_tokens=8,
        temperature=1.0,
        stop_token_ids=(1,),
        memory_fraction=0.3,
        kv_cache_gib=1,
    )
    engine = VllmEngine(settings)
    generator = torch.Generator().manual_seed(0)
    probes = [Probe(token_ids=tuple(torch.randint(3, 90, (n,), generator=generator).tolist())) for n in LENGTHS]
    full = policy_of(folder, dtype, None)
    report = {"start": _scores(engine, full, probes)}
    for moment, policy in {
        "unmoved": full,
        "moved": full,
        "adapters": policy_of(folder, dtype, LoraSection(rank=4)),
    }.items():
        if moment != "unmoved":
            move(policy)
        unreached = engine.load_weights(list(policy.published()))
        assert not unreached, unreached
        report[moment] = _scores(engine, policy, probes)
    Path(answers).write_text(json.dumps(report))


def policy_of(folder: str, dtype: str, lora: LoraSection | None) -> Policy:
    """Load a policy."""
    section = ModelSection.model_validate({"path": folder, "dtype": dtype, "lora": lora})
    return Policy(folder, section, device=torch.device("cpu"), seed=0)


@torch.no_grad()
def move(policy: Policy) -> None:
    """Change all trained weights by fixed noise."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)


@torch.no_grad()
def _scores(engine: VllmEngine, policy: Policy, probes: list[Probe]) -> dict[str, list[float]]:
    learner: list[float] = []
    for probe in probes:
        ids_1T = torch.tensor([probe.token_ids])
        logprobs_TV = policy.head(policy.hidden(ids_1T)[0, :-1]).float().log_softmax(-1)
        learner += logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist()
    return {"engine": [value for row in engine.score(probes) for value in row], "learner": learner}


if __name__ == "__main__":
    main(*sys.argv[1:])
