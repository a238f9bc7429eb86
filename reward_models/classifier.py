"""A reward model: a Hugging Face model for sequence classification. B texts, T tokens, L labels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_models.settings import (
    check_choice,
    check_column,
    check_number,
    check_optional_number,
    check_text,
    fingerprint_of_files,
    refuse,
    shorten,
    takes,
    text_of,
)
from rlkl.errors import RewardError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rlkl.data.answers import AnswerEncoder

_TEXTS = ("completion", "prompt_completion", "sampled", "chat")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(kw_only=True, eq=False)
class SequenceClassifier:
    """The score that a folder's sequence-classification model gives each text, for a whole batch at once.

    A text's score does not depend on the texts beside it, but for rounding (about 1e-6 of its size in float32, 1e-2 in
    bfloat16). Whatever the tokenizer prefers, texts are sorted by length and padded on the right under an attention
    mask, where neither causal attention nor positions are touched; a model without a padding token is given one that no
    text of the batch ends with, since such models read the score off the last token that is not padding.
    """

    path: str
    """A folder that ``AutoModelForSequenceClassification.from_pretrained`` reads, tokenizer included."""
    text: str = "auto"
    """``completion``; ``prompt_completion`` (one text, then the other, encoded together); ``sampled`` (the tokens of
    the prompt, those of the completion, and the end of the answer, as ``rlkl reward-model`` trains); or ``chat`` (the
    prompt as a user's turn, or as a list of messages, and the completion as the assistant's, in the model's own chat
    template). ``auto``: what the model's config names (``rlkl_text``), else ``prompt_completion``."""
    prompt_column: str | None = None
    """The column to take the prompt from, when the one that the policy saw carries the policy's chat template."""
    label: int | str | None = None
    """The logit that is the score, by number or name. A model with one logit needs none."""
    output: str = "logit"
    """``logit`` or ``probability`` (sigmoid of one logit, softmax over several)."""
    batch_size: int = 16
    max_tokens: int | None = None
    """Longest text; the model's own limit if left out."""
    truncate: str = "never"
    """The end that longer texts lose, ``left`` or ``right``; ``never`` makes them an error."""
    dtype: str = "float32"
    device: str = "auto"
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ..."""
    _loaded: _Loaded | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_text(self, "path", "device")
        check_choice(self, "text", ("auto", *_TEXTS))
        check_choice(self, "output", ("logit", "probability"))
        check_choice(self, "truncate", ("never", "left", "right"))
        check_choice(self, "dtype", _DTYPES)
        check_number(self, "batch_size", low=1, whole=True)
        check_optional_number(self, "max_tokens", low=1, whole=True)
        if self.label is not None and (isinstance(self.label, bool) or not isinstance(self.label, int | str)):
            raise refuse(self, "label", "the number or the name of a label")
        if self.prompt_column is not None:
            check_column(self, "prompt_column")
            if self.text == "completion":
                raise refuse(self, "prompt_column", "nothing, because 'text: completion' reads no prompt")
        self._prompts = self.prompt_column or "prompts"
        self.__signature__ = takes("completions", *([] if self.text == "completion" else [self._prompts]))

    def fingerprint(self) -> str:
        """Hash the model's files, so that another model in the same folder is another reward."""
        return fingerprint_of_files(Path(self.path))

    def setup(self) -> None:
        """Load the model.

        Raises:
            RewardInputError: the folder is no such model, its head is missing, or a setting does not fit it.
        """
        if self._loaded is None:
            self._loaded = _Loaded(self)

    def close(self) -> None:
        """Let go of the model."""
        self._loaded = None

    def __call__(self, **arguments: Any) -> list[float]:
        self.setup()
        assert self._loaded is not None
        completions = [text_of(self, "completions", text) for text in arguments["completions"]]
        prompts = arguments.get(self._prompts, [None] * len(completions))
        ids = [self._loaded.encode(*pair) for pair in zip(prompts, completions, strict=True)]
        return self._loaded.score(ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


class _Loaded:
    """The model and its tokenizer, in memory."""

    def __init__(self, settings: SequenceClassifier) -> None:
        from rlkl.system.compat import ensure_torch_extras

        ensure_torch_extras()
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._settings = settings
        if not Path(settings.path).is_dir():
            raise refuse(settings, "path", "an existing folder", f"There is none at {Path(settings.path).absolute()}")
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.path, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                settings.path,
                dtype=getattr(torch, settings.dtype),
                output_loading_info=True,
                trust_remote_code=False,
            )
            self._model: Any = model.to(device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise refuse(settings, "path", "a folder with a model and its tokenizer", str(error)) from error
        if report["missing_keys"]:
            raise refuse(
                settings,
                "path",
                "a model for sequence classification",
                f"Its weights lack {shorten(', '.join(sorted(report['missing_keys'])))}, so scores would be random",
            )
        self._text = settings.text
        if self._text == "auto":
            self._text = getattr(self._model.config, "rlkl_text", "prompt_completion")
        if self._text == "chat" and not self._tokenizer.chat_template:
            raise refuse(settings, "text", "completion or prompt_completion", "The model has no chat template")
        self._text_config = self._model.config.get_text_config()
        self._label = self._column_of_label()
        self._longest = self._token_limit()
        self._lock = threading.Lock()
        self._answers: AnswerEncoder | None = None

    def encode(self, prompt: Any, completion: str) -> list[int]:
        """Encode one text into token ids, without padding."""
        settings = self._settings
        if self._text == "chat":
            turns = [*self._messages(prompt), {"role": "assistant", "content": completion}]
            text = self._tokenizer.apply_chat_template(turns, tokenize=False)
            ids = self._tokenizer.encode(text, add_special_tokens=False)  # the template has them
        elif self._text == "completion":
            ids = self._tokenizer.encode(completion)
        elif self._text == "sampled":
            ids = self._as_sampled(prompt, completion)
        else:
            ids = self._tokenizer.encode(text_of(settings, settings.prompt_column or "prompts", prompt) + completion)
        if not ids:
            ids = [self._first_known("eos_token_id", "bos_token_id", "pad_token_id")]  # an empty text, scored as one
        if self._longest is None or len(ids) <= self._longest:
            return ids
        if settings.truncate == "never":
            raise RewardError(
                f"SequenceClassifier: a text has {len(ids)} tokens, the model takes {self._longest}; set 'truncate' "
                f"to left or right, or sample fewer tokens. The completion is {shorten(repr(completion))}"
            )
        return ids[-self._longest :] if settings.truncate == "left" else ids[: self._longest]

    def _as_sampled(self, prompt: Any, completion: str) -> list[int]:
        """Return the ids that a policy would see, the end of its answer included, as `rlkl.data` encodes them."""
        from rlkl.data.answers import AnswerEncoder, encode_plain
        from rlkl.data.chat import EncodedPrompt, render

        kwargs = getattr(self._model.config, "rlkl_chat_template_kwargs", {})
        messages = None if isinstance(prompt, str) else self._messages(prompt)
        if messages is None:
            text, ids = prompt, encode_plain(self._tokenizer, prompt)
        else:
            text = render(self._tokenizer, messages, kwargs, generation_prompt=True)
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        encoded = EncodedPrompt(text=text, token_ids=ids, messages=messages)
        self._first_known("eos_token_id")
        self._answers = self._answers or AnswerEncoder(self._tokenizer, kwargs)
        return [*ids, *self._answers.encode_sampled(encoded, completion)]

    def score(self, texts: Sequence[list[int]]) -> list[float]:
        """Score each text; the result is in the order of the texts.

        The longest text comes first, so that memory runs out at once or never.
        """
        import torch

        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        scores = [0.0] * len(texts)
        with torch.inference_mode(), self._lock:
            for start in range(0, len(order), self._settings.batch_size):
                rows = order[start : start + self._settings.batch_size]
                for index, score in zip(rows, self._scores([texts[index] for index in rows]).tolist(), strict=True):
                    scores[index] = score
        return scores

    def _scores(self, texts: Sequence[list[int]]) -> Tensor:
        import torch

        lengths_B = torch.tensor([len(ids) for ids in texts])
        own_padding = self._text_config.pad_token_id
        padding = own_padding if own_padding is not None else _unused({ids[-1] for ids in texts})
        ids_BT = torch.full((len(texts), int(lengths_B.max())), padding)
        for row, ids in enumerate(texts):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
        attention_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
        self._text_config.pad_token_id = padding
        try:
            device = self._model.device
            logits_BL = self._model(input_ids=ids_BT.to(device), attention_mask=attention_BT.to(device)).logits.float()
        finally:
            self._text_config.pad_token_id = own_padding
        return self._output(logits_BL)[:, self._label].cpu()

    def _output(self, logits_BL: torch.Tensor) -> Tensor:
        if self._settings.output == "logit":
            return logits_BL
        return logits_BL.sigmoid() if logits_BL.shape[1] == 1 else logits_BL.softmax(dim=1)

    def _column_of_label(self) -> int:
        labels: dict[int, str] = self._model.config.id2label
        label = self._settings.label
        listed = ", ".join(f"{number} ({name})" for number, name in labels.items())
        if label is None:
            if len(labels) > 1:
                raise refuse(self._settings, "label", f"one of the model's {len(labels)} labels: {listed}")
            return 0
        numbers = {name: number for number, name in labels.items()}
        number = numbers.get(label) if isinstance(label, str) else label
        if number not in labels:
            hint = did_you_mean(label, numbers) if isinstance(label, str) else ""
            raise refuse(self._settings, "label", f"one of the model's labels: {listed}", hint)
        return number

    def _token_limit(self) -> int | None:
        own = getattr(self._text_config, "max_position_embeddings", None)
        asked = self._settings.max_tokens
        if asked is not None and own is not None and asked > own:
            raise refuse(self._settings, "max_tokens", f"at most the model's {own} positions")
        return asked or own

    def _first_known(self, *names: str) -> int:
        for name in names:
            if (token := getattr(self._tokenizer, name)) is not None:
                return token
        raise RewardError(
            f"SequenceClassifier: the tokenizer lacks a special token that the text needs ({', '.join(names)})"
        )

    def _messages(self, prompt: Any) -> list[dict[str, Any]]:
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        turns = list(prompt) if isinstance(prompt, list | tuple) else []
        if not turns or not all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns):
            raise RewardError(
                f"SequenceClassifier: a prompt is {shorten(repr(prompt))}; expected text, or a list of messages with "
                "'role' and 'content'"
            )
        return turns


def _unused(taken: set[int]) -> int:
    """Return the smallest token id that is not among those taken."""
    return next(number for number in range(len(taken) + 1) if number not in taken)
