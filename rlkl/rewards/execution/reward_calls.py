"""The calls of one reward in one round: when each is made, and the outcomes that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from rlkl.errors import RewardInputError
from rlkl.rewards.execution.call import CallResult
from rlkl.rewards.execution.pool import Pool
from rlkl.rewards.function.arguments import Call, Sample, State, make_call
from rlkl.rewards.function.result import Failure, Outcome, Score, raised
from rlkl.rewards.function.signature import Parameters
from rlkl.rewards.scoring.cache import ScoreCache


class RewardCalls:
    """Takes the samples of one round in any order, and makes the reward's calls about them.

    The calls depend on the samples' numbers alone, never on the order in which samples arrive. An eager pool gets each
    unit as soon as its last sample is there. Another pool gets all units in order at the end.
    """

    def __init__(
        self,
        *,
        parameters: Parameters,
        state: State,
        pool: Pool,
        cache: ScoreCache | None,
        units: Sequence[range],
        most_failures: int,
    ) -> None:
        """Take samples of ``units``. Once more than ``most_failures`` samples have failed, wait for no other."""
        self._parameters, self._state, self._pool, self._cache = parameters, state, pool, cache
        self._units = units
        self._unit_of = {index: unit for unit in units for index in unit}
        self._most_failures, self._failures = most_failures, 0
        self._samples: dict[int, Sample] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._pending: list[tuple[list[int], Future[CallResult]]] = []
        self._sent: set[range] = set()
        self.seconds: list[float] = []
        """The duration of each call."""
        self.split: tuple[int, Failure] | None = None
        """The first call of a batch function that failed as a whole: its samples, and why."""

    def add(self, index: int, sample: Sample) -> None:
        self._samples[index] = sample
        unit = self._unit_of[index]
        if self._pool.eager and all(member in self._samples for member in unit):
            self._send(unit)

    @property
    def given_up(self) -> bool:
        """Whether so many samples have failed that the run has to stop."""
        return self._failures > self._most_failures

    @property
    def ready(self) -> bool:
        """Whether `finish` need not wait for calls that run elsewhere."""
        return len(self._samples) == len(self._unit_of) and all(future.done() for _, future in self._pending)

    def finish(self) -> list[Outcome | None]:
        """Return every sample's outcome, in order; None for those that were not waited for."""
        for unit in self._units:
            if unit not in self._sent and not self.given_up:
                self._send(unit)
                if not self._pool.eager:
                    self._collect()
        self._collect()
        if self._cache is not None:
            self._cache.flush()
        return [self._outcomes.get(index) for index in range(len(self._unit_of))]

    def _send(self, unit: range) -> None:
        self._sent.add(unit)
        indices = self._not_cached(unit)
        if indices:
            self._submit(indices)

    def _submit(self, indices: list[int]) -> None:
        try:
            call = self._call(indices)
        except RewardInputError as error:  # a row without a column that the first rows had
            if len(indices) == 1 or self._parameters.unit == "group":
                self._keep(indices, [raised(error)] * len(indices))
                return
            for index in indices:
                self._submit([index])
            return
        self._pending.append((indices, self._pool.submit(call)))

    def _collect(self) -> None:
        """Take in answers.

        A call about several samples that failed as a whole is made again for each sample alone. So only the samples on
        which the function fails are lost.
        """
        while self._pending:
            pending, self._pending = self._pending, []
            for indices, future in pending:
                if self.given_up:
                    return
                answer = future.result()
                self.seconds.append(answer.seconds)
                if answer.failure is None:
                    self._keep_and_cache(indices, answer.outcomes)
                elif len(indices) > 1 and self._parameters.unit == "batch":
                    self.split = self.split or (len(indices), answer.failure)
                    for index in indices:
                        self._submit([index])
                else:
                    self._keep(indices, [answer.failure] * len(indices))

    def _keep(self, indices: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        self._outcomes.update(zip(indices, outcomes, strict=True))
        self._failures += sum(isinstance(outcome, Failure) for outcome in outcomes)

    def _keep_and_cache(self, indices: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        self._keep(indices, outcomes)
        if self._cache is None:
            return
        parts = [indices] if self._parameters.unit == "group" else [[index] for index in indices]
        for part in parts:
            scores = tuple(outcome for index in part if isinstance(outcome := self._outcomes[index], Score))
            if len(scores) == len(part):
                self._cache.put(self._key(part), scores)

    def _not_cached(self, unit: range) -> list[int]:
        """Return the numbers of the samples without a cached outcome; the others get theirs from the cache."""
        if self._cache is None:
            return list(unit)
        parts = [list(unit)] if self._parameters.unit == "group" else [[index] for index in unit]
        missing: list[int] = []
        for part in parts:
            scores = self._cache.get(self._key(part))
            if scores is None:
                missing += part
            else:
                self._outcomes.update(zip(part, scores, strict=True))
        return missing

    def _key(self, indices: Sequence[int]) -> str:
        assert self._cache is not None
        samples = [self._samples[index] for index in indices]
        texts = tuple((s.prompt.text, s.prompt.token_ids, s.completion.text, s.completion.token_ids) for s in samples)
        try:
            call = self._call(indices)
        except RewardInputError:
            return ""  # such a call fails, and failures are not kept
        return self._cache.key(call, texts)

    def _call(self, indices: Sequence[int]) -> Call:
        return make_call(self._parameters, [self._samples[index] for index in indices], self._state)
