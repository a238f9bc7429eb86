"""The samples of a step that show best what a signal of `hacking_signals` has found."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkl.tracking.hacking.signals import Record, first, spread_key
from rlkl.types import Prompt, Rollout, RolloutGroup, step_index

NEARBY = 16
"""A token repeats one that is among so many before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A sample, and how suspicious it is; the larger the more."""

    prompt: Prompt
    rollout: Rollout
    suspicion: float


def repetition(token_ids: Sequence[int]) -> float:
    """Return the share of tokens that are among the `NEARBY` tokens before them; 0 for fewer than two.

    >>> repetition([7, 8, 7, 7])
    0.5
    """
    if len(token_ids) < 2:
        return 0.0
    repeated = sum(token in token_ids[max(at - NEARBY, 0) : at] for at, token in enumerate(token_ids))
    return repeated / len(token_ids)


def reward_of(rollout: Rollout) -> float:
    """Return the reward that is optimised, before any normalisation."""
    return rollout.reward if rollout.raw_reward is None else rollout.raw_reward


def most_suspicious(
    signal: str, groups: Sequence[RolloutGroup], records: Sequence[Record], monitors: Mapping[str, str], kept: int
) -> list[Suspect]:
    """Return the ``kept`` samples that show best what ``signal`` has found, the most suspicious first."""
    kind, _, name = signal.partition("/")
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    rollouts = [rollout for _, rollout in pairs]
    if kind == "similarity":
        values = _shared_words(groups)
    elif kind == "empty":
        values = [float(not rollout.completion.text) for rollout in rollouts]
    elif kind == "length":
        values = _length_change(rollouts, records)
    elif kind == "repetition":
        values = [repetition(rollout.completion.token_ids) for rollout in rollouts]
    elif kind in ("gap", "fall"):
        values = _overrated(rollouts, records, name, monitors[name])
    else:
        values = [reward_of(rollout) for rollout in rollouts]
    suspects = [
        Suspect(prompt=prompt, rollout=rollout, suspicion=value)
        for (prompt, rollout), value in zip(pairs, values, strict=True)
    ]
    suspects = [suspect for suspect in suspects if suspect.suspicion == suspect.suspicion]  # NaN: nobody scored it
    return sorted(suspects, key=lambda suspect: -suspect.suspicion)[:kept]


def monitor_score(rollout: Rollout, name: str) -> float:
    """Return the score of a monitor, or of a reward of weight 0; NaN if it abstained."""
    return rollout.monitors.get(name, rollout.components.get(name, float("nan")))


def write_suspects(path: Path, suspects: Mapping[str, Sequence[Suspect]]) -> None:
    """Write one JSON object a line, signal by signal. Numbers that JSON does not know, such as NaN, become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"signal": signal, **_described(suspect)}, allow_nan=False)
        for signal, found in suspects.items()
        for suspect in found
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def suspects_path(run_dir: Path, finished: int) -> Path:
    """Return the file with the suspicious samples of a step, by the number of finished steps."""
    return run_dir / "suspicious" / f"step_{finished:06d}.jsonl"


def drop_later_suspects(run_dir: Path, first_step: int) -> None:
    """Remove the files of steps that a run resumed at step index ``first_step`` will do again."""
    for path in (run_dir / "suspicious").glob("step_*.jsonl"):
        if step_index(int(path.stem.removeprefix("step_"))) >= first_step:
            path.unlink()


def _described(suspect: Suspect) -> dict[str, object]:
    rollout = suspect.rollout
    fields = {
        "suspicion": suspect.suspicion,
        "prompt_id": suspect.prompt.id,
        "prompt": suspect.prompt.text,
        "completion": rollout.completion.text,
        "tokens": len(rollout.completion.token_ids),
        "finish_reason": rollout.completion.finish_reason,
        "reward": reward_of(rollout),
        **{f"reward/{name}": value for name, value in rollout.components.items()},
        **{f"monitor/{name}": value for name, value in rollout.monitors.items()},
        "sample_index": rollout.sample_index,
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def _shared_words(groups: Sequence[RolloutGroup]) -> list[float]:
    """Return for each sample the share of other prompts that answer with its words, mean over its distinct words."""
    of_prompt: dict[str, set[str]] = {}
    for group in groups:
        words = {word for rollout in group.rollouts for word in rollout.completion.text.lower().split()}
        of_prompt[group.prompt.id] = of_prompt.get(group.prompt.id, set()) | words
    prompts_with = Counter(word for words in of_prompt.values() for word in words)
    others = max(len(of_prompt) - 1, 1)

    def shared(text: str) -> float:
        words = set(text.lower().split())
        return sum(prompts_with[word] - 1 for word in words) / others / len(words) if words else 0.0

    return [shared(rollout.completion.text) for group in groups for rollout in group.rollouts]


def _length_change(rollouts: Sequence[Rollout], records: Sequence[Record]) -> list[float]:
    """Return the tokens beyond the mean of the start, or short of it, whichever way the step's mean has gone."""
    usual = first(records, "rollout/length_mean") or 0.0
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    sign = 1 if sum(lengths) >= usual * len(lengths) else -1
    return [sign * (length - usual) for length in lengths]


def _overrated(rollouts: Sequence[Rollout], records: Sequence[Record], name: str, key: str) -> list[float]:
    """Return how far the reward rates a sample above the monitor, in standard deviations at the start."""
    values = []
    for rollout in rollouts:
        reward = _standardised(reward_of(rollout), records, "reward", "reward/mean")
        values.append(reward - _standardised(monitor_score(rollout, name), records, name, key))
    return values


def _standardised(value: float, records: Sequence[Record], name: str, key: str) -> float:
    mean, spread = first(records, key), first(records, spread_key(name))
    return float("nan") if mean is None or not spread else (value - mean) / spread
