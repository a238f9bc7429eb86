from pathlib import Path

import torch

from rlkl.models.adapter import adapted_module, adapter_names
from rlkl.models.policy import Policy
from rlkl.recipe import LoraSection, ModelSection
from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.hf_engine import HfEngine
from rlkl.types import Probe
from tests.models import tiny_qwen2_5_vl, tiny_qwen3

LORA = LoraSection(rank=4, alpha=12)


def policy(path: Path, dtype: str) -> Policy:
    section = ModelSection(path=str(path), dtype=dtype, lora=LORA)  # pyright: ignore[reportArgumentType]
    made = Policy(str(path), section, device=torch.device("cpu"), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 1e-3).to(parameter.dtype)
    return made


def test_the_names_are_known_without_loading_weights(tmp_path: Path):
    for path in (tiny_qwen3(tmp_path / "text", tied=True, seed=0), tiny_qwen2_5_vl(tmp_path / "vl", seed=0)):
        published = [name for name, _ in policy(path, "bfloat16").published()]
        assert adapter_names(str(path), LORA, freeze_vision=False) == published
        assert all(".lora_" in name for name in published)
    assert "model.visual.merger.mlp.2" in {adapted_module(name) for name in published}


def test_in_float32_adapters_are_published_merged(tmp_path: Path):
    path = tiny_qwen3(tmp_path / "text", tied=True, seed=0)
    assert not [name for name, _ in policy(path, "float32").published() if ".lora_" in name]


def test_the_hf_engine_takes_adapters_and_follows_the_learner(tmp_path: Path):
    """As far as adapters that change weights by less than bfloat16 can show."""
    path = tiny_qwen3(tmp_path / "text", tied=True, seed=0)
    engine = HfEngine(
        EngineSettings(
            model_path=str(path),
            dtype="bfloat16",
            max_prompt_tokens=32,
            max_new_tokens=8,
            temperature=1.0,
            stop_token_ids=(1,),
            memory_fraction=0.5,
            kv_cache_gib=1,
            adapter=LORA,
        )
    )
    learner = policy(path, "bfloat16")
    tensors = list(learner.published())

    assert engine.load_weights(tensors[1:]) == {tensors[0][0]}
    assert engine.load_weights(tensors) == frozenset()
    held = dict(engine.readable_weights())
    assert all(torch.equal(held[name], tensor.float()) for name, tensor in tensors)
    ids = torch.randint(2, 14, (1, 32), generator=torch.Generator().manual_seed(1))
    scores = engine.score([Probe(token_ids=tuple(ids[0].tolist()))])[0]
    with torch.no_grad():
        logits = learner.head(learner.hidden(ids)[0, :-1]).float()
    wanted = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert (torch.tensor(scores) - wanted).abs().max() < 0.2
