"""Events of a run on its time axis: alarms, failures, checkpoints and resumes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlkl.analysis.runs import Record, RunFolder
from rlkl.recipe.run_dir import numbered
from rlkl.tracking.alarms import RULE_ALARMS, Alarms
from rlkl.tracking.hacking.signals import read_signals
from rlkl.tracking.hacking.watch import levels_of
from rlkl.tracking.records.resumes import read_resumes

Kind = Literal["watch", "alarm", "failure", "checkpoint", "resume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of one run."""

    step: int
    kind: Kind
    name: str
    text: str


def events_of(run: RunFolder) -> list[Event]:
    """Return the events of a run by step."""
    found = [*_watch(run.metrics), *_alarms(run.metrics), *_failures(run.path), *_folders(run.path)]
    found += [
        Event(step=step, kind="resume", name="resumed", text=f"the run was resumed after step {step}")
        for step in read_resumes(run.path)
    ]
    return sorted(found, key=lambda event: event.step)


def _watch(records: Sequence[Record]) -> Iterator[Event]:
    """Yield an event whenever a signal of the hacking watch sets in: at 1, and again only after it fell below 0.8."""
    alarms = Alarms()
    for number, record in enumerate(records):
        for name in alarms.measure(levels_of(record)):
            level = record[f"watch/{name}"]
            text = _finding(records[: number + 1], name) or f"watch/{name} is {level:.2f}; its limit is 1"
            yield Event(step=int(record["step"]), kind="watch", name=name, text=text)


def _finding(records: Sequence[Record], name: str) -> str | None:
    """Return the size of the drift that tripped a signal, as the warning of the run gave it."""
    monitor = name.partition("/")[2]
    keys = [key for key in (f"monitor/{monitor}", f"reward/{monitor}") if key in records[-1]]
    reading = read_signals(records, {monitor: keys[0]} if keys else {}).get(name)
    return None if reading is None else reading.finding


def _alarms(records: Sequence[Record]) -> Iterator[Event]:
    """Yield an event whenever a warning of the rule begins."""
    before = 0.0
    for record in records:
        now = record.get(RULE_ALARMS, 0.0)
        if now > before:
            text = f"{now:.0f} warnings of the rule are active; the log of the run has their texts"
            yield Event(step=int(record["step"]), kind="alarm", name="warning of the rule", text=text)
        before = now


def _failures(run_dir: Path) -> Iterator[Event]:
    by_step: dict[int, Counter[str]] = {}
    for failure in read_lines(run_dir / "failures"):
        by_step.setdefault(int(failure["step"]), Counter())[f"{failure['reward']} ({failure['kind']})"] += 1
    for step, counts in by_step.items():
        listed = ", ".join(f"{name}: {count}" for name, count in counts.most_common())
        yield Event(step=step, kind="failure", name="failed scores", text=listed)


def _folders(run_dir: Path) -> Iterator[Event]:
    for step, folder in numbered(run_dir / "checkpoints", "step_*"):
        yield Event(step=step, kind="checkpoint", name="checkpoint", text=f"checkpoints/{folder.name}")


def read_lines(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of all ``step_*.jsonl`` of a folder, with the step of their file, by step.

    A last line that is still being written is left out.
    """
    for step, path in numbered(folder, "step_*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield {**json.loads(line), "step": step}
            except ValueError:
                continue
