"""Facts of a run that warnings of rules and terms depend on. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Parts of the recipe outside ``update``."""

    has_pairs: bool
    """Answers come with the prompts; nothing is sampled."""
    has_rewards: bool
    prompts_per_step: int
    samples_per_prompt: int
    max_rounds: int
    """Draws of prompts until a step is full."""
    epochs: int
    minibatches: int
    tracks_reference_kl: bool
    samples_ahead: bool = False
    """Older weights than those of the step have sampled its tokens (``rollout.schedule``)."""
