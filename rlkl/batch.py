"""The tensors that an update sees.

Shapes: B sequences, T tokens (prompt and completion, right-padded), G group members, V vocabulary.
A quantity of token ``t`` is at position ``t``: ``signals[POLICY_LOGPROBS][b, t]`` is the log-probability of
``token_ids_BT[b, t]`` given everything before it. Position 0 is never trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor

from rlkl.signals import Signal, Signals
from rlkl.types import TEACHER_TOKEN, Role

__all__ = ["ROLES", "Batch", "Denominators", "ImageInputs", "LossOutput", "Signal", "Signals"]

ROLES: tuple[Role, ...] = get_args(Role)
"""Roles by the number that `Batch.role_B` holds."""


_RENAMED = {
    "pair_B": "list_B (-1 for none)",
    "chosen_B": "rank_B (0: preferred)",
    "corrupted_B": "pictured_B",
    "corrupted_images": "views",
}
"""Fields of `Batch` in an earlier version -> what to set instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """Counts over all sequences of one role in one optimizer step, taken before any micro-batch runs.

    A loss divides by these, never by the counts of its own micro-batch, so the gradient does not depend on how the step
    is cut. The batch's own denominators are those of the role ``main``; `of` gives another role's.
    """

    sequences: int
    """Sequences with at least one response token."""
    tokens: int
    """Response tokens."""
    stopped: int = 0
    """Sequences whose last response token is an end-of-sequence token: they were not truncated."""
    lists: int = 1
    """Lists of compared sequences (pairs)."""
    pictured_sequences: int = 1
    """Sequences with a picture and at least one response token."""
    pictured_tokens: int = 1
    """Response tokens of sequences with a picture."""
    completion_limit: int
    """``rollout.max_new_tokens``: the constant that Dr. GRPO divides by instead of each sequence's length."""
    others: Mapping[Role, Denominators] = field(default_factory=dict)
    """Counts of the other roles, if the step has sequences of them."""

    @property
    def pairs(self) -> int:
        """The number of lists, by the name that rules written for an earlier version use."""
        return self.lists

    def of(self, role: Role) -> Denominators:
        """Return the counts of one role; all 1 if the step has no sequence of it."""
        if role == "main":
            return self
        nothing = Denominators(sequences=1, tokens=1, completion_limit=self.completion_limit)
        return self.others.get(role, nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInputs:
    """The pictures of some sequences as the model's vision tower takes them, each different picture once.

    P patches, D numbers a patch, I pictures.
    """

    patches_PD: Tensor
    """float32: the patches of all pictures, one picture after the other, as the model's image processor cuts them."""
    grids_I3: Tensor
    """int64: time, height and width of each picture, in patches."""
    images_B: tuple[tuple[int, ...], ...]
    """For each sequence the numbers of its pictures, in the order of its placeholder tokens."""

    def rows(self, rows: Iterable[int]) -> ImageInputs | None:
        """Return the pictures of some sequences, numbered from 0; None if they have none."""
        chosen = [self.images_B[row] for row in rows]
        kept = sorted({image for images in chosen for image in images})
        if not kept:
            return None
        number_of = {image: number for number, image in enumerate(kept)}
        patches = self.patches_PD.split(self.grids_I3.prod(dim=1).tolist())
        return ImageInputs(
            patches_PD=torch.cat([patches[image] for image in kept]),
            grids_I3=self.grids_I3[kept],
            images_B=tuple(tuple(number_of[image] for image in images) for images in chosen),
        )

    def to(self, device: torch.device) -> ImageInputs:
        """Return the pictures on another device."""
        return replace(self, patches_PD=self.patches_PD.to(device), grids_I3=self.grids_I3.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences to train on. See the module docstring for shapes and alignment."""

    token_ids_BT: Tensor
    """int64."""
    attention_BT: Tensor
    """bool: a real token, not padding."""
    response_BT: Tensor
    """bool: response token to train on (end-of-sequence included)."""
    rollout_logprobs_BT: Tensor
    """float32: the sampler's log-probabilities, zero outside the response and for stored answers."""
    rewards_B: Tensor
    """float32: weighted sum of the rewards."""
    group_B: Tensor
    """int64: number of the sequence's prompt within the step."""
    truncated_B: Tensor
    """bool: generation ended at ``max_new_tokens``, not at an end-of-sequence token."""
    advantages_BT: Tensor
    """float32: filled by `PolicyUpdate.credit`, zero before."""
    returns_BT: Tensor
    """float32: targets of a value head, filled by `PolicyUpdate.credit`, zero before."""
    role_B: Tensor
    """int64: index of the sequence's role in `ROLES`."""
    weight_B: Tensor
    """float32: factor on the sequence's loss."""
    list_B: Tensor
    """int64: number of the list of compared sequences that the sequence belongs to, -1 for none."""
    rank_B: Tensor
    """int64: place in its list; 0 is the preferred sequence."""
    pictured_B: Tensor
    """bool: the sequence has a picture, so signals of the rule's views are defined for it."""
    progress: float
    """Fraction of the run's steps that are finished, in [0, 1); used for annealing."""
    denominators: Denominators
    signals: Signals = field(default_factory=lambda: Signals({}))
    """Frozen signals, filled once per batch."""
    token_rewards_BT: Tensor | None = None
    """float32: the part of ``rewards_B`` that single response tokens earned, at those tokens; None if none did."""
    provenance_BT: Tensor | None = None
    """int64: the origin of each response token (`Completion.provenance`); None if the policy sampled all of them."""
    images: ImageInputs | None = None
    """The sequences' pictures; None where none has any."""
    views: Mapping[str, ImageInputs] = field(default_factory=dict)
    """Copies of the pictures that the rule changed, by the name of the view (`PolicyUpdate.views`)."""

    def __new__(cls, **fields: Any) -> Batch:
        """Raise TypeError for fields of an earlier version, with their new names."""
        if old := sorted(fields.keys() & _RENAMED.keys()):
            raise TypeError("; ".join(f"Batch has no field {name}: set {_RENAMED[name]}" for name in old))
        return object.__new__(cls)

    @property
    def size(self) -> int:
        """Number of sequences."""
        return self.token_ids_BT.shape[0]

    @property
    def uncorrected_BT(self) -> Tensor:
        """bool: the response tokens that no teacher chose in the policy's place."""
        if self.provenance_BT is None:
            return self.response_BT
        return self.response_BT & (self.provenance_BT != TEACHER_TOKEN)

    @property
    def sharing_B(self) -> Tensor:
        """int64: rows of equal number may share their first tokens: one group, the same pictures."""
        if self.images is None:
            return self.group_B
        numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        seen = zip(self.group_B.tolist(), self.images.images_B, strict=True)
        found = [numbers.setdefault(one, len(numbers)) for one in seen]
        return torch.tensor(found, device=self.group_B.device)

    @property
    def corrupted_B(self) -> Tensor:
        """`pictured_B`, by the name that rules written for an earlier version use."""
        return self.pictured_B

    @property
    def pair_B(self) -> Tensor:
        """`list_B`, by the name that rules written for an earlier version use."""
        return self.list_B

    @property
    def chosen_B(self) -> Tensor:
        """bool: the preferred sequence of its list."""
        return (self.list_B >= 0) & (self.rank_B == 0)

    def rows(self, rows_B: Tensor) -> Batch:
        """Return some sequences, padded only as far as the longest of them; the denominators stay."""
        length = int(self.attention_BT[rows_B].sum(dim=1).max())
        cut = {name: x[rows_B, :length] if name.endswith("_BT") else x[rows_B] for name, x in self._tensors().items()}
        return replace(
            self,
            **cut,
            signals=self.signals.rows(rows_B, length),
            images=self.images.rows(rows_B.tolist()) if self.images else None,
            views=self._views(lambda images: images.rows(rows_B.tolist())),
        )

    def of_role(self, role: Role) -> Tensor:
        """Return the row numbers of one role's sequences."""
        return (self.role_B == ROLES.index(role)).nonzero()[:, 0]

    def with_rows(self, rows_B: Tensor, part: Batch) -> Batch:
        """Return this batch with the tensors of ``part``, which `rows` made of it, written back into its rows."""
        changed = self._tensors()
        for name, x in part._tensors().items():
            whole = changed[name].clone()
            if name.endswith("_BT"):
                whole[rows_B, : x.shape[1]] = x
            else:
                whole[rows_B] = x
            changed[name] = whole
        return replace(self, **changed)

    def only(self, role: Role) -> Batch:
        """Return the batch with the responses of all other roles masked out, and with this role's denominators."""
        if role == "main" and not self.denominators.others:
            return self
        mine_B1 = (self.role_B == ROLES.index(role)).unsqueeze(1)
        return replace(self, response_BT=self.response_BT & mine_B1, denominators=self.denominators.of(role))

    def to(self, device: torch.device) -> Batch:
        """Return this batch on another device."""
        moved = {name: x.to(device, non_blocking=True) for name, x in self._tensors().items()}
        return replace(
            self,
            **moved,
            signals=self.signals.to(device),
            images=self.images.to(device) if self.images else None,
            views=self._views(lambda images: images.to(device)),
        )

    def recounted(self) -> Batch:
        """Return this batch with denominators counted over exactly its own sequences (the start of a step)."""
        counts: dict[Role, Denominators] = {role: self._count(number) for number, role in enumerate(ROLES)}
        others = {role: count for role, count in counts.items() if role != "main" and self._has(role)}
        return replace(self, denominators=replace(counts["main"], others=others))

    def _views(self, change: Callable[[ImageInputs], ImageInputs | None]) -> dict[str, ImageInputs]:
        changed = {name: change(images) for name, images in self.views.items()}
        return {name: images for name, images in changed.items() if images is not None}

    def _has(self, role: Role) -> bool:
        return bool((self.role_B == ROLES.index(role)).any())

    def _count(self, role: int) -> Denominators:
        mine_B = self.role_B == role
        lengths_B = self.response_BT.sum(dim=1) * mine_B
        pictured_lengths_B = lengths_B[self.pictured_B]
        return Denominators(
            sequences=max(int((lengths_B > 0).sum()), 1),
            tokens=max(int(lengths_B.sum()), 1),
            stopped=int(((lengths_B > 0) & ~self.truncated_B).sum()),
            lists=max(int((self.chosen_B & mine_B).sum()), 1),
            pictured_sequences=max(int((pictured_lengths_B > 0).sum()), 1),
            pictured_tokens=max(int(pictured_lengths_B.sum()), 1),
            completion_limit=self.denominators.completion_limit,
        )

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors with a row a sequence, by field name; the suffix names their dimensions."""
        named = ((name, getattr(self, name)) for name in self.__slots__ if name.endswith(("_B", "_BT")))
        return {name: value for name, value in named if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The loss of one micro-batch: sums divided by the step's denominators, so that micro-batches add up."""

    loss: Tensor
    """Scalar, differentiable: what the learner back-propagates."""
    terms: Mapping[str, Tensor]
    """Detached parts of the loss, logged as ``loss/<term>``."""
    metrics: Mapping[str, Tensor]
    """Detached scalars, logged under their own key (``update/clip_fraction_low``, ...)."""
