"""The learner's passes that a rule asks for, besides the policy's training pass; for `rlkl plan`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlkl.updates.base_settings import RuleSettings
from rlkl.updates.grpo.settings import GrpoSettings
from rlkl.updates.papo.settings import PapoSettings
from rlkl.updates.ppo.settings import PpoSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Passes over the trained sequences. Those of frozen models are not counted here.

    PPO with a critic of its own and two epochs: 2 forward passes a step (log-probs and values at its start), and each
    epoch trains 1 critic beside the policy.
    """

    forward: int
    """Once a step, without gradient."""
    training: int = 0
    """Each epoch, with gradient: the policy on changed pictures."""
    critics: int = 0
    """Further models of the policy's size that are trained."""


def passes_of(settings: RuleSettings, *, optimizer_steps: int) -> Passes:
    """Count the passes of a rule with these settings, for so many optimizer steps a batch.

    With one optimizer step the training pass gives the log-probs at the step's start, unless the reward contains a KL.
    A custom rule is counted like one that asks for nothing more. A term that changes pictures adds a training pass.
    """
    own, views = _own_passes(settings, optimizer_steps), sum(term.term == "consistency" for term in settings.terms)
    return replace(own, training=own.training + views)


def _own_passes(settings: RuleSettings, optimizer_steps: int) -> Passes:
    in_reward = (isinstance(settings, GrpoSettings) and settings.kl_placement == "reward" and settings.kl_coef > 0) or (
        isinstance(settings, PpoSettings) and settings.kl_coef > 0
    )
    start = 1 if optimizer_steps > 1 or in_reward else 0
    if isinstance(settings, PpoSettings):
        critics = 1 if settings.critic == "model" else 0
        policy = 1 if settings.critic == "head" else start  # the values of a head come from a pass of the policy
        return Passes(forward=policy + critics, critics=critics)
    if isinstance(settings, PapoSettings):
        return Passes(forward=start + 1, training=1 if settings.recompute else 0)
    return Passes(forward=start)
