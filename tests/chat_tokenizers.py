"""Byte-level tokenizers with chat templates that end turns as those of well-known models do, made in milliseconds."""

from __future__ import annotations

from typing import Any

from rlkl.system.compat import ensure_torch_extras

_GEMMA = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
_QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>\n{{ call.function.name }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)

FAMILIES = {
    "gemma": (_GEMMA, "<eos>", ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "phi3": (_PHI3, "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "qwen3": (_QWEN3, "<|endoftext|>", ("<|im_start|>", "<|im_end|>")),
    "mistral": (_MISTRAL, "</s>", ("<s>",)),
}
"""Template, end of sequence and other control tokens of each family."""
TURN_ENDS = {"gemma": "<end_of_turn>", "phi3": "<|end|>", "qwen3": "<|im_end|>", "mistral": "</s>"}
_CORPUS = ["what is two plus three? the answer is five.", "name a colour: blue, red or green.\n\nthank you"] * 4


def chat_tokenizer(family: str, *, control_is_special: bool = True) -> Any:
    """Return a tokenizer of about 350 tokens with the family's chat template and control tokens.

    ``control_is_special``: whether decoding can leave the control tokens out; some fine-tuned models add them as
    ordinary tokens.
    """
    ensure_torch_extras()
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    template, eos, control = FAMILIES[family]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=["<pad>", eos])
    backend.train_from_iterator(_CORPUS, trainer)
    bos = next((token for token in control if token in ("<bos>", "<s>")), None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token="<pad>", bos_token=bos)
    for token in control:
        added: Any = AddedToken(token, special=control_is_special, normalized=False)
        tokenizer.add_tokens([added], special_tokens=control_is_special)
    for token in ("<think>", "</think>"):
        added = AddedToken(token, special=False, normalized=False)
        tokenizer.add_tokens([added])
    tokenizer.chat_template = template
    return tokenizer
