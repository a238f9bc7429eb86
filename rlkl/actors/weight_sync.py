"""Publishing weights from the learner's actor to the workers, and the proof of it.

`rlkl.actors.weight_transport` is how they travel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlkl.actors.calls import wait_all
from rlkl.actors.learner import RayLearner
from rlkl.actors.turns import MemoryTurns
from rlkl.actors.weight_transport import WeightTransport
from rlkl.actors.workers import FAILURES, Workers
from rlkl.errors import ExportError, WeightSyncError
from rlkl.learner.export import ExportScores
from rlkl.recipe import Recipe
from rlkl.types import Probe
from rlkl.weights import Expected, Probes, Proof, Scores, bounds_for, check_export
from rlkl.weights.movement import rounding_between


class RayWeightSync:
    """Sends the learner's weights to the workers, and keeps the `Proof` of the run."""

    def __init__(
        self,
        learner: RayLearner,
        workers: Workers,
        transport: WeightTransport,
        recipe: Recipe,
        turns: MemoryTurns | None = None,
    ) -> None:
        """Publish from ``learner`` to ``workers``; with ``turns``, they sleep until there is something to publish."""
        self._turns = turns
        self._ranks, self._workers, self._names = learner.ranks, workers, workers.names
        self._transport = transport
        self._is_shared = recipe.rollout.tensor_parallel > 1
        layers, width = learner.ranks.call("name its size", "size")
        self._bounds_for = partial(bounds_for, layers=layers, width=width)
        self._proof = Proof(self._bounds_for(recipe.model.dtype, tolerance=recipe.weights.tolerance))

    @property
    def wants_probes(self) -> bool:
        """See `Proof.wants_probes`."""
        return self._proof.wants_probes

    def publish(self, version: int, probes: Sequence[Probe]) -> float:
        """Send the learner's weights to every worker and prove it; return the largest log-prob difference (nats).

        Raises `WeightSyncError`. Without workers, publish nothing.
        """
        if not len(self._workers):
            return 0.0
        keep = self._proof.wants_probes and len(probes) > 0
        asked = Probes(kept=probes) if keep else Probes(current=probes, kept=self._proof.kept)
        scores_before = self._ask_for_scores(probes) if keep else list
        # The learner scores before it packs: on one machine the engines' scoring would slow it down, and it theirs.
        expected: Expected = self._ranks.call("score the probes", "expect", asked)
        if self._proof.wants_rounding:
            rounded = self._ranks.call("measure its rounding", "probe_rounded", probes)
            self._proof.allow(rounding_between(expected.after.current, rounded))
        scores = scores_before()
        check = partial(self._proof.check_one, learner=expected.after, version=version)
        receipts = self._transport.publish(version, asked, check)
        try:
            if keep and expected.before is not None:
                self._proof.keep(probes, expected.before, dict(zip(self._names, scores, strict=True)))
            return self._proof.check(expected.after, dict(zip(self._names, receipts, strict=True)), version=version)
        except WeightSyncError as error:
            raise WeightSyncError(f"{error} {self._diagnosis(self._transport.package())}") from None

    def check_export(self, folder: Path, probes: Sequence[Probe]) -> None:
        """Load the policy that was saved to ``folder`` and prove that it is the learner's; the learner ends with it.

        ``probes`` are used if no step has kept any. Raises `ExportError`.
        """
        if self._turns is not None:
            self._turns.to_learner()
        kept = self._proof.kept or tuple(probes)
        found: ExportScores = self._ranks.call("compare the exported policy", "compare_export", str(folder), kept)
        if found.problem is not None:
            raise ExportError(f"it {found.problem}")
        bounds = self._bounds_for(found.dtype)
        before = self._proof.start if found.before is None else found.before
        check_export(
            before, found.learner, found.exported, replace(bounds, rounding=max(bounds.rounding, found.rounding))
        )

    def _ask_for_scores(self, probes: Sequence[Probe]) -> Callable[[], list[Scores]]:
        """Let the engines score the probes with the weights before the step; return a function that waits for it."""
        what = "score the probes"
        if self._turns is not None:
            refs, timeout_s = self._turns.scores_before, self._workers.timeout_s
            return lambda: wait_all(refs, who=self._names, what=what, timeout_s=timeout_s)
        calls = self._workers.call(lambda actor: actor.score.remote(probes))
        return lambda: self._workers.collect(calls, what=what)

    def _diagnosis(self, package: Any) -> str:
        """Read the workers' weights back and name those that are not what was published."""
        workers, what = self._workers, "read back weights"
        try:
            refs = [call.answer for call in workers.call(lambda actor: actor.differing_weights.remote(package))]
            reports = wait_all(refs, who=self._names, what=what, timeout_s=workers.timeout_s)
        except FAILURES as error:
            return f"The weights could not be read back: {error}"
        found = [f"{name}: {', '.join(report)}" for name, report in zip(self._names, reports, strict=True) if report]
        if found:
            return f"Read back, these are not what was published: {'; '.join(found)}."
        packed = "those the engine packs or fuses"
        if self._is_shared:
            packed += ", and those that its processes divide (rollout.tensor_parallel): only the first process is read"
        return f"All parameters that can be read back are what was published; suspect {packed}."
