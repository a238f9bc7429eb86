"""Rollout workers, a learner and a sampler on `FakeRay`. Gates force the order in which threads go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rlkl.actors.learner import RayLearner
from rlkl.actors.sampler import RaySampler
from rlkl.actors.shells import HandOver
from rlkl.actors.weight_sync import RayWeightSync
from rlkl.actors.weight_transport import HostTransport
from rlkl.actors.workers import Starting, Workers
from rlkl.recipe import Recipe
from rlkl.rollout.engine import Request
from rlkl.types import Completion, Probe
from rlkl.weights import Expected, Probes, ProbeScores, Receipt, WeightPackage
from tests.unit.actors.fake_ray import FakeActor, Gate, ProcessEnds

PROBES = [Probe(token_ids=(1, 2))]
BASE = -1
"""Version of the weights that an engine starts with."""

Hook = Callable[[], None]


def ends() -> None:
    """A hook: the process ends in this call."""
    raise ProcessEnds


class Host:
    """A rollout worker. It samples at once, except while it is held back, and writes down its calls.

    ``hooks``: by call, as "start" or "receive 1"; each is run once, before the call does anything.
    """

    def __init__(self, name: str, hooks: Mapping[str, Hook], log: Path | None = None) -> None:
        self.name, self.hooks, self.log = name, dict(hooks), log
        self.calls: list[str] = []
        self.samples = threading.Event()
        self.samples.set()
        self.version = BASE
        self._engine: list[tuple[int, Completion]]
        self._changed = threading.Condition()

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        self.hooks.pop(call, lambda: None)()

    def log_file(self) -> str:
        if self.log is None:
            return ""
        self.log.write_text(f"last words of {self.name}")
        return str(self.log)

    def start(self) -> None:
        self._enter("start")
        self._engine = []

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        self._enter("submit")
        with self._changed:
            for number, request in requests:
                one = Completion(
                    token_ids=(request.seed,), logprobs=(0.0,), finish_reason="stop", weights_version=self.version
                )
                self._engine.append((number, one))
            self._changed.notify_all()

    def finished(self, timeout_s: float) -> HandOver:
        self.hooks.pop("finished", lambda: None)()
        engine = self._engine  # an AttributeError before the start, as in a real worker
        self.samples.wait(timeout_s)
        with self._changed:
            self._changed.wait_for(lambda: len(engine) > 0, timeout_s)
            found = [*engine] if self.samples.is_set() else []
            engine[: len(found)] = []
        return HandOver(finished=found, idle_s=0.0)

    def receive(self, package: WeightPackage, probes: Probes) -> Receipt:
        self._enter(f"receive {package.version}")
        self.version = package.version
        scores = ProbeScores(current=self.score(probes.current), kept=self.score(probes.kept))
        return Receipt(version=package.version, damaged=(), unreached=(), scores=scores)

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        return scores_of(probes, self.version)

    def forget(self) -> None:
        self._enter("forget")


def scores_of(probes: Sequence[Probe], version: int) -> list[tuple[float, ...]]:
    """Log-probs that tell versions apart."""
    return [(-2.0 - version,) * (len(probe.token_ids) - 1) for probe in probes]


class Ranks:
    """A learner of one rank. It has made ``version`` steps."""

    def __init__(self) -> None:
        self.version = 0
        self.packed: dict[int, Gate] = {}
        """Gates that `collect` passes after the weights of a version have been packed."""

    def call(self, what: str, method: str, *arguments: Any) -> Any:
        if method == "size":
            return 1, 1
        (probes,) = arguments
        assert method == "expect"
        current, kept = scores_of(probes.current, self.version), scores_of(probes.kept, self.version)
        before = scores_of(probes.kept, self.version - 1)
        return Expected(before=before, after=ProbeScores(current=current, kept=kept))

    def send(self, method: str, version: int) -> Any:
        assert method == "pack"
        package: Future[WeightPackage] = Future()
        package.set_result(WeightPackage(version=version, tensors=()))
        return package

    def collect(self, what: str) -> None:
        if self.version in self.packed:
            self.packed[self.version].pass_through()


class Cluster:
    """A run's rollout workers. ``anew``: hooks of the hosts that are started later, by their order; see `Host`."""

    def __init__(
        self,
        count: int,
        *,
        anew: Sequence[Mapping[str, Hook]] = (),
        timeout_s: float = 20.0,
        start_timeout_s: float = 20.0,
        logs: Path | None = None,
    ) -> None:
        self.hosts = [Host(f"worker {number}", {}) for number in range(count)]
        self.actors = [FakeActor(host) for host in self.hosts]
        for host in self.hosts:
            host.start()
        self.anew: list[Host] = []
        self.places: list[int] = []
        """Numbers of the workers that were started anew, in order."""
        self._logs, self._hooks = logs, list(anew)
        starting = Starting(
            spawn=self._spawn,
            start=lambda actor: actor.start.remote(),
            timeout_s=start_timeout_s,
            logs=[""] * count,
        )
        names = [f"rollout worker {number}" for number in range(count)]
        self.workers = Workers(actors=self.actors, names=names, timeout_s=timeout_s, starting=starting)
        self.sampler = RaySampler(self.workers)
        self.ranks: Any = Ranks()
        recipe = Recipe.model_validate(
            {"model": {"path": "unused"}, "data": {"source": "unused.jsonl"}, "weights": {"tolerance": 0.1}}
        )
        transport = HostTransport(self.ranks, self.workers)
        self.sync = RayWeightSync(RayLearner(self.ranks), self.workers, transport, recipe)

    def _spawn(self, number: int) -> FakeActor:
        hooks = self._hooks[len(self.anew)] if len(self.anew) < len(self._hooks) else {}
        name = f"worker {number}, start {len(self.anew)}"
        host = Host(name, hooks, self._logs and self._logs / f"{len(self.anew)}.log")
        self.anew.append(host)
        self.places.append(number)
        return FakeActor(host)

    def publish(self, version: int) -> float:
        self.ranks.version = version
        return self.sync.publish(version, PROBES)

    def look(self, wanted: int) -> dict[int, Completion]:
        """Look for completions until so many are there."""
        found: dict[int, Completion] = {}
        looks: Iterator[list[tuple[int, Completion]]] = self.sampler.finished()
        while len(found) < wanted:
            found |= dict(next(looks))
        return found


def requests(count: int) -> list[Request]:
    return [Request(prompt_token_ids=(1,), seed=number) for number in range(count)]
