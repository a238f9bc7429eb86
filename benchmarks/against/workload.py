"""The work of `benchmarks.against_trl`: a model, prompts, completions and rewards, as files that both sides read.

The model is a Qwen3 with random weights and tied embeddings. The reference has the policy's weights plus noise, so that
the KL is not zero. Completions are random tokens: both sides train on the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks.characters import EOS_ID, MAX_POSITIONS, PAD_ID, word_tokenizer

WORKLOAD_FILE = "workload.json"
FIRST_ID = 3
"""The ids before it are special tokens of `word_tokenizer`."""
REFERENCE_NOISE = 0.01
"""Standard deviation of the noise on the reference's weights, half of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Qwen3."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


MEDIUM = Shape(layers=9, hidden=512, intermediate=1536, heads=8, kv_heads=4, head_dim=64, vocabulary=2048)
"""29 million parameters, most of them in the layers."""
WIDE_HEAD = Shape(layers=4, hidden=192, intermediate=512, heads=6, kv_heads=3, head_dim=32, vocabulary=151_936)
"""31 million parameters, most of them in the output head, with the vocabulary of Qwen3."""
TINY = Shape(layers=2, hidden=64, intermediate=128, heads=2, kv_heads=1, head_dim=32, vocabulary=256)
"""150 thousand parameters, for trials of the benchmark itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison: a model and a batch."""

    shape: Shape = MEDIUM
    dtype: str = "float32"
    prompts: int = 8
    samples: int = 8
    prompt_tokens: int = 32
    answer_tokens: int = 128
    """Tokens of each completion, or the limit if ``end_chance`` is not 0."""
    end_chance: float = 0.0
    """Chance of each token to end the completion."""
    kl_coef: float = 0.05
    """0: the loss has no KL, and no side runs a reference."""
    micro_batch_tokens: int = 2560
    """Tokens of a forward and backward pass, padding included."""
    whole: bool = False
    """Whether each side samples its own completions. A step then includes sampling, rewards, and publishing weights."""

    @property
    def rows(self) -> int:
        """Sequences of the batch."""
        return self.prompts * self.samples

    def __str__(self) -> str:
        lengths = f"up to {self.answer_tokens}" if self.end_chance else f"{self.answer_tokens}"
        kl = f"KL coefficient {self.kl_coef}" if self.kl_coef else "no reference"
        kind = "whole step, " if self.whole else ""
        return (
            f"{kind}{self.prompts} x {self.samples} sequences, {self.prompt_tokens} + {lengths} tokens, "
            f"vocabulary {self.shape.vocabulary:,}, {self.dtype}, {kl}"
        )


CASES: Mapping[str, Case] = {
    "float32": Case(),
    "bfloat16": Case(dtype="bfloat16"),
    "no_reference": Case(kl_coef=0.0),
    "no_reference_bfloat16": Case(dtype="bfloat16", kl_coef=0.0),
    "vocabulary": Case(shape=WIDE_HEAD),
    "vocabulary_bfloat16": Case(shape=WIDE_HEAD, dtype="bfloat16"),
    "long_tail": Case(answer_tokens=256, end_chance=0.01),
    "long_tail_bfloat16": Case(answer_tokens=256, end_chance=0.01, dtype="bfloat16"),
    "long_prompts": Case(prompt_tokens=128),
    "long_prompts_bfloat16": Case(prompt_tokens=128, dtype="bfloat16"),
    "whole": Case(whole=True),
    "whole_bfloat16": Case(whole=True, dtype="bfloat16"),
    "whole_vocabulary": Case(whole=True, shape=WIDE_HEAD),
}
"""The cases by name."""


def tiny(case: Case) -> Case:
    """Return the case with a tiny model and short texts, to try the benchmark."""
    return replace(
        case,
        shape=TINY,
        prompts=2,
        samples=4,
        prompt_tokens=min(case.prompt_tokens, 8),
        answer_tokens=16,
        end_chance=10 * case.end_chance,
        micro_batch_tokens=96,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The work of one case. Completions and rewards are those of the first prompt's samples, then the second's, ..."""

    case: Case
    folder: Path
    parameters: int
    """Weights of the policy; the tied embedding counts once."""
    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]

    @property
    def policy(self) -> str:
        """The folder of the policy's weights."""
        return str(self.folder / "policy")

    @property
    def reference(self) -> str:
        """The folder of the reference's weights."""
        return str(self.folder / "reference")

    @property
    def texts(self) -> list[str]:
        """The prompts as texts that the model's tokenizer turns into their ids."""
        return [" ".join(f"w{number}" for number in prompt) for prompt in self.prompts]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences, prompts included, without padding."""
        return self.case.samples * sum(map(len, self.prompts)) + sum(map(len, self.completions))

    @property
    def useful_flops(self) -> float:
        """Operations of a step: 2 P a token forward, 4 P backward, 2 P for the reference; P weights.

        Attention, padding, and a second forward pass count nothing.
        """
        return (6 + (2 if self.case.kl_coef > 0 else 0)) * self.parameters * self.tokens


def write_workload(case: Case, folder: Path, *, seed: int = 0) -> Workload:
    """Draw the work of a case and write it to ``folder``."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(FIRST_ID, case.shape.vocabulary, (count,), generator=generator).tolist())

    workload = Workload(
        case=case,
        folder=folder,
        parameters=_write_models(case.shape, folder, seed=seed),
        prompts=tuple(ids(case.prompt_tokens) for _ in range(case.prompts)),
        completions=tuple(ids(_length(case, generator)) for _ in range(case.rows)),
        rewards=tuple(torch.rand(case.rows, generator=generator).tolist()),
    )
    record = {**asdict(workload), "folder": str(folder)}
    (folder / WORKLOAD_FILE).write_text(json.dumps(record))
    return workload


def read_workload(folder: Path) -> Workload:
    """Read the work that `write_workload` wrote."""
    record = json.loads((folder / WORKLOAD_FILE).read_text())
    case = record.pop("case")
    return Workload(
        case=Case(**{**case, "shape": Shape(**case["shape"])}),
        folder=folder,
        parameters=record["parameters"],
        prompts=tuple(map(tuple, record["prompts"])),
        completions=tuple(map(tuple, record["completions"])),
        rewards=tuple(record["rewards"]),
    )


def _length(case: Case, generator: torch.Generator) -> int:
    if case.end_chance == 0:
        return case.answer_tokens
    ends_T = torch.rand(case.answer_tokens, generator=generator) < case.end_chance
    return int(ends_T.int().argmax()) + 1 if ends_T.any() else case.answer_tokens


def _write_models(shape: Shape, folder: Path, *, seed: int) -> int:
    """Write policy, reference and tokenizer; return the number of the policy's weights."""
    ensure_torch_extras()
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        model.save_pretrained(folder / "policy")
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * REFERENCE_NOISE)
        model.save_pretrained(folder / "reference")
    tokenizer = word_tokenizer([f"w{number}" for number in range(FIRST_ID, shape.vocabulary)])
    for name in ("policy", "reference"):
        tokenizer.save_pretrained(folder / name)
    return sum(parameter.numel() for parameter in model.parameters())
