"""Running untrusted programs. Linux only; `Sandbox` lists what is isolated and what is not."""

from reward_models.sandbox.sandbox import Limits, Outcome, Sandbox

__all__ = ["Limits", "Outcome", "Sandbox"]
