"""The text of single tokens."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlkl.tracking.records.token_texts import TokenTexts


def tokenizer(vocabulary: dict[str, int], pre_tokenizer: Any, decoder: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


METASPACE = tokenizer({"▁the": 0, "▁cat": 1, "s": 2, "<eos>": 3}, pre_tokenizers.Metaspace(), decoders.Metaspace())
BYTES = tokenizer({"Ġa": 0, "Ã": 1, "©": 2, "<eos>": 3}, pre_tokenizers.ByteLevel(), decoders.ByteLevel())


@pytest.mark.parametrize(
    ("decoder", "ids", "texts"),
    [
        (METASPACE, (0, 1, 2, 3), [" the", " cat", "s", "<eos>"]),
        (BYTES, (0, 1, 2, 3), [" a", "\ufffd", "\ufffd", "<eos>"]),
    ],
)
def test_each_token_has_its_text_as_it_reads_within_a_sentence(decoder: Any, ids: tuple[int, ...], texts: list[str]):
    assert TokenTexts(decoder).of(ids) == texts


def test_a_lone_surrogate_becomes_a_character_that_parquet_holds():
    class Odd:
        def decode(self, ids: list[int]) -> str:
            return "\ud83d" * len(ids)

    assert TokenTexts(Odd()).of([5]) == ["?"]
