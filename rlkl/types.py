"""Values that are passed between data, rollout workers, rewards and updates. Plain Python: no torch, no ray.

A worked example, one prompt sampled twice::

    prompt = Prompt(id="row-7", text="2+3=", token_ids=(5, 13, 6, 14), columns={"answer": "5"})
    right = Completion(token_ids=(8, 1), logprobs=(-0.7, -0.1), finish_reason="stop", text="5")
    wrong = Completion(token_ids=(9, 1), logprobs=(-0.9, -0.2), finish_reason="stop", text="6")
    group = RolloutGroup(prompt=prompt, rollouts=(
        Rollout(sample_index=0, completion=right, reward=1.0, components={"gold": 1.0}, weights_version=0),
        Rollout(sample_index=1, completion=wrong, reward=0.0, components={"gold": 0.0}, weights_version=0)))
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]

Role = Literal["main", "replay", "view"]
"""The purpose of a sequence. main: the rule's own loss trains on it. replay: only terms for replay train on it. view: a
response of the role main after another wording of its prompt; only terms that compare the two train on it."""


POLICY_TOKEN, TEACHER_TOKEN, REGENERATED_TOKEN = 0, 1, 2
"""Origins of a token (`Completion.provenance`): sampled, chosen by a teacher, sampled after such a choice."""

SHARED_TOKEN_COLUMNS = ("advantages", "policy_logprobs", "entropy", "reference_logprobs")
"""Numbers a token in the sample files of every rule. Log-probs and entropy are those of the start of the step."""


def step_number(step: int) -> int:
    """Return the number of the training step with index ``step``.

    The program counts steps from 0: an index. People, files and metrics get numbers from 1. The record of the step
    with index 9 has ``"step": 10``, and its samples are in ``step_000010.parquet``. Before a step, as many steps are
    finished as its index; after it, as many as its number.
    """
    return step + 1


def step_index(number: int) -> int:
    """Return the index of the training step with number ``number``; the inverse of `step_number`."""
    return number - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A picture of a prompt, known to decode. ``data`` is an encoded file (PNG, JPEG, ...) whose pixels are RGB."""

    data: bytes
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    key: str
    """Hash of ``data``: the same picture in two rows has the same key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row of the data source, already tokenized.

    ``id`` is stable across runs (it seeds the sampling); ``text`` is the text of ``token_ids``, chat template
    included; ``columns`` holds every column of the row, for rewards. ``answers``: in a preference data set, the token
    ids of the chosen and of the rejected answer, turn end or end of sequence included. ``images``: its pictures in the
    order in which ``token_ids`` mentions them; each has as many placeholder ids as the model sees tokens of it.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    answers: tuple[tuple[int, ...], ...] = ()
    images: tuple[Image, ...] = ()
    wordings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The token ids of other wordings of the prompt, by their columns, if the recipe has a term that reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A completion that an engine sampled for one prompt, or an answer from a data set.

    ``token_ids`` are the sampled ids, unchanged, with the end-of-sequence id if one was sampled. ``logprobs`` are the
    sampler's log-probabilities of exactly these ids (nats, at the sampling temperature, full vocabulary); None for an
    answer from a data set.
    ``text`` is their decoding without special tokens, without the turn end, and up to the first stop text.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    text: str = ""
    weights_version: int | None = None
    """Version of the weights that sampled its first token; None for an answer from a data set."""
    versions: tuple[tuple[int, int], ...] = ()
    """Versions of the weights that sampled it, each with the number of its first token: ((3, 0), (4, 17)) if version 4
    arrived after 17 tokens. Empty if all are of ``weights_version``."""
    corrections: tuple[tuple[int, float], ...] = ()
    """Tokens that a teacher chose in the policy's place (`rlkl.training.correcting`): the number of each, and the KL
    between policy and teacher there (nats). Their log-probs are the learner's; no sampler drew them."""

    def __post_init__(self) -> None:
        if self.logprobs is not None:
            assert len(self.token_ids) == len(self.logprobs), "one log-probability per sampled token"

    @property
    def provenance(self) -> tuple[int, ...]:
        """The origin of each token; empty if the policy sampled all in one go."""
        if not self.corrections:
            return ()
        first, chosen = self.corrections[0][0], {number for number, _ in self.corrections}
        after = range(first, len(self.token_ids))
        return (POLICY_TOKEN,) * first + tuple(TEACHER_TOKEN if t in chosen else REGENERATED_TOKEN for t in after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A scored completion: ``reward`` is the weighted sum that updates see, ``components`` the raw rewards by name.

    A reward of NaN means that there is none: a reward function failed, or all abstained. Such a rollout is recorded,
    but rules never see it.
    """

    sample_index: int
    completion: Completion
    reward: float
    components: Mapping[str, float]
    weights_version: int
    draw: int = 0
    """Number of the draw of its prompt, over the whole run; all rollouts of a group have the same."""
    raw_reward: float | None = None
    """The weighted sum before normalisation; None if there is no normalisation."""
    monitors: Mapping[str, float] = field(default_factory=dict)
    """Rewards that are recorded but not optimised, by name."""
    token_rewards: tuple[float, ...] = ()
    """The part of ``reward`` that was given to single tokens; empty if none was."""
    tags: tuple[str, ...] = ()
    """Tags from reward functions."""
    failed: tuple[str, ...] = ()
    """The reward functions that failed on it."""

    @property
    def token_versions(self) -> tuple[int, ...]:
        """The version of the weights that sampled each token of the completion."""
        spans = self.completion.versions or ((self.weights_version, 0),)
        ends = [*(start for _, start in spans[1:]), len(self.completion.token_ids)]
        return tuple(version for (version, start), end in zip(spans, ends, strict=True) for _ in range(start, end))

    @property
    def scored(self) -> bool:
        """Whether it has a reward."""
        return not math.isnan(self.reward)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt in one step."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    def scored(self) -> RolloutGroup:
        """Return the group without the rollouts that have no reward."""
        return RolloutGroup(prompt=self.prompt, rollouts=tuple(rollout for rollout in self.rollouts if rollout.scored))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A sequence whose log-probs engine and learner both compute, to prove that they hold the same weights."""

    token_ids: tuple[int, ...]
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One sequence to train on. ``group`` numbers its prompt within the step, from 0."""

    prompt: Prompt
    rollout: Rollout
    group: int
    role: Role = "main"
    weight: float = 1.0
    """Factor on the sequence's loss: an importance weight, or a weight of distributionally robust training."""
    list: int | None = None
    """Number of the list of compared sequences within the step that this one belongs to; None: it belongs to none."""
    rank: int = 0
    """Place in its list: 0 is the preferred sequence."""

    def __new__(cls, **fields: Any) -> Example:
        """Raise TypeError for fields of an earlier version, with their new names."""
        if old := sorted(fields.keys() & {"pair", "chosen"}):
            raise TypeError(
                f"Example has no field {' or '.join(old)}: use list (the pair's number) and rank (0 for the chosen "
                "sequence, 1 for the rejected one)"
            )
        return object.__new__(cls)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherView:
    """A sampled completion, compared with a teacher. One entry a token."""

    nats: tuple[float, ...]
    """The KL between the next-token distributions of policy and teacher."""
    token_ids: tuple[int, ...]
    """The teacher's most probable token."""
    logprobs: tuple[float, ...]
    """The policy's log-prob of that token (nats, at the sampling temperature)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A step's rollouts, and those of them that the rule trains on."""

    groups: Sequence[RolloutGroup]
    examples: Sequence[Example]
    left_out: Sequence[Example]
    """The rollouts that are not trained on; they count in the KL to the reference."""
    metrics: Mapping[str, float]
    position: int = 0
    """Prompts drawn from the data, up to the last one of this step."""

    @property
    def rollout_count(self) -> int:
        """Number of rollouts."""
        return sum(len(group.rollouts) for group in self.groups)

    @property
    def token_count(self) -> int:
        """Number of sampled tokens."""
        return sum(len(rollout.completion.token_ids) for group in self.groups for rollout in group.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The result of one training step."""

    metrics: Mapping[str, float]
    token_columns: Mapping[str, Sequence[tuple[float, ...]]] = field(default_factory=dict)
    """Numbers per token for the sample files, by column: one entry an example."""
    pictures: Mapping[str, Mapping[int, Sequence[Image]]] = field(default_factory=dict)
    """Pictures that the rule changed, for the sample files, by view and group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    """One metric. ``key`` may hold placeholders: ``loss/<term>`` matches ``loss/policy``, ``loss/kl``, ..."""

    key: str
    unit: str
    formula: str
    bad: str
    """A description of bad values, and of their usual cause."""
    timing: bool = False
    """Measured on a clock: differs between two otherwise identical runs."""
    higher_is_better: bool = False
    """A reward, a monitor, or a score of an evaluation."""

    def matches(self, key: str) -> bool:
        parts = re.split(r"<\w+>", self.key)
        return re.fullmatch(r"[^/\s]+".join(map(re.escape, parts)), key) is not None
