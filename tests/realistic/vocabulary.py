"""Tokenizers and chat templates as published models have them, with invented words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlkl.system.compat import ensure_torch_extras

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNUSED_ROWS = 8
"""Rows of the embedding that no token has, as published models pad their vocabulary."""

SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvwxzcq" for vowel in "aeiou"]

CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] if message['content'] is string else '' }}\
{% if message['content'] is not string %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA = """{{ '<|begin_of_text|>' }}{% for message in messages %}\
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{{ message['content'] }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
GEMMA = """{{ '<bos>' }}{% for message in messages %}<start_of_turn>\
{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{{ message['content'] }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
PHI3 = """{% for message in messages %}<|{{ message['role'] }}|>
{{ message['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
MISTRAL = """{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}\
{{ ' ' + message['content'] + '</s>' }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}\
{% endfor %}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The special tokens of a family of models. ``turn_end`` closes a chat turn and is often not ``eos``."""

    eos: str
    stops: tuple[str, ...]
    """Tokens of ``eos_token_id`` in the generation settings, the most frequent first."""
    pad: str | None
    bos: str | None = None
    others: tuple[str, ...] = ()
    template: str | None = None

    @property
    def special_tokens(self) -> list[str]:
        named = [self.pad, self.bos, self.eos, *self.stops, *self.others]
        return list(dict.fromkeys(token for token in named if token is not None))


QWEN = Family(
    eos="<|im_end|>",
    stops=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    others=("<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"),
    template=CHATML,
)
FAMILIES = {
    "qwen": QWEN,
    "llama": Family(
        eos="<|eot_id|>",
        stops=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        pad=None,
        bos="<|begin_of_text|>",
        others=("<|start_header_id|>", "<|end_header_id|>"),
        template=LLAMA,
    ),
    "gemma": Family(
        eos="<eos>",
        stops=("<end_of_turn>", "<eos>"),
        pad="<pad>",
        bos="<bos>",
        others=("<start_of_turn>",),
        template=GEMMA,
    ),
    "phi3": Family(
        eos="<|endoftext|>",
        stops=("<|end|>", "<|endoftext|>", "<|assistant|>"),
        pad="<|endoftext|>",
        bos="<s>",
        others=("<|user|>", "<|system|>"),
        template=PHI3,
    ),
    "mistral": Family(eos="</s>", stops=("</s>",), pad=None, bos="<s>", others=("[INST]", "[/INST]"), template=MISTRAL),
    "opt": Family(eos="</s>", stops=("</s>",), pad="<pad>", bos="</s>"),
    "gpt2": Family(eos="<|endoftext|>", stops=("<|endoftext|>",), pad=None, bos="<|endoftext|>"),
}


def words() -> Iterator[str]:
    """An endless list of different words."""
    number = 0
    while True:
        number += 1
        rest, word = number, ""
        while rest:
            rest, syllable = divmod(rest, len(SYLLABLES))
            word += SYLLABLES[syllable]
        yield word


def make_tokenizer(family: Family, *, vocabulary: int, adds_bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer for an embedding of ``vocabulary`` rows; any text survives encoding and decoding.

    The ids are the 256 bytes, then whole words with a space before them, then the special tokens, then `UNUSED_ROWS`
    rows without a token. ``adds_bos``: encoding puts the beginning-of-sequence token first.
    """
    ensure_torch_extras()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = family.special_tokens
    count = vocabulary - UNUSED_ROWS - len(special) - 256
    assert count > 0, f"a vocabulary of {vocabulary} has no room for words"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(f"\u0120{word}" for word, _ in zip(words(), range(count), strict=False))]
    ids = {entry: number for number, entry in enumerate(entries)}
    backend = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens(special)
    if adds_bos:
        assert family.bos is not None
        first = (family.bos, backend.token_to_id(family.bos))
        backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{family.bos} $A", pair=f"{family.bos} $A $B", special_tokens=[first]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=family.eos,
        bos_token=family.bos,
        pad_token=family.pad,
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
    )
