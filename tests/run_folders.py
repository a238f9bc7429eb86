"""Run folders as training leaves them, written in milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.rewards.scoring.failures import FailedScore, FailureLog
from rlkl.tracking.records.reading import sample_path, write_samples
from rlkl.tracking.records.token_texts import TokenTexts
from rlkl.types import SHARED_TOKEN_COLUMNS, Completion, Prompt, Rollout, RolloutGroup, step_index

GROUP = 4
"""Samples of a prompt."""


class Words:
    """A tokenizer whose token n is the n-th of some words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._words[token] for token in ids)


def write_run(folder: Path, *overrides: str, steps: int = 12, recipe: str = "quickstart", height: float = 1.0) -> Path:
    """Write recipe and metrics: a reward that rises to about ``height``, and a KL."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe(recipe, *overrides)))
    seed = int(next((o.partition("=")[2] for o in overrides if o.startswith("seed=")), "0"))
    write_metrics(folder, [record_of(step, seed, height) for step in range(1, steps + 1)])
    return folder


def write_metrics(folder: Path, records: Sequence[Mapping[str, float]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(dict(record)) + "\n" for record in records))


def record_of(step: int, seed: int, height: float) -> dict[str, float]:
    noise = math.sin(12.9 * step + 78.2 * seed) * 0.04
    return {
        "step": step,
        "reward/mean": height * (1 - math.exp(-step / 20)) + noise,
        "kl/policy_to_reference": 0.002 * step * step * (1 + noise),
        "entropy/policy": 1.0 / step + abs(noise),
        "loss/policy": noise,
        "update/clip_fraction_low": abs(noise),
        "update/clip_fraction_high": 0.0,
        "time/step_s": 1.5,
    }


def write_sample_file(
    folder: Path, step: int, texts: Sequence[str], *, shared: bool = True, rewards: Sequence[float] | None = None
) -> None:
    """Write a sample file with one group a `GROUP` of ``texts``, three tokens each; ``shared``: with token columns."""
    words, groups = [*texts, " the", "<eos>"], []
    for number in range(0, len(texts), GROUP):
        prompt = Prompt(id=f"p{number // GROUP}", text=f"Question {number // GROUP}?", token_ids=(0,))
        rollouts = tuple(_rollout(number + at, len(texts), texts[number + at], rewards) for at in range(GROUP))
        groups.append(RolloutGroup(prompt=prompt, rollouts=rollouts))
    columns: dict[str, Any] = {}
    if shared:
        columns = {
            name: [[0.5 * scale - at * 0.1, -0.25 * scale, 0.0] for at in range(len(texts))]
            for scale, name in enumerate(SHARED_TOKEN_COLUMNS, start=1)
        }
        columns["a_mask"] = [[1.0, 0.0, 0.5]] * len(texts)
    tokens = TokenTexts(Words(words)) if shared else None
    write_samples(sample_path(folder, step), step, groups, columns, tokens=tokens)


def _rollout(number: int, texts: int, text: str, rewards: Sequence[float] | None) -> Rollout:
    ids = (number, texts, texts + 1)
    return Rollout(
        sample_index=number % GROUP,
        completion=Completion(token_ids=ids, logprobs=(-0.5, -0.2, -0.1), finish_reason="stop", text=text),
        reward=float(number % 2) if rewards is None else rewards[number],
        components={"gold": float(number % 2)},
        weights_version=0,
    )


def write_failures(folder: Path, step: int, count: int) -> None:
    failure = FailedScore(
        reward="gold",
        kind="timeout",
        error="took longer than 1 s",
        on_error="drop_sample",
        prompt_id="p0",
        draw=0,
        sample_index=0,
        prompt="Question 0?",
        completion="<b>bold</b>",
        traceback="Traceback: none",
    )
    FailureLog(folder, first_step=step_index(step)).write(step_index(step), [failure] * count)


def write_suspects(folder: Path, step: int) -> None:
    line = {
        "signal": "gap/gold",
        "suspicion": 2.5,
        "prompt_id": "p0",
        "prompt": "Question 0?",
        "completion": "Trust me.",
    }
    line |= {"tokens": 3, "finish_reason": "stop", "reward": 3.0, "monitor/gold": -1.0, "sample_index": 1}
    (folder / "suspicious").mkdir(exist_ok=True)
    (folder / "suspicious" / f"step_{step:06d}.jsonl").write_text(json.dumps(line) + "\n")
