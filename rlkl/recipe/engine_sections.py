"""Settings of a rollout engine, under its name in ``rollout``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from rlkl.schema import Section


class VllmSection(Section):
    """Settings of vLLM. Further keys are engine arguments of vLLM; `rlkl.rollout.vllm_arguments` checks their names."""

    model_config = ConfigDict(extra="allow")
    further_keys: ClassVar[str] = "Further engine arguments of vLLM by name, such as max_num_seqs: 64."
    """Description of the keys that are no fields."""

    memory_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of a GPU's memory that each vLLM may take; left out: 0.9 times a worker's share of the GPU.",
    )
    kv_cache_gib: int = Field(default=1, ge=1, description="vLLM's key-value cache on a CPU, in GiB.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The further engine arguments by name."""
        return dict(self.model_extra or {})


def with_engine_settings(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Move settings of vLLM from ``rollout`` itself, their place in recipes of earlier versions, to ``rollout.vllm``.

    Raises ValueError if both places set a key to different values.
    """
    own = rollout.get("vllm", {})
    if not isinstance(own, Mapping):
        return dict(rollout)  # pydantic reports it
    found = dict(own)
    for key in VllmSection.model_fields.keys() & rollout.keys():
        old, new = rollout[key], own.get(key)
        if old is not None and new is not None and old != new:
            raise ValueError(
                f"rollout.{key} = {old!r} and rollout.vllm.{key} = {new!r} set the same; leave rollout.{key} out, "
                "which is the name in earlier versions"
            )
        found[key] = old if new is None else new
    others = {key: value for key, value in rollout.items() if key not in VllmSection.model_fields}
    return {**others, "vllm": found} if found or "vllm" in rollout else others
