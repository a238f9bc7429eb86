"""Small tokenizers and a very small Qwen3 to go with them, of which built-in worlds make their base models."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rlkl.system.compat import ensure_torch_extras

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config

SPECIAL_TOKENS = PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
PAD_ID, EOS_ID = 0, 1
ALPHABET = string.digits + string.ascii_letters + string.punctuation + " \n"
MAX_POSITIONS = 1024


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per printable ASCII character.

    Three special tokens come first: padding (id 0), end of sequence (id 1) and unknown (id 2).

    Encoding adds no special token; decoding joins the characters without spaces.
    """
    ensure_torch_extras()
    from tokenizers import Regex, decoders, pre_tokenizers

    backend = _word_level(ALPHABET)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return _wrapped(backend)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word, from id 3 on, and the same special tokens.

    Text is cut at white space only.

    Encoding adds no special token; decoding joins the words with single spaces.
    """
    ensure_torch_extras()
    from tokenizers import pre_tokenizers

    backend = _word_level(words)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return _wrapped(backend)


def _word_level(entries: Iterable[str]) -> Tokenizer:
    from tokenizers import Tokenizer, models

    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *entries])}
    return Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))


def _wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


CHARACTER_VOCABULARY = len(SPECIAL_TOKENS) + len(ALPHABET)


def small_qwen3_config(*, tied: bool, vocabulary: int = CHARACTER_VOCABULARY) -> Qwen3Config:
    """Return the settings of a model with two layers of width 64, about 160,000 parameters.

    ``vocabulary`` is that of `character_tokenizer` if it is left out.

    ``tied`` shares the embedding with the LM head. Heads are 32 wide, the smallest that vLLM's CPU attention takes.
    Weights start ten times larger than Qwen3's: at this width the usual 0.02 learns several times slower.
    """
    ensure_torch_extras()
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        dtype="float32",
    )
