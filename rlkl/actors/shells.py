"""The classes that run inside Ray actors. They do not import Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlkl.learner.device import learner_device
from rlkl.learner.export import ExportScores, compare_export
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.manifest import SavedFile
from rlkl.learner.ranks import Ranks, Rendezvous, open_store
from rlkl.learner.sharing import Sighting, Token
from rlkl.rewards.execution.call import CallResult, RewardFunction
from rlkl.rewards.execution.pool import WorkerSpec
from rlkl.rewards.execution.worker import bring_up, portable
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.function.result import Failure
from rlkl.rollout.engine import Engine, EngineSettings, Request, engine_class
from rlkl.rollout.sleeping import EngineInTurns, in_turns
from rlkl.types import Completion, Example, Learned, Probe
from rlkl.weights import (
    Expected,
    HostMemoryChannel,
    Outbox,
    Probes,
    ProbeScores,
    Receipt,
    Scores,
    WeightPackage,
    differing_weights,
    receive,
)

_HAND_OVER_S = 0.05
"""Seconds between two parts of finished completions, at least: each part costs about a millisecond."""


class RolloutWorker:
    """Hosts one engine."""

    _engine: Engine | EngineInTurns
    _in_turns: EngineInTurns

    def __init__(self) -> None:
        self._channel = HostMemoryChannel()
        self._version = 0
        """Version of the weights that the engine holds."""

    def start(self, engine: str, settings: EngineSettings) -> None:
        """Start the engine. Not done in the constructor: Ray passes on a constructor's errors as text only."""
        started = engine_class(engine)(settings)
        self._engine = started
        if settings.sleeps:
            self._engine = self._in_turns = in_turns(started, name=engine)

    def sleep(self) -> None:
        """See `EngineInTurns.sleep`."""
        self._in_turns.sleep()

    def wake_weights(self) -> None:
        """See `EngineInTurns.wake_weights`. The next `receive` brings the key-value cache back."""
        self._in_turns.wake_weights()

    def stream(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]:
        """Yield completions with their requests' numbers, some at a time, while the engine goes on with the others.

        Each part holds at least one completion; without requests nothing is yielded.
        """
        finished: list[tuple[int, Completion]] = []
        handed_over = time.monotonic()
        for number, completion in self._engine.stream(requests):
            finished.append((number, replace(completion, weights_version=self._version)))
            if time.monotonic() - handed_over >= _HAND_OVER_S:
                yield finished
                finished, handed_over = [], time.monotonic()
        if finished:
            yield finished

    def score(self, probes: Sequence[Probe]) -> Scores:
        return self._engine.score(probes)

    def receive(self, package: WeightPackage, probes: Probes) -> Receipt:
        receipt = receive(self._engine, self._channel, package, probes)
        self._version = receipt.version
        return receipt

    def differing_weights(self, package: WeightPackage) -> list[str]:
        return differing_weights(self._engine, self._channel, package)


class RewardHost:
    """Hosts one reward function in mode ``actor``."""

    _function: RewardFunction

    def start(self, spec: WorkerSpec) -> Failure | None:
        """Build the function and set it up; return the failure, or None."""
        failure, function = bring_up(spec)
        if function is not None:
            self._function = function
        return failure

    def call(self, call: Call) -> CallResult:
        return portable(self._function.call(call))

    def close(self) -> None:
        self._function.close()


_UNCHANGED_VERSIONS = 10
"""Versions in a row that may have the bits of the one before, although the learner stepped."""


class LearnerWorker:
    """Hosts the learner, and computes the log-probs that prove a publish or an export."""

    _learner: Learner

    def __init__(self) -> None:
        self._outbox = Outbox(HostMemoryChannel(), patience=_UNCHANGED_VERSIONS)
        self._before: Scores | None = None
        self._store: Any = None

    def open_store(self, host: str, size: int, timeout_s: float) -> int:
        """Open the store that the ranks meet at on this machine, of address ``host``; return its port."""
        self._store = open_store(host, size=size, timeout_s=timeout_s)
        return self._store.port

    def visible_gpus(self) -> list[str]:
        """Return the GPUs that Ray has given to this process."""
        return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]

    def log_file(self) -> str:
        """Return the file that this process writes its errors to; empty if there is none."""
        path = os.path.realpath("/proc/self/fd/2")
        return path if os.path.isfile(path) else ""

    def start(self, spec: LearnerSpec, place: Rendezvous | None = None) -> None:
        """Load the policy; with a ``place`` among several ranks, each holds a part of it.

        Not done in the constructor: Ray passes on a constructor's errors as text only.
        """
        ranks = None
        if place is not None:
            ranks = Ranks.join(place, learner_device(spec.recipe.learner.device), self._store)
        self._learner = Learner(spec, ranks)

    def size(self) -> tuple[int, int]:
        """Return the policy's number of layers and its width."""
        return self._learner.policy.layer_count, self._learner.policy.hidden_size

    def learn(
        self, examples: Sequence[Example], left_out: Sequence[Example], probes: Sequence[Probe], at: tuple[int, bool]
    ) -> Learned:
        """Train on ``examples``; first compute the log-probs of ``probes`` with the weights before the step.

        ``at``: the step's index, and whether to return token columns and pictures for the sample files.
        """
        step, samples = at
        self._before = self._learner.probe(probes) if probes else None
        metrics = self._learner.prepare(examples, left_out, step=step) | self._learner.step(step)
        samples = samples and self._learner.ranks.rank == 0
        columns = self._learner.token_columns() if samples else {}
        pictures = self._learner.changed_pictures() if samples else {}
        return Learned(metrics=metrics, token_columns=columns, pictures=pictures)

    def pack(self, version: int) -> WeightPackage:
        """Pack the weights as they are now; raises `WeightSyncError` when steps leave them unchanged.

        Only rank 0 packs. The others take part in gathering the weights, and return an empty package.
        """
        must_change, self._learner.moved = self._learner.moved, False
        if self._learner.ranks.rank > 0:
            for _ in self._learner.policy.published():
                pass
            return WeightPackage(version=version, tensors=())
        return self._outbox.pack(self._learner.policy.published(), version=version, must_change=must_change)

    def expect(self, probes: Probes) -> Expected:
        """Return the log-probs that an engine with the weights as they are now must give."""
        current, kept = self._learner.probe(probes.current), self._learner.probe(probes.kept)
        return Expected(before=self._before, after=ProbeScores(current=current, kept=kept))

    def probe_rounded(self, probes: Sequence[Probe]) -> Scores:
        """See `Learner.probe_rounded`."""
        return self._learner.probe_rounded(probes)

    def rest(self) -> None:
        """See `Learner.rest`."""
        self._learner.rest()

    def finished_steps(self) -> int:
        return self._learner.finished_steps

    def look(self, token: Token) -> Sighting:
        """See `Token.look`."""
        return token.look()

    def save(self, folder: str) -> dict[str, SavedFile]:
        return self._learner.save(Path(folder))

    def restore(self, folder: str) -> None:
        self._learner.restore(Path(folder))

    def compare_export(self, folder: str, probes: Sequence[Probe]) -> ExportScores:
        """Call `compare_export`. The learner cannot be used afterwards."""
        return compare_export(self._learner, Path(folder), probes)
