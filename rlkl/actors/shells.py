"""The classes that run inside Ray actors. They do not import Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkl.errors import RecipeError
from rlkl.learner.device import learner_device
from rlkl.learner.export import ExportScores, compare_export
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.manifest import SavedFile
from rlkl.learner.ranks import Ranks, Rendezvous, open_store
from rlkl.learner.sharing import Sighting, Token
from rlkl.learner.teacher_views import teacher_views
from rlkl.rewards.execution.call import CallResult, RewardFunction
from rlkl.rewards.execution.pool import WorkerSpec
from rlkl.rewards.execution.worker import bring_up, portable
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.function.result import Failure
from rlkl.rollout.engine import Engine, EngineSettings, ForgettingEngine, GroupEngine, Request, engine_class
from rlkl.rollout.engine_loop import EngineLoop
from rlkl.rollout.sleeping import EngineInTurns, in_turns
from rlkl.system.stacks import answer_signal
from rlkl.types import Completion, Example, Learned, Probe, TeacherView
from rlkl.weights import (
    Expected,
    GroupReceipt,
    HostMemoryChannel,
    Outbox,
    Probes,
    ProbeScores,
    Receipt,
    Scores,
    WeightPackage,
    differing_weights,
    receive,
    scores_of,
)
from rlkl.weights.buckets import Manifest
from rlkl.weights.group import Place, PublishGroup, send

_AT_ONCE = 64
"""Completions that an engine without steps samples together under ``stream``: weights wait for their end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """A report of a rollout worker."""

    finished: Sequence[tuple[int, Completion]]
    """Completions that have finished since the last report, with their requests' numbers."""
    idle_s: float
    """Seconds in which its engine had no request, since its start."""


class RolloutWorker:
    """Hosts one engine, which samples on a thread of its own. `finished` may be called beside the other methods."""

    _loop: EngineLoop

    def __init__(self) -> None:
        answer_signal()
        self._channel = HostMemoryChannel()

    def start(self, engine: str, settings: EngineSettings) -> None:
        """Start the engine. Not done in the constructor: Ray passes on a constructor's errors as text only."""
        at_once = _AT_ONCE if settings.streams else None
        self._loop = EngineLoop(lambda: _build_engine(engine, settings), at_once=at_once)

    def log_file(self) -> str:
        """See `_log_file`."""
        return _log_file()

    def sleep(self) -> None:
        """See `EngineInTurns.sleep`."""
        self._loop.call(lambda engine: _sleeping(engine).sleep())

    def wake_weights(self) -> None:
        """See `EngineInTurns.wake_weights`. The next `receive` brings the key-value cache back."""
        self._loop.call(lambda engine: _sleeping(engine).wake_weights())

    def forget(self) -> None:
        """See `ForgettingEngine.forget`; other engines keep nothing."""
        self._loop.call(lambda engine: engine.forget() if isinstance(engine, ForgettingEngine) else None)

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """See `EngineLoop.submit`."""
        self._loop.submit(requests)

    def finished(self, timeout_s: float) -> HandOver:
        """See `EngineLoop.finished`."""
        return HandOver(finished=self._loop.finished(timeout_s), idle_s=self._loop.idle_s)

    def score(self, probes: Sequence[Probe]) -> Scores:
        return self._loop.call(lambda engine: engine.score(probes))

    def receive(self, package: WeightPackage, probes: Probes) -> Receipt:
        """Load the weights between two steps of the engine. Completions that are being sampled go on with them."""
        return self._loop.update(package.version, lambda engine: receive(engine, self._channel, package, probes))

    def differing_weights(self, package: WeightPackage) -> list[str]:
        return self._loop.call(lambda engine: differing_weights(engine, self._channel, package))

    def join_group(self, place: Place) -> None:
        """See `GroupEngine.join_group`."""
        self._loop.call(lambda engine: _in_group(engine).join_group(place))

    def receive_from_group(self, manifest: Manifest, probes: Probes) -> GroupReceipt:
        """Take in a publish that the learner broadcasts, and score the probes. See `receive`."""

        def load(engine: Engine) -> GroupReceipt:
            arrivals = _in_group(engine).receive_from_group(manifest)
            return GroupReceipt(version=manifest.version, arrivals=tuple(arrivals), scores=scores_of(engine, probes))

        return self._loop.update(manifest.version, load)


def _log_file() -> str:
    """Return the file that this process writes its errors to; empty if there is none."""
    path = os.path.realpath("/proc/self/fd/2")
    return path if os.path.isfile(path) else ""


def _build_engine(name: str, settings: EngineSettings) -> Any:
    engine = engine_class(name)(settings)
    return in_turns(engine, name=name) if settings.sleeps else engine


def _in_group(engine: Engine) -> GroupEngine:
    if not isinstance(engine, GroupEngine):
        raise RecipeError(
            f"weights.transport = group: rollout.engine {type(engine).__name__} lacks join_group or "
            "receive_from_group. Derive it from rlkl.rollout.joining.JoinsGroup, or set weights.transport=host"
        )
    return engine


def _sleeping(engine: Engine) -> EngineInTurns:
    assert isinstance(engine, EngineInTurns), "only colocated engines sleep"
    return engine


class RewardHost:
    """Hosts one reward function in mode ``actor``."""

    _function: RewardFunction

    def __init__(self) -> None:
        answer_signal()

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
        answer_signal()
        self._outbox = Outbox(HostMemoryChannel(), patience=_UNCHANGED_VERSIONS)
        self._before: Scores | None = None
        self._store: Any = None
        self._group: PublishGroup | None = None
        self._group_store: Any = None

    def open_store(self, host: str, size: int, timeout_s: float) -> int:
        """Open the store that the ranks meet at on this machine, of address ``host``; return its port."""
        self._store = open_store(host, size=size, timeout_s=timeout_s)
        return self._store.port

    def visible_gpus(self) -> list[str]:
        """Return the GPUs that Ray has given to this process."""
        return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]

    def log_file(self) -> str:
        """See `_log_file`."""
        return _log_file()

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

    def keeps_reference(self) -> bool:
        """See `Learner.keeps_reference`."""
        return self._learner.keeps_reference

    def reference_gaps(self, examples: Sequence[Example]) -> list[float]:
        """See `Learner.reference_gaps`."""
        return self._learner.reference_gaps(examples)

    def teacher_views(self, examples: Sequence[Example]) -> list[TeacherView]:
        """See `rlkl.learner.teacher_views.teacher_views`."""
        return teacher_views(self._learner.preparer, examples)

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

    def pack_again(self, version: int) -> WeightPackage:
        """Pack the weights as they are now, to compare them; see `pack`."""
        tensors = self._learner.policy.published()
        package = HostMemoryChannel().pack(tensors, version)  # all ranks: it gathers the weights
        return package if self._learner.ranks.rank == 0 else WeightPackage(version=version, tensors=())

    def open_group(self, host: str, timeout_s: float) -> int:
        """Open the store that the members of publishing groups meet at, on rank 0; return its port."""
        if self._learner.ranks.rank > 0:
            return 0
        self._group_store = open_store(host, size=1, timeout_s=timeout_s)
        return self._group_store.port

    def join_group(self, place: Place) -> None:
        """Join the engines in a group for publishing, and leave an earlier one. Only rank 0 is a member."""
        if self._learner.ranks.rank > 0:
            return
        if self._group is not None:
            self._group.leave()
        self._group = PublishGroup(place, device=self._learner.policy.device, store=self._group_store)

    def manifest(self, version: int) -> Manifest:
        """List what the coming `send` sends."""
        return Manifest(version=version, tensors=tuple(self._learner.policy.outlines()))

    def send(self, manifest: Manifest) -> dict[str, int]:
        """Send the weights as they are now to all engines, and return the checksum of each tensor on rank 0.

        Raises `WeightSyncError` when steps leave them unchanged or an engine does not take them in.
        """
        ranks = self._learner.ranks
        must_change, self._learner.moved = self._learner.moved, False
        sums = send(self._learner.policy.published(), manifest, group=self._group, sum_=ranks.sum_)
        if ranks.rank == 0:
            dtypes = {outline.dtype for outline in manifest.tensors}
            self._outbox.check(sums, dtypes=dtypes, version=manifest.version, must_change=must_change)
        return sums

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
