"""Recipe sections for rewards: one reward, and the sum of all."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rlkl.schema import Section

Normalize = Literal["none", "group", "batch"]

Place = Literal["inline", "thread", "process", "actor"]

DEADLINE_S = 60.0
"""Limit for one call in mode ``process`` and ``actor`` if the recipe gives none."""

_MODES_WITH = {
    "workers": ("thread", "process", "actor", "auto"),
    "timeout_s": ("thread", "process", "actor", "auto"),
    "memory_mb": ("process", "auto"),
    "cpus": ("actor",),
    "gpus": ("actor",),
}
"""Keys of a reward that only some modes use."""

_PROCESS_KEYS = ("workers", "timeout_s", "memory_mb")
"""Mode ``auto`` runs a reward in a process if one of these is set."""

_INLINE_PREFIXES = ("task:", "__main__:")
"""Mode ``auto`` runs these in the loop: built-in rewards, which are quick, and functions that only this process has."""


class RewardSection(Section):
    """One reward. See docs/rewards.md."""

    function: str = Field(
        description="path/to/file.py:function, package.module:Class, or task:arithmetic: a function or a class."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the class's constructor, or further ones of the function."
    )
    name: str | None = Field(
        default=None, description="Name of its curve, reward/<name>; left out: the function's name."
    )
    weight: float | None = Field(
        default=None, description="Weight in the sum that the update sees; left out: that of @rlkl.reward, else 1."
    )
    role: Literal["train", "monitor"] = Field(
        default="train", description="monitor: logged as monitor/<name> and never optimised."
    )
    normalize: Normalize = Field(
        default="none", description="Shift and scale its scores to mean 0, deviation 1: over each group or the batch."
    )
    mode: Literal["auto", "inline", "thread", "process", "actor"] = Field(
        default="auto",
        description="Where it runs: inline (in the loop), thread, process, actor (Ray); auto: task: rewards inline, "
        "others in a process.",
    )
    workers: int = Field(default=1, ge=1, description="Threads, processes or actors; not for mode inline.")
    batch_size: int | None = Field(
        default=None, ge=1, description="Samples a call of a batch function; left out: all (inline), else 16."
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description=f"Limit for one call; left out: {DEADLINE_S:g} in processes and actors, none in thread; not for "
        "inline.",
    )
    memory_mb: int | None = Field(
        default=None, ge=64, description="MiB of data memory a worker process may hold, its own 30 included."
    )
    cpus: float = Field(default=1.0, ge=0, description="Mode actor: CPUs that each worker reserves in Ray.")
    gpus: float = Field(default=0.0, ge=0, description="Mode actor: GPUs that each worker reserves in Ray.")
    on_error: Literal["raise", "drop_sample", "drop_group", "group_mean", "constant"] = Field(
        default="raise", description="What becomes of a sample that it fails on: stop the run, or one of these."
    )
    error_value: float | None = Field(default=None, description="The score of a failed sample under constant.")
    max_failed_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Stop the run when it fails on more of the samples scored together."
    )
    cache: bool = Field(
        default=False, description="Keep its scores in the run folder, by what it read; never score the same twice."
    )

    @property
    def place(self) -> Place:
        """The mode that it runs in: ``mode``, or the choice of ``auto``."""
        if self.mode != "auto":
            return self.mode
        quick = self.function.startswith(_INLINE_PREFIXES)
        return "inline" if quick and not any(self._is_set(key) for key in _PROCESS_KEYS) else "process"

    @property
    def deadline_s(self) -> float | None:
        """Limit for one call in seconds; None: no limit."""
        return self.timeout_s or (DEADLINE_S if self.place in ("process", "actor") else None)

    def _is_set(self, key: str) -> bool:
        return getattr(self, key) != type(self).model_fields[key].default

    @model_validator(mode="after")
    def _fits_the_mode(self) -> RewardSection:
        """Refuse settings that would have no effect."""
        for key, modes in _MODES_WITH.items():
            if self.mode not in modes and self._is_set(key):
                value = getattr(self, key)
                raise ValueError(f"{key} = {value} does nothing in mode {self.mode}; it is for {', '.join(modes)}")
        if (self.on_error == "constant") != (self.error_value is not None):
            raise ValueError(
                f"on_error = {self.on_error}, error_value = {self.error_value}: give error_value with on_error: "
                "constant, and only there"
            )
        if self.role == "monitor" and self.normalize != "none":
            raise ValueError(f"normalize = {self.normalize} does nothing for a monitor: it is not part of the sum")
        return self


class ScoringSection(Section):
    """Scaling of the sum of the rewards."""

    normalize: Normalize = Field(
        default="none", description="Shift and scale the weighted sum likewise, over each group or the whole batch."
    )
