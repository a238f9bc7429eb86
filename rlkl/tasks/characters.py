"""A character tokenizer and a very small Qwen3 to go with it, of which built-in worlds make their base models."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from rlkl.compat import ensure_torch_extras

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config

SPECIAL_TOKENS = PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
PAD_ID, EOS_ID = 0, 1
ALPHABET = string.digits + string.ascii_letters + string.punctuation + " \n"
MAX_POSITIONS = 1024


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, plus padding (id 0), end of sequence (id 1) and unknown (id 2).

    Encoding adds no special token; decoding joins the characters without spaces.
    """
    ensure_torch_extras()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def small_qwen3_config(*, tied: bool) -> Qwen3Config:
    """Two layers of width 64 over the vocabulary of `character_tokenizer`, about 160,000 parameters.

    ``tied`` shares the embedding with the LM head. Heads are 32 wide, the smallest that vLLM's CPU attention takes.
    Weights start ten times larger than Qwen3's: at this width the usual 0.02 learns several times slower.
    """
    ensure_torch_extras()
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(SPECIAL_TOKENS) + len(ALPHABET),
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
