"""Print the progress of a run: a live view in a terminal, plain lines elsewhere, and a summary at the end."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rlkl.tracking.console.view import RunState, RunView, duration, number, one_line, sample_lines

PLAIN_INTERVAL_S = 2.0
"""Plain lines come no faster than this, but for the first and the last step."""
PLAIN_WIDTH = 110
PLAIN_SAMPLES = 2
"""Sample lines under a plain line."""
REFRESHES_PER_S = 4.0


class RunConsole(Protocol):
    """Shows a `RunState`, which the tracker keeps up to date."""

    def note(self) -> None:
        """Show the state's note, which has changed."""
        ...

    def step(self, *, with_samples: bool) -> None:
        """Show a step that was added to the state; ``with_samples``: its samples were recorded as well."""
        ...

    def evaluated(self) -> None:
        """Show an evaluation that was added to the state."""
        ...

    def close(self) -> None:
        """Give the terminal back."""
        ...


def open_console(setting: Literal["auto", "live", "plain"], state: RunState) -> RunConsole:
    """Open the console of ``tracking.console``.

    With ``auto`` it is live if standard output is a terminal with a cursor.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal's encoding lacks
    console = Console()
    if setting == "live" or (setting == "auto" and console.is_terminal and not console.is_dumb_terminal):
        return LiveConsole(state, console)
    return PlainConsole(state, console)


class PlainConsole:
    """One line a step at most, for files and pipes."""

    def __init__(self, state: RunState, console: Console) -> None:
        self._state = state
        self._console = console
        self._last_line = float("-inf")

    def note(self) -> None:
        if self._state.note:
            self._print(Text(one_line(self._state.note)))

    def step(self, *, with_samples: bool) -> None:
        now = time.monotonic()
        is_last = self._state.finished == self._state.recipe.steps
        if now - self._last_line < PLAIN_INTERVAL_S and not is_last:
            return
        self._last_line = now
        self._print(Text(plain_line(self._state)))
        if with_samples:
            for sample in self._state.samples[:PLAIN_SAMPLES]:
                for line in sample_lines(sample, self._state.samples_mean, PLAIN_WIDTH, lines=1):
                    self._print(line)

    def evaluated(self) -> None:
        self._print(Text(evaluation_line(self._state.evaluations[-1])))

    def close(self) -> None:
        pass

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def plain_line(state: RunState) -> str:
    """Return one line on the latest step.

    ``step 12/100  reward 0.812  KL 0.034  entropy 0.410  grad 0.210  4,200 tokens/s  0.81 s  0:01:10 left``
    """
    now = state.latest
    parts = [f"step {state.finished:>{len(str(state.recipe.steps))}}/{state.recipe.steps}"]
    for key, template in (
        ("reward/mean", "reward {}"),
        ("kl/policy_to_reference", "KL {}"),
        ("entropy/policy", "entropy {}"),
        ("optim/grad_norm", "grad {}"),
        ("rollout/mismatch_max", "mismatch {}"),
        ("rollout/tokens_per_s", "{} tokens/s"),
    ):
        if key in now:
            parts.append(template.format(number(now[key])))
    if "time/step_s" in now:
        parts.append(f"{now['time/step_s']:.2f} s")
    if (left := state.seconds_left()) is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def evaluation_line(record: Mapping[str, float]) -> str:
    """Return one line on an evaluation.

    ``evaluation after step 20: mean 0.712 +- 0.012  greedy 0.844  pass@4 0.912  kl 0.310  2.1 s``
    """
    parts = []
    for key, value in record.items():
        name = key.removeprefix("eval/")
        if key == name or name.endswith("_se") or name in ("length_mean", "truncated_fraction", "failed"):
            continue
        if name not in ("mean", "greedy", "kl") and value == record.get("eval/mean"):  # the only reward, and pass@1
            continue
        error = record.get(f"{key}_se")
        parts.append(f"{name} {number(value)}" + ("" if error is None else f" +- {number(error)}"))
    return f"evaluation after step {record['step']:.0f}: {'  '.join(parts)}  {record['time/eval_s']:.1f} s"


class LiveConsole:
    """A view that stays at the bottom of the terminal; whatever else is printed or logged appears above it."""

    def __init__(self, state: RunState, console: Console) -> None:
        self._live = Live(RunView(state), console=console, refresh_per_second=REFRESHES_PER_S)
        stdout, stderr = sys.stdout, sys.stderr
        self._live.start()
        # Live replaced the two streams; logging handlers made before still hold the old ones.
        self._moved = [
            (handler, handler.setStream(sys.stderr if handler.stream is stderr else sys.stdout))
            for handler in _stream_handlers()
            if handler.stream in (stdout, stderr)
        ]

    def note(self) -> None:
        pass  # drawn with the next refresh

    def step(self, *, with_samples: bool) -> None:
        pass  # drawn with the next refresh

    def evaluated(self) -> None:
        pass  # drawn with the next refresh

    def close(self) -> None:
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved = []
        self._live.stop()


def _stream_handlers() -> list[logging.StreamHandler]:
    loggers = (logging.getLogger(), logging.getLogger("rlkl"))
    return [handler for logger in loggers for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]


def print_summary(heading: str, places: dict[str, Path | str], state: RunState) -> None:
    """Print the results of the whole run, also after a resume, then the places of all files."""
    rows: dict[str, str] = {}
    rewards = state.series("reward/mean")
    if rewards:
        rows["reward"] = f"{number(rewards[0])} -> {number(rewards[-1])}   (best {number(max(rewards))})"
    if held_out := state.held_out():
        best = max(held_out)
        at = next(one["step"] for one in state.evaluations if one.get(state.held_out_key or "") == best)
        shown = f"{number(held_out[0])} -> {number(held_out[-1])}   (best {number(best)} at step {at:.0f})"
        rows["held-out"] = shown
    if "kl/policy_to_reference" in state.latest:
        rows["KL to reference"] = f"{number(state.latest['kl/policy_to_reference'])} nats per sequence"
    rows["sampled"] = f"{state.tokens:,} tokens"
    folder = f"{Path.cwd()}{os.sep}"  # paths as one would type them
    rows |= {name: str(place).replace(folder, "") for name, place in places.items()}
    console = Console(highlight=False)
    steps = f"{state.finished} of {state.recipe.steps} steps in {duration(state.seconds_elapsed())}"
    resumed = f"; resumed after step {state.first_step}" if state.first_step else ""
    console.print(Text(f"\n{heading} {steps}{resumed}", style="bold"))
    width = max(len(name) for name in rows)
    for name, text in rows.items():
        line = Text.assemble((f"  {name:<{width}}  ", "bright_black"), one_line(text))
        console.print(line, soft_wrap=True)
