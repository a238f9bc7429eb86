"""Random models that look like published ones: deep, of many words, with real logits, chat templates and lengths.

``python -m tests.realistic.models FOLDER qwen3 layers=24 hidden=128 vocabulary=151936 tied=true`` writes one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rlkl.system.compat import ensure_torch_extras
from tests.realistic.vocabulary import FAMILIES, Family, make_tokenizer
from tests.realistic.weights import draw_weights, shape_logits

ARCHITECTURES = {
    "qwen2": "qwen",
    "qwen3": "qwen",
    "qwen3_moe": "qwen",
    "qwen2_5_vl": "qwen",
    "llama": "llama",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "mistral": "mistral",
    "phi3": "phi3",
    "opt": "opt",
    "gpt2": "gpt2",
}
"""Architecture -> the family whose special tokens and chat template it has (see `FAMILIES`)."""
ADD_BOS = ("llama", "gemma", "gemma2", "gemma3", "mistral", "opt")
HEAD_DIM = 32
"""The smallest head that vLLM's CPU attention takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """A model to build. The defaults make a Qwen3 of 25 million parameters, most of them in the embedding.

    ``ModelChoice(architecture="mistral", vocabulary=4096, sliding_window=32)`` is a small one.
    """

    architecture: str = "qwen3"
    layers: int = 24
    hidden: int = 128
    vocabulary: int = 151_936
    tied: bool = True
    """One matrix for embedding and output head. Ignored by gemma (always), opt and gpt2 (always)."""
    kv_heads: int = 2
    """Key and value heads; there are ``hidden / 32`` query heads. Ignored by opt and gpt2."""
    sliding_window: int | None = None
    """For mistral, phi3, qwen2 (its last half of layers) and gemma2, gemma3 (as they alternate)."""
    dtype: str = "float32"
    max_positions: int = 1024
    end_probability: float = 0.01
    """Probability of a stop token at each place; completions are about one hundred tokens long, some much longer."""
    entropy: float = 3.0
    """Mean entropy in nats of the next token."""
    seed: int = 0

    @property
    def family(self) -> Family:
        return FAMILIES[ARCHITECTURES[self.architecture]]

    @property
    def is_multimodal(self) -> bool:
        """Whether it is a vision-language model."""
        return self.architecture == "qwen2_5_vl"

    @property
    def name(self) -> str:
        """A folder name that holds every choice."""
        return "-".join(str(getattr(self, f.name)) for f in fields(self))


@dataclass(frozen=True, slots=True)
class _Ids:
    """Token ids that a configuration names."""

    of: Mapping[str, int]
    family: Family
    eos: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos", self.of[self.family.eos])

    @property
    def named(self) -> dict[str, Any]:
        pad, bos = self.family.pad, self.family.bos
        return {
            "eos_token_id": self.eos,
            "pad_token_id": None if pad is None else self.of[pad],
            "bos_token_id": None if bos is None else self.of[bos],
        }


def build(choice: ModelChoice, folder: Path) -> Path:
    """Write the model to a folder of its own in ``folder``, unless it is there already; returns it.

    It holds configuration, safetensors, tokenizer with chat template, and generation settings that list several stop
    tokens. The choice alone decides every byte of the weights.
    """
    target = folder / choice.name
    if target.is_dir():
        return target
    aside = folder / f".{choice.name}.{os.getpid()}"
    _write(choice, aside)
    try:
        aside.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(aside)
    return target


def _write(choice: ModelChoice, folder: Path) -> None:
    ensure_torch_extras()
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    family = choice.family
    tokenizer = make_tokenizer(family, vocabulary=choice.vocabulary, adds_bos=choice.architecture in ADD_BOS)
    ids = _Ids(tokenizer.get_vocab(), family)
    config = _CONFIGS[choice.architecture](choice, ids)
    loader = AutoModelForImageTextToText if choice.is_multimodal else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model: Any = loader.from_config(config).eval()
    draw_weights(model, seed=choice.seed)
    generator = torch.Generator().manual_seed(choice.seed)
    ids_BT = torch.randint(256, choice.vocabulary - 64, (2, 33), generator=generator)
    shape_logits(model, entropy=choice.entropy, stops=_stop_probabilities(choice, ids), ids_BT=ids_BT)
    model.to(getattr(torch, choice.dtype))
    model.generation_config = GenerationConfig(
        **{name: value for name, value in ids.named.items() if name != "eos_token_id"},
        eos_token_id=[ids.of[stop] for stop in family.stops],
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        repetition_penalty=1.05,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if choice.is_multimodal:
        _save_processor(tokenizer, folder)


def _stop_probabilities(choice: ModelChoice, ids: _Ids) -> dict[int, float]:
    """The first stop token takes four fifths of the probability to end."""
    first, *others = [ids.of[stop] for stop in choice.family.stops]
    if not others:
        return {first: choice.end_probability}
    share = choice.end_probability / 5 / len(others)
    return {first: choice.end_probability * 4 / 5} | dict.fromkeys(others, share)


def _save_processor(tokenizer: Any, folder: Path) -> None:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)


def _sizes(choice: ModelChoice, ids: _Ids) -> dict[str, Any]:
    """Settings that the Llama-like configurations share."""
    return {
        "vocab_size": choice.vocabulary,
        "hidden_size": choice.hidden,
        "intermediate_size": 3 * choice.hidden,
        "num_hidden_layers": choice.layers,
        "num_attention_heads": choice.hidden // HEAD_DIM,
        "num_key_value_heads": choice.kv_heads,
        "max_position_embeddings": choice.max_positions,
        "tie_word_embeddings": choice.tied,
        **ids.named,
    }


def _qwen2(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import Qwen2Config

    window = {}
    if choice.sliding_window is not None:
        half = choice.layers // 2
        window = {"use_sliding_window": True, "sliding_window": choice.sliding_window, "max_window_layers": half}
    return Qwen2Config(**_sizes(choice, ids), **window)


def _qwen3(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**{**_sizes(choice, ids), "head_dim": HEAD_DIM})


def _qwen3_moe(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        **{**_sizes(choice, ids), "head_dim": HEAD_DIM},
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=choice.hidden,
        norm_topk_prob=True,
    )


def _qwen2_5_vl(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    return Qwen2_5_VLConfig(
        text_config={**_sizes(choice, ids), "rope_parameters": rope},
        vision_config={
            "depth": 4,
            "hidden_size": choice.hidden,
            "intermediate_size": 2 * choice.hidden,
            "num_heads": choice.hidden // HEAD_DIM,
            "out_hidden_size": choice.hidden,
            "fullatt_block_indexes": [1, 3],
        },
        tie_word_embeddings=choice.tied,
        image_token_id=ids.of["<|image_pad|>"],
        video_token_id=ids.of["<|video_pad|>"],
        vision_start_token_id=ids.of["<|vision_start|>"],
        vision_end_token_id=ids.of["<|vision_end|>"],
    )


def _llama(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**_sizes(choice, ids), "head_dim": HEAD_DIM})


def _gemma(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import GemmaConfig

    return GemmaConfig(**{**_sizes(choice, ids), "tie_word_embeddings": True}, head_dim=HEAD_DIM)


def _gemma2(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**_alternating(choice, ids))


def _gemma3(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(**_alternating(choice, ids))


def _alternating(choice: ModelChoice, ids: _Ids) -> dict[str, Any]:
    return {
        **_sizes(choice, ids),
        "tie_word_embeddings": True,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": choice.sliding_window or 64,
    }


def _mistral(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import MistralConfig

    return MistralConfig(**_sizes(choice, ids), head_dim=HEAD_DIM, sliding_window=choice.sliding_window)


def _phi3(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import Phi3Config

    limit = choice.max_positions
    return Phi3Config(
        **_sizes(choice, ids), original_max_position_embeddings=limit, sliding_window=choice.sliding_window
    )


def _opt(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=choice.vocabulary,
        hidden_size=choice.hidden,
        word_embed_proj_dim=choice.hidden,
        ffn_dim=4 * choice.hidden,
        num_hidden_layers=choice.layers,
        num_attention_heads=choice.hidden // HEAD_DIM,
        max_position_embeddings=choice.max_positions,
        **ids.named,
    )


def _gpt2(choice: ModelChoice, ids: _Ids) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=choice.vocabulary,
        n_embd=choice.hidden,
        n_layer=choice.layers,
        n_head=choice.hidden // HEAD_DIM,
        n_positions=choice.max_positions,
        **ids.named,
    )


_CONFIGS: dict[str, Callable[[ModelChoice, _Ids], Any]] = {
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "qwen2_5_vl": _qwen2_5_vl,
    "llama": _llama,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mistral": _mistral,
    "phi3": _phi3,
    "opt": _opt,
    "gpt2": _gpt2,
}


def main(arguments: list[str]) -> None:
    """``FOLDER ARCHITECTURE [key=value ...]``: build a model and log where it is."""
    import yaml

    folder, architecture, *settings = arguments
    values = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in settings)}
    sys.stdout.write(f"{build(ModelChoice(architecture=architecture, **values), Path(folder))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
