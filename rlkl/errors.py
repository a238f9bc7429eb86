"""The errors that rlkl raises on purpose. Each is also the standard-library error that a caller would expect."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class RlklError(Exception):
    """Base of all errors of rlkl. ``exit_code`` is the exit code of the command line."""

    exit_code = 1


class InputError(RlklError, ValueError):
    """The input cannot work: a recipe, a path, a data file or a reward. Nothing was computed."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe key is unknown or holds a value that is not allowed."""


class DataError(InputError):
    """A data source is missing, unreadable, or has no usable row."""


class RewardInputError(InputError):
    """A reward cannot be imported, or has a parameter that rlkl cannot fill."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, or belongs to another recipe."""


class RunInUseError(InputError):
    """Another process writes into the run folder, or may do so. The message names the process."""


class SaveError(RlklError, OSError):
    """A checkpoint could not be written whole."""


class EnvironmentProblem(InputError):
    """This machine or cluster lacks something that the recipe needs (a package, a GPU, CPUs)."""


class MissingSignalError(InputError, KeyError):
    """A rule asks for a per-token signal that the learner cannot supply."""

    def __init__(self, rule: str, signal: str, hint: str = "") -> None:
        self.rule, self.signal, self.hint = rule, signal, hint
        super().__init__(rule, signal, hint)  # the same arguments, so that it survives the way between processes

    def __str__(self) -> str:
        needed = f"update rule '{self.rule}' needs the signal {self.signal}, which this learner cannot compute."
        return f"{needed} {self.hint}".strip()


class RewardError(RlklError, RuntimeError):
    """A reward function raised, or returned something that is not a finite number."""

    way_on: str = ""
    """The override with which a run goes on although the reward fails; empty if there is none."""


class RolloutError(RlklError, RuntimeError):
    """A rollout engine failed or answered something impossible."""


class LearnerError(RlklError, RuntimeError):
    """A learner step produced a number that must not reach the weights (NaN, infinity)."""


class NumericalFault(LearnerError, RolloutError):
    """A loss, a gradient or a log-prob of a step is not finite. The weights are those of the step before."""


class WeightSyncError(RlklError, RuntimeError):
    """Published weights did not arrive, arrived changed, or did not change although the learner stepped."""


class PeerFailedError(WeightSyncError):
    """Another process that takes part in a publish failed. If its own error is known, that one is raised instead."""


class ExportError(RlklError, RuntimeError):
    """The exported policy is not what the learner holds. The run's checkpoint is complete."""


class DeadlineError(RlklError, TimeoutError):
    """A process did not answer within its deadline. The message names it."""


class ActorDiedError(RlklError, RuntimeError):
    """A Ray actor ended. The message names it and carries its cause."""


_WAYS_OUT = {
    errno.ENOSPC: "Free room on that disk, or write to another one",
    errno.EDQUOT: "Free room within your quota, or write to another disk",
    errno.EROFS: "Choose a folder that is not read-only",
    errno.EACCES: "Ask for the permission, or choose another file or folder",
    errno.EPERM: "Ask for the permission, or choose another file or folder",
    errno.ENOENT: "Check the name, and make the folders above it",
    errno.EISDIR: "Name a file in that folder",
    errno.ENOTDIR: "A part of that path is a file; choose another folder",
    errno.EEXIST: "A file is where a folder is needed; choose another folder",
    errno.EMFILE: "Raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "Close other programs: the whole machine has too many files open",
    errno.EIO: "The disk or the network file system fails; look at its logs",
}
_WITHOUT_FILENAME = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO)
"""Python leaves the file out of these when it writes to one that is open already."""


def about_files(error: OSError) -> str | None:
    """Return a sentence on an error of a file or a disk, with the way out; None if the error is of another kind."""
    if error.errno is None or (error.filename is None and error.errno not in _WITHOUT_FILENAME):
        return None
    place = "" if error.filename is None else f"{error.filename}: "
    way = _WAYS_OUT.get(error.errno, "Check that path")
    return f"{place}{error.strerror}. {way}. --debug shows where it happened"


def did_you_mean(word: str, choices: Iterable[str], *, folder: Path | None = None) -> str:
    """Return the end of an error message: the nearest choice if there is one, then all of them (at most 20).

    If the choices are files, ``folder`` is where they are: the nearest one is then written as a path to copy.

    >>> did_you_mean("anwser", ["prompt", "answer"])
    "did you mean 'answer'? Available: answer, prompt"
    """
    names = sorted(choices)
    if not names:
        return "there is none" if folder is None else f"nothing similar is in '{folder.absolute()}'"
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    near = get_close_matches(word, names, n=1)
    if not near:
        return f"available: {listed}"
    written = near[0] if folder is None else str(folder / near[0])
    return f"did you mean '{written}'?" + (f" Available: {listed}" if len(names) > 1 else "")
