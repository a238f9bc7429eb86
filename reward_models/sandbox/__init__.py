"""Running programs that nobody trusts. Linux only; see `Sandbox` for what is kept apart and what is not."""

from reward_models.sandbox.sandbox import Limits, Outcome, Sandbox

__all__ = ["Limits", "Outcome", "Sandbox"]
