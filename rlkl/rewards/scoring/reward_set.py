"""Scoring completions with a set of rewards, round by round, each as soon as it is there."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from rlkl.errors import RewardError, RewardInputError
from rlkl.recipe import Normalize, RewardSection
from rlkl.recipe.reward_section import DEADLINE_S, Place
from rlkl.rewards.execution.call import RewardFunction, raised
from rlkl.rewards.execution.pool import InlinePool, Pool, Worker, WorkerPool, WorkerSpec, thread_pool
from rlkl.rewards.execution.process import ProcessWorker
from rlkl.rewards.execution.reward_calls import RewardCalls
from rlkl.rewards.function.arguments import Sample, State
from rlkl.rewards.function.columns import check_names, lacks
from rlkl.rewards.function.result import Failure
from rlkl.rewards.function.signature import Parameters
from rlkl.rewards.function.source import Source
from rlkl.rewards.scoring.aggregate import RewardOutcomes, SampleReward, aggregate
from rlkl.rewards.scoring.cache import ScoreCache
from rlkl.rewards.scoring.failures import FailedScore, FailureLog
from rlkl.seeds import derive_seed
from rlkl.types import Completion, Prompt, step_index, step_number

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
_BATCH_SIZE = 16
_SHOWN_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedReward:
    """One reward, ready to be started."""

    name: str
    weight: float
    section: RewardSection
    source: Source | None
    """None: a function that was given from Python."""
    function: RewardFunction
    parameters: Parameters
    fingerprint: str
    """Hash of the source and the settings."""
    key: str = ""
    """Its section in the recipe, such as ``rewards[0]``; empty if the function was given from Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRound:
    """The rewards of a round, the time of its calls, and its failures."""

    scored: list[SampleReward]
    """One a sample, in order."""
    calls_s: Mapping[str, list[float]]
    """Seconds of each call, by reward."""
    failures: list[FailedScore]


class RewardSet:
    """All rewards of a run. Made by `load_rewards`; `start` it before scoring and `close` it in the end."""

    def __init__(
        self, rewards: Sequence[LoadedReward], *, normalize: Normalize = "none", optional: bool = False
    ) -> None:
        self.rewards = tuple(rewards)
        self.normalize: Normalize = normalize
        self.optional = optional
        self.failures: FailureLog | None = None
        self._pools: dict[str, Pool] = {}
        self._caches: dict[str, ScoreCache] = {}

    @property
    def trains(self) -> bool:
        """Whether one of the rewards is part of the sum that rules see."""
        return any(reward.section.role == "train" for reward in self.rewards)

    @property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each reward's source and settings, by name: a checkpoint keeps them, and a resume compares."""
        return {reward.name: reward.fingerprint for reward in self.rewards}

    def for_evaluation(self) -> RewardSet:
        """Return a set of the same rewards in the same workers, without normalisation and without a log of failures.

        Use it while this set is started; closing this set ends both.
        """
        shared = RewardSet(self.rewards)
        shared._pools, shared._caches = self._pools, self._caches
        return shared

    def check(self, prompts: Sequence[Prompt], *, of: str = "data.source") -> list[str]:
        """See on all rows, without calling anything, that every argument of every reward can be filled in.

        Return a warning for each argument that some rows cannot fill, if ``on_error`` lets the run go on without their
        samples. ``of``: the source of the rows, for messages.

        Raises:
            RewardInputError: no row has an argument; the message lists the names that there are. Or some rows lack it,
                and the reward's ``on_error`` is raise.
        """
        warnings = []
        for reward in self.rewards if prompts else ():
            check_names(reward.name, reward.parameters, prompts)
            for lack in lacks(reward.parameters, prompts):
                problem = f"reward '{reward.name}': {lack} of {of}"
                if reward.section.on_error == "raise":
                    raise RewardInputError(f"{problem}. {_ways_to_fill(reward)}")
                warnings.append(f"{problem}; {reward.key}.on_error = {reward.section.on_error} applies if it fails")
        return warnings

    def open_folder(self, run_dir: Path, *, first_step: int) -> None:
        """Keep failures and cached scores in ``run_dir``; what a resumed run does again is removed from the former."""
        self.failures = FailureLog(run_dir, first_step=first_step)
        for reward in self.rewards:
            if reward.section.cache:
                self._caches[reward.name] = ScoreCache(
                    run_dir / "reward_cache", name=reward.name, fingerprint=reward.fingerprint
                )

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Bring up all rewards that are not up yet, except Ray actors; raises `RewardInputError`.

        Processes start side by side; inline and thread rewards are set up on this thread meanwhile.
        """
        missing = [reward for reward in self.rewards if reward.name not in self._pools]
        processes = {reward.name: _processes(reward, timeout_s) for reward in missing if _is_in(reward, "process")}
        self._pools |= processes
        for reward in missing:
            section, name = reward.section, reward.name
            if section.place == "inline":
                self._pools[name] = InlinePool(reward.function, name)
            elif section.place == "thread":
                self._pools[name] = thread_pool(
                    reward.function, name, workers=section.workers, timeout_s=section.deadline_s
                )
        for pool in processes.values():
            pool.ready()

    def start_actors(self, make_worker: Callable[[WorkerSpec], Worker], *, timeout_s: float) -> None:
        """Bring up the rewards in mode ``actor``, each worker made by ``make_worker``; raises `RewardInputError`."""
        for reward in self.rewards:
            if _is_in(reward, "actor") and reward.name not in self._pools:
                spec = _worker_spec(reward, timeout_s)
                pool = WorkerPool([make_worker(spec) for _ in range(reward.section.workers)])
                self._pools[reward.name] = pool
                pool.ready()

    def close(self) -> None:
        """End all workers; safe to call twice. What a reward's ``close`` raises is logged: all scores are there."""
        for holders in (self._pools, self._caches):
            while holders:
                name, holder = holders.popitem()
                try:
                    holder.close()
                except (Exception, SystemExit) as error:
                    logger.warning("reward '%s' could not be closed: %s", name, raised(error).traceback)

    def open_round(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int | Sequence[int],
        state: State,
        draws: Sequence[int],
        tolerated_of: int = 0,
    ) -> Round:
        """Score ``samples`` completions of each prompt. ``draws`` numbers the prompts over the whole run.

        ``tolerated_of``: a reward may fail on its ``max_failed_fraction`` of so many samples, if the round has fewer.
        """
        self.start()
        counts = [samples] * len(prompts) if isinstance(samples, int) else samples
        return Round(self, prompts, counts=counts, state=state, draws=draws, tolerated_of=tolerated_of)

    def pool_of(self, name: str) -> Pool:
        return self._pools[name]

    def cache_of(self, name: str) -> ScoreCache | None:
        return self._caches.get(name)

    def score(self, prompt: Prompt, completions: Sequence[Completion], *, step: int, seed: int) -> list[SampleReward]:
        """Score the completions of one prompt, in order. ``completions`` carry their text.

        Raises:
            RewardError: a function failed, and its ``on_error`` is raise.
        """
        state = State(step=step_number(step), steps=step_number(step), epoch=0.0, seed=seed)
        scoring = self.open_round([prompt], samples=len(completions), state=state, draws=[0])
        for index, completion in enumerate(completions):
            scoring.add(index, completion)
        return scoring.finish().scored


class Round:
    """One round of samples: `add` each as it comes, then `finish`. Samples are numbered prompt by prompt."""

    def __init__(
        self,
        rewards: RewardSet,
        prompts: Sequence[Prompt],
        *,
        counts: Sequence[int],
        state: State,
        draws: Sequence[int],
        tolerated_of: int = 0,
    ) -> None:
        self._set = rewards
        self._tolerated_of = max(sum(counts), tolerated_of)
        self._prompts, self._draws, self._state = prompts, draws, state
        starts = list(accumulate(counts, initial=0))
        self._groups = [range(start, end) for start, end in pairwise(starts)]
        self._prompt_of = [number for number, count in enumerate(counts) for _ in range(count)]
        self._completions: list[Completion | None] = [None] * starts[-1]
        self._calls = {reward.name: self._calls_of(reward) for reward in rewards.rewards}

    def add(self, index: int, completion: Completion) -> None:
        """Add sample ``index`` with its text, and start the calls that it completes."""
        self._completions[index] = completion
        for name, calls in self._calls.items():
            seed = derive_seed(self._state.seed, "reward", step_index(self._state.step), *self._place(index), name)
            calls.add(index, Sample(prompt=self._prompt(index), completion=completion, rng_seed=seed))

    @property
    def ready(self) -> bool:
        """Whether all samples have been added and no call runs elsewhere, so that `finish` returns soon."""
        return all(completion is not None for completion in self._completions) and all(
            calls.ready for calls in self._calls.values()
        )

    def finish(self) -> ScoredRound:
        """Wait for all scores, or until the failures of one reward have to stop the run.

        Raises:
            RewardError: a reward with ``on_error: raise`` failed, or a reward failed on too many samples.
        """
        collected: list[RewardOutcomes] = []
        for reward in self._set.rewards:
            calls = self._calls[reward.name]
            outcomes = calls.finish()
            if calls.split is not None:
                samples, failure = calls.split
                why = f"{failure.what}: {failure.detail}" if failure.detail else failure.what
                logger.warning(
                    "reward '%s': a call with %d samples %s; each of them was scored alone", reward.name, samples, why
                )
            collected.append(
                RewardOutcomes(name=reward.name, weight=reward.weight, section=reward.section, outcomes=outcomes)
            )
            if calls.given_up:
                break
        failures = [self._failed(reward, index) for reward in collected for index in _failed_indices(reward)]
        if self._set.failures is not None:
            self._set.failures.write(step_index(self._state.step), failures)
        for loaded, reward in zip(self._set.rewards, collected, strict=False):
            self._raise_if_asked(loaded, reward)
            self._raise_if_too_many(loaded, reward)
        scored = aggregate(collected, self._groups, self._set.normalize)
        if self._set.optional and not self._set.trains:  # rules never see samples without a reward
            scored = [replace(one, reward=0.0, raw_reward=0.0) for one in scored]
        return ScoredRound(
            scored=scored,
            calls_s={name: calls.seconds for name, calls in self._calls.items()},
            failures=failures,
        )

    def _calls_of(self, reward: LoadedReward) -> RewardCalls:
        count, unit, inline = len(self._completions), reward.parameters.unit, _is_in(reward, "inline")
        if unit == "group":
            units = [group for group in self._groups if group]
        else:
            size = reward.section.batch_size or (max(count, 1) if inline else _BATCH_SIZE)
            size = 1 if unit == "sample" else size
            units = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return RewardCalls(
            parameters=reward.parameters,
            state=self._state,
            pool=self._set.pool_of(reward.name),
            cache=self._set.cache_of(reward.name),
            units=units,
            most_failures=_most_failures(reward.section, self._tolerated_of),
        )

    def _prompt(self, index: int) -> Prompt:
        return self._prompts[self._prompt_of[index]]

    def _place(self, index: int) -> tuple[str, int]:
        """Return the prompt's id, and the number of the sample among the prompt's samples."""
        number = self._prompt_of[index]
        return self._prompts[number].id, index - self._groups[number].start

    def _where(self, index: int) -> str:
        completion = self._completions[index]
        assert completion is not None
        shown = completion.text[:_SHOWN_CHARACTERS] + ("..." if len(completion.text) > _SHOWN_CHARACTERS else "")
        return f"on prompt {self._prompt(index).id}, completion {shown!r}"

    def _failed(self, reward: RewardOutcomes, index: int) -> FailedScore:
        failure, completion = reward.outcomes[index], self._completions[index]
        assert isinstance(failure, Failure)
        assert completion is not None
        prompt_id, sample_index = self._place(index)
        return FailedScore(
            reward=reward.name,
            kind=failure.kind,
            error=f"{failure.what}: {failure.detail}" if failure.detail else failure.what,
            on_error=reward.section.on_error,
            prompt_id=prompt_id,
            draw=self._draws[self._prompt_of[index]],
            sample_index=sample_index,
            prompt=self._prompt(index).text,
            completion=completion.text,
            traceback=failure.traceback,
        )

    def _raise_if_asked(self, loaded: LoadedReward, reward: RewardOutcomes) -> None:
        for index in _failed_indices(reward) if reward.section.on_error == "raise" else ():
            failure = reward.outcomes[index]
            assert isinstance(failure, Failure)
            told = f"reward '{reward.name}' {failure.what} {self._where(index)}"
            told += f": {failure.detail}" if failure.detail else ""
            way_on = f"{loaded.key}.on_error=drop_sample" if loaded.key else ""
            if self._set.failures is not None:
                told += f"\nIts stack is in {self._set.failures.path(step_index(self._state.step))}."
                told += f" {way_on} leaves such samples out, and the run goes on." if way_on else ""
            error = RewardError(told)
            error.way_on = way_on
            raise error from failure.cause

    def _raise_if_too_many(self, loaded: LoadedReward, reward: RewardOutcomes) -> None:
        failed, limit = _failed_indices(reward), reward.section.max_failed_fraction
        if len(failed) <= _most_failures(reward.section, self._tolerated_of):
            return
        known = sum(outcome is not None for outcome in reward.outcomes)
        early = "" if known == len(reward.outcomes) else f" ({known} were scored by then)"
        kinds = Counter(f.kind for index in failed if isinstance(f := reward.outcomes[index], Failure))
        first = self._failed(reward, failed[0])
        log = self._set.failures
        kept = f" All are in {log.path(step_index(self._state.step))}." if log is not None else ""
        raise too_many_failed(
            loaded,
            f"failed on {len(failed)} of {len(reward.outcomes)} samples{early} "
            f"({', '.join(f'{kind} {count}' for kind, count in kinds.most_common())}), more than max_failed_fraction = "
            f"{limit:g}. The first: {first.error}, {self._where(failed[0])}.{kept}",
        )


def too_many_failed(reward: LoadedReward, problem: str) -> RewardError:
    """Return the error for a reward that fails on more samples than its section allows."""
    key = f"{reward.key or 'rewards[]'}.max_failed_fraction"
    error = RewardError(f"reward '{reward.name}' {problem} Mend the reward, or raise {key}")
    error.way_on = f"{key}=1" if reward.key else ""
    return error


def _ways_to_fill(reward: LoadedReward) -> str:
    skip = "; or set on_error=drop_sample for this reward to leave out their samples" if reward.key else ""
    return (
        "Fill in or remove these rows; give the parameter a default, or annotate it with `| None` if null is a value"
        f"{skip}"
    )


def _most_failures(section: RewardSection, samples: int) -> int:
    """Return the number of a round's samples that may fail before the run stops."""
    return 0 if section.on_error == "raise" else math.floor(section.max_failed_fraction * samples)


def _is_in(reward: LoadedReward, place: Place) -> bool:
    return reward.section.place == place


def _processes(reward: LoadedReward, start_timeout_s: float) -> WorkerPool:
    spec = _worker_spec(reward, start_timeout_s)
    return WorkerPool([ProcessWorker(spec) for _ in range(reward.section.workers)], together=True)


def _failed_indices(reward: RewardOutcomes) -> list[int]:
    return [index for index, outcome in enumerate(reward.outcomes) if isinstance(outcome, Failure)]


def _worker_spec(reward: LoadedReward, start_timeout_s: float) -> WorkerSpec:
    assert reward.source is not None, "functions given from Python run inline"
    section = reward.section
    return WorkerSpec(
        name=reward.name,
        source=reward.source,
        timeout_s=section.deadline_s or DEADLINE_S,
        start_timeout_s=start_timeout_s,
        memory_mb=section.memory_mb,
        cpus=section.cpus,
        gpus=section.gpus,
    )
