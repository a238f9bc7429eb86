"""Runs the work of a sweep, several children at a time, and ends them if the sweep is interrupted."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rlkl.analysis.sweep_plan import PlannedArm
from rlkl.errors import EnvironmentProblem, InputError
from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe
from rlkl.recipe.resources import place_on_machine
from rlkl.sweeps.child import open_log
from rlkl.sweeps.work import Outcome, Work
from rlkl.system.interrupt import StopRequest
from rlkl.system.machine import Machine

_POLL_S = 0.1


@dataclass(slots=True, kw_only=True)
class Done:
    """Finished work."""

    work: Work
    outcome: Outcome
    seconds: float | None
    """Seconds since its first child started; None: it was done by an earlier sweep's child."""


def run_all(
    works: Sequence[Work],
    places: Sequence[Mapping[str, str]],
    stop: StopRequest,
    report: Callable[[Done], None],
    note: Callable[[str], None],
) -> list[Done]:
    """Do all work, as many pieces at a time as there are ``places``, and return it as it was finished.

    A place is the environment of the work's children.

    Once ``stop`` is set, the children are asked to save and end, and nothing new starts. A second signal ends them at
    once. ``report`` gets each finished piece, ``note`` a sentence on anything unusual.
    """
    waiting = sorted(works, key=lambda work: not _is_held(work))  # what an orphan works on takes a place at once
    free = list(places)
    active: list[Work] = []
    done: list[Done] = []
    is_stopping = False
    try:
        while active or (waiting and not is_stopping):
            while waiting and free and not is_stopping:
                active.append(waiting.pop(0))
                active[-1].environment = free.pop(0)
            for work in list(active):
                if (finished := _look_at(work, is_stopping, note)) is not None:
                    active.remove(work)
                    free.append(work.environment)
                    done.append(finished)
                    report(finished)
            if stop.signal_number is not None and not is_stopping:
                is_stopping = True
                note(f"stopping: {len(active)} run(s) finish their step and save")
                _stop(active)
            time.sleep(_POLL_S)
    except BaseException:
        _stop(active)
        for work in active:
            if work.child is not None:
                work.child.wait()
        raise
    return done


def _look_at(work: Work, is_stopping: bool, note: Callable[[str], None]) -> Done | None:
    """Start the work's next child, or look at its current one."""
    if work.child is None and is_stopping:
        return Done(work=work, outcome="interrupted", seconds=None)
    before = work.waits_for
    outcome = work.step(may_go_on=not is_stopping)
    if work.waits_for != before:
        note(f"{work.label}: waits for {work.waits_for}, which still works on it")
    if outcome is None:
        return None
    return Done(work=work, outcome=outcome, seconds=None if work.started is None else time.monotonic() - work.started)


def _stop(active: Sequence[Work]) -> None:
    for work in active:
        if work.child is not None:
            work.child.stop()


def _is_held(work: Work) -> bool:
    if not work.log.exists():
        return False
    log = open_log(work.log)
    if log is None:
        return True
    log.close()
    return False


def default_jobs(arms: Sequence[PlannedArm], machine: Machine) -> int:
    """Return how many runs this machine holds at a time, by its cores and its memory; 1 on GPUs and on a cluster."""
    return max(min(_jobs_of(load_recipe(arm.recipe, *arm.points[0].overrides), machine) for arm in arms), 1)


def _jobs_of(recipe: Recipe, machine: Machine) -> int:
    if machine.gpus or recipe.cluster.resolved_address is not None:
        return 1
    most = machine.cpus // max(threads_of(recipe, machine), 1)
    while most > 1 and not _fits(recipe, replace(machine, memory_gib=machine.memory_gib / most)):
        most -= 1
    return most


def threads_of(recipe: Recipe, machine: Machine) -> int:
    """Return the CPU threads of a run that work at the same time."""
    rollout = recipe.rollout
    sampling = rollout.workers * (rollout.threads or math.ceil(machine.cpus / max(rollout.workers, 1)))
    learning = recipe.learner.ranks * (recipe.learner.threads or math.ceil(machine.cpus / recipe.learner.ranks))
    return max(sampling, learning) if rollout.schedule == "alternate" else sampling + learning


def _fits(recipe: Recipe, machine: Machine) -> bool:
    try:
        place_on_machine(recipe, machine, None)
    except EnvironmentProblem:
        return False
    return True


def places_of(jobs: int, machine: Machine) -> list[dict[str, str]]:
    """Return the environment of each job: its own GPUs if this machine has some and several jobs share them.

    Raises `InputError` if there are fewer GPUs than jobs.
    """
    if not machine.gpus or jobs == 1:
        return [{} for _ in range(jobs)]
    each = len(machine.gpus) // jobs
    if each == 0:
        raise InputError(
            f"--jobs {jobs}: this machine has {len(machine.gpus)} GPU(s), and each job needs one of its own; "
            f"lower --jobs to {len(machine.gpus)}"
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(len(machine.gpus))] if named is None else named.split(",")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[job * each : (job + 1) * each])} for job in range(jobs)]
