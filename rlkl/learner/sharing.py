"""Prove that the driver and the learner see one run folder, which they may do from two machines."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlkl.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The other process's view of the run folder."""

    machine: str
    problem: str = ""
    """Reason why it does not see the token, or cannot answer; empty if it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A file with a random text in the run folder, and beside it the place of the answer."""

    path: Path
    text: str

    @property
    def answer(self) -> Path:
        """The file into which the other process writes the text."""
        return self.path.with_suffix(".answer")

    def look(self) -> Sighting:
        """Read the token and answer it; the other process calls this."""
        machine = platform.node()
        try:
            if self.path.read_text() != self.text:
                return Sighting(machine=machine, problem=f"it sees another file at {self.path}")
            self.answer.write_text(self.text)
        except OSError as error:
            return Sighting(machine=machine, problem=str(error))
        return Sighting(machine=machine)

    def check(self, sighting: Sighting, who: str) -> None:
        """Raise `EnvironmentProblem` unless the other process saw the token and its answer arrived here."""
        problem = sighting.problem
        if not problem and not (self.answer.is_file() and self.answer.read_text() == self.text):
            problem = f"what it writes there does not arrive on this machine ({platform.node()})"
        if problem:
            run_dir = self.path.parent
            raise EnvironmentProblem(
                f"run.dir = {run_dir} is not shared with {who}, which runs on {sighting.machine}: {problem}. "
                "Checkpoints and the trained policy would stay there. Set run.dir to a folder on a file system that "
                f"all machines mount at one path, or start the run on {sighting.machine}"
            )


@contextmanager
def token_in(run_dir: Path) -> Iterator[Token]:
    """Leave a token in the run folder while the block runs."""
    text = uuid.uuid4().hex
    token = Token(path=run_dir / f".shared-{text[:8]}.token", text=text)
    token.path.write_text(text)
    try:
        yield token
    finally:
        for path in (token.path, token.answer):
            path.unlink(missing_ok=True)
