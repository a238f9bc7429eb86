"""An engine and a rule that take longer than they need, so that the seconds of both sides can be chosen.

`benchmarks.schedules` uses them as ``rollout.engine`` and ``update.rule``.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from pydantic import Field

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.functional.reduce import masked, token_mean_weights
from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.vllm_engine import VllmEngine
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.settings import RuleSettings

FIXED_MS, EACH_MS = "RLKL_BENCHMARK_FIXED_MS", "RLKL_BENCHMARK_EACH_MS"
"""Environment variables: milliseconds of pause after each iteration, and for each sequence in it."""


class SlowVllm(VllmEngine):
    """Real vLLM that pauses after each iteration, as a larger model would take longer."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        fixed_s, each_s = (float(os.environ.get(name, "0")) / 1000 for name in (FIXED_MS, EACH_MS))
        engine: Any = self._llm.llm_engine
        step, scheduler = engine.step, engine.engine_core.engine_core.scheduler

        def slow_step() -> Any:
            outputs = step()
            running = len(scheduler.running) + sum(output.finished for output in outputs)
            time.sleep(fixed_s + each_s * running)
            return outputs

        engine.step = slow_step


class SlowRule(PolicyUpdate):
    """A policy gradient with the mean reward as baseline, whose step takes ``seconds`` longer."""

    class Settings(RuleSettings):
        """Keys under ``update``."""

        seconds: float = Field(default=0.0, ge=0, description="Seconds of pause in each step of the learner.")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS})

    def credit(self, batch: Batch) -> Batch:
        """Give each token the reward of its completion less the mean, after a pause."""
        time.sleep(self.settings.seconds)
        advantages_B = batch.rewards_B - batch.rewards_B.mean()
        return replace(batch, advantages_BT=advantages_B[:, None] * batch.response_BT)

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Return the loss of REINFORCE."""
        weights_BT = token_mean_weights(batch.response_BT, batch.denominators)
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        loss = -(weights_BT * batch.advantages_BT * policy_BT).sum()
        return LossOutput(loss=loss, terms={"policy_gradient": loss.detach()}, metrics={})
