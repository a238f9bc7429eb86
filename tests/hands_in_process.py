"""A learner and an engine of this process as the hands of a run, to sample with them. No Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlkl.learner.learner import Learner
from rlkl.learner.teacher_views import teacher_views
from rlkl.rollout.engine import Request
from rlkl.types import Completion, Example, TeacherView


class HandsInProcess:
    """Samples and compares; see `rlkl.training.hands`. It lacks what a loop needs beside that."""

    weights: Any = None

    def __init__(self, learner: Learner, engine: Any) -> None:
        self.made, self.engine = learner, engine
        self.submitted: list[list[Request]] = []

    @property
    def sampler(self) -> Any:
        return self

    @property
    def learner(self) -> Any:
        return self

    def submit(self, requests: Sequence[Request]) -> None:
        self.submitted.append(list(requests))

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        """In two parts, the last completions first."""
        completions = list(enumerate(self.engine.generate(self.submitted[-1])))
        half = len(completions) // 2
        yield completions[half:]
        yield completions[:half]

    def teacher_views(self, examples: Sequence[Example]) -> list[TeacherView]:
        return teacher_views(self.made.preparer, examples)
