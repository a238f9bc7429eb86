"""`rlkl replay-states`: write the samples, and the classes of their hidden states, for the term ``replay``."""

from __future__ import annotations

import sys
from argparse import Namespace

from rlkl.errors import DataError, InputError
from rlkl.recipe import DataSection
from rlkl.seeds import derive_seed


def run(options: Namespace) -> int:
    """Write the folder, print what is in it, and return 0. All input is checked before the model is loaded."""
    for name, least in (("samples", 1), ("tokens", 2), ("micro_batch_tokens", 1)):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {getattr(options, name)}: expected a whole number of at least {least}")
    if options.output.is_file():
        raise InputError(f"--output {options.output} is a file; name a folder")
    texts = _texts(options)

    import torch

    from rlkl.learner.device import learner_device
    from rlkl.learner.replay_states import compute_states, tokenizer_fingerprint
    from rlkl.models.fingerprint import model_fingerprint
    from rlkl.models.language_model import LanguageModel
    from rlkl.models.resolve import locate_model
    from rlkl.recipe.resolved_model import ModelName, check_weights, read_model
    from rlkl.rollout.settings import load_tokenizer
    from rlkl.updates.terms.replay.states import StatesHeader, write_states

    name = ModelName(key="MODEL", value=options.model)
    resolved = read_model(locate_model(name), name)
    check_weights(resolved.path, name)
    tokenizer = load_tokenizer(resolved.path, resolved.vocabulary)
    samples = _samples(texts, tokenizer, options)
    device = learner_device(options.device)
    model = LanguageModel(resolved.path, dtype=getattr(torch, options.dtype), device=device, packed=True)
    states = compute_states(model, samples, micro_batch_tokens=options.micro_batch_tokens, progress=_progress)
    header = StatesHeader(
        model=options.model,
        model_fingerprint=model_fingerprint(resolved.path, commit=resolved.commit),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        dtype=options.dtype,
        hidden_size=model.hidden_size,
        data=options.data,
        samples=states.samples,
        tokens=int(states.lengths_S.sum()),
    )
    write_states(options.output, states, header)
    sys.stdout.write(
        f"{header.samples} samples of {header.tokens} tokens of {options.data}, states of {options.model} in "
        f"{options.dtype}: {options.output}\n"
    )
    return 0


def _texts(options: Namespace) -> list[str]:
    """Read the texts of the column; raise `DataError` if there is none."""
    from rlkl.data.sources import read_rows

    rows = read_rows(DataSection(source=options.data, split=options.split))
    if options.column not in rows.columns:
        raise DataError(
            f"DATA = '{options.data}' has no column '{options.column}'; it has {', '.join(sorted(rows.columns))}. Name "
            "the column of the texts with --column"
        )
    found = [row.get(options.column) for _, row in rows.numbered if isinstance(row, dict)]
    return [text for text in found if isinstance(text, str) and text.strip()]


def _samples(texts: list[str], tokenizer: object, options: Namespace) -> list[list[int]]:
    """Choose texts at random, and return the first tokens of each; raise `DataError` if none has two tokens."""
    from random import Random

    from rlkl.data.answers import encode_plain

    order = list(range(len(texts)))
    Random(derive_seed(options.seed, "replay-states")).shuffle(order)
    samples: list[list[int]] = []
    for number in order:
        ids = list(encode_plain(tokenizer, texts[number]))[: options.tokens]  # pyright: ignore[reportArgumentType]
        if len(ids) >= 2:
            samples.append(ids)
        if len(samples) == options.samples:
            break
    if not samples:
        raise DataError(
            f"DATA = '{options.data}' has no text of two tokens or more in the column '{options.column}', so there is "
            "nothing to replay"
        )
    return samples


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 50 == 0 or done == total):
        sys.stderr.write(f"\r{done} of {total} passes over samples" + ("\n" if done == total else ""))
