"""The three hands of the loop: it samples, learns and publishes through them. `rlkl.actors.hands` has the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rlkl.learner.manifest import SavedFile
from rlkl.rollout.engine import Request
from rlkl.types import Completion, Example, Learned, Probe, Selection, TeacherView

Finished = list[tuple[int, Completion]]
"""Completions with their requests' numbers."""


class Sampler(Protocol):
    """Samples completions with the weights that were published last. It is used on one thread at a time."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Start sampling one completion a request."""
        ...

    def submit_together(self, requests: Sequence[Request], *, first: int) -> None:
        """Start sampling on one worker, beside the requests that run; number the requests from ``first``."""
        ...

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        """Yield the completions of the submitted requests as they finish, with their requests' numbers.

        A part may be empty. Requests that are submitted meanwhile are included.
        """
        ...

    def forget(self) -> None:
        """Let engines drop what they keep of earlier requests. No request is unfinished."""
        ...

    @property
    def idle_s(self) -> float:
        """Seconds without a request, since the start: the mean over the workers."""
        ...


class LearnerHandle(Protocol):
    """The learner, perhaps on another machine."""

    def learn(self, selection: Selection, *, step: int, probes: Sequence[Probe], samples: bool) -> Learned:
        """Train on a selection. First compute the log-probs of ``probes`` with the weights before the step.

        ``samples``: also return token columns and pictures for the sample files.
        """
        ...

    def keeps_reference(self) -> bool:
        """Return whether the reference is loaded, so that `reference_gaps` can be measured."""
        ...

    def reference_gaps(self, examples: Sequence[Example]) -> Sequence[float]:
        """Return the sum over each response of log policy - log reference at temperature 1 (nats).

        With ``rollout.placement: colocated``, engines sleep from then on until the next publish.
        """
        ...

    def teacher_views(self, examples: Sequence[Example]) -> Sequence[TeacherView]:
        """Compare completions with the teacher of the rule's `SampleCorrection`, with the weights as they are now.

        Not with ``rollout.placement: colocated``: the engines would have to sleep between two of their requests.
        """
        ...

    def finished_steps(self) -> int:
        """Return the number of steps in the weights. An earlier call that still runs ends first."""
        ...

    def save(self, folder: Path) -> Mapping[str, SavedFile]:
        """See `Learner.save`."""
        ...

    def restore(self, folder: Path) -> None:
        """See `Learner.restore`."""
        ...


class WeightSync(Protocol):
    """Publishes the learner's weights to the sampler, and proves each publish and the export."""

    @property
    def wants_probes(self) -> bool:
        """Whether the learner must compute the log-probs of the next step's probes before that step."""
        ...

    def publish(self, version: int, probes: Sequence[Probe]) -> float:
        """Publish and prove it; return the largest log-prob difference (nats). Raises `WeightSyncError`."""
        ...

    def check_export(self, folder: Path, probes: Sequence[Probe]) -> None:
        """Prove that the policy in ``folder`` is the learner's; raises `ExportError`. The learner ends with it."""
        ...


class Hands(Protocol):
    """The three of them."""

    @property
    def sampler(self) -> Sampler: ...

    @property
    def learner(self) -> LearnerHandle: ...

    @property
    def weights(self) -> WeightSync: ...
