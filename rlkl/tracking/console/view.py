"""The state of a run as the console knows it, and its picture for a terminal of any size."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from rlkl.recipe import Recipe
from rlkl.tracking.records.compact import CompactRecord
from rlkl.types import RolloutGroup

SHARES = (
    ("generation", "time/rollout_s", "blue"),
    ("reward", "time/reward_s", "yellow"),
    ("learner", "time/learner_s", "magenta"),
    ("publish", "time/publish_s", "cyan"),
)
"""Parts of a step: name, metric, colour. What is left of ``time/step_s`` is shown as other."""
RECENT_STEPS = 20
"""Steps that the time left and the shares are averaged over."""
SAMPLES_REFRESH_S = 3.0
"""Samples stay on the screen at least this long, so that they can be read."""
TALL_ROOM = 12
"""Lines for samples from which on a sample may take two."""
_MARKER = re.compile(r"<\|[^|<>]*\|>")
"""Special tokens as chat templates write them; they crowd out the words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout as shown."""

    prompt: str
    completion: str
    reward: float


@dataclass(slots=True, kw_only=True)
class RunState:
    """All that the console knows about a run. ``records`` and `update` take records of ``metrics.jsonl``."""

    recipe: Recipe
    records: list[Mapping[str, float]] = field(default_factory=list)
    """Every record so far, those from before a resume included."""
    evaluations: list[Mapping[str, float]] = field(default_factory=list)
    """Records of ``eval.jsonl``; the tracker adds to them."""
    first_step: int = 0
    """Steps that were finished before this process started."""
    samples: tuple[Sample, ...] = ()
    samples_step: int = 0
    samples_mean: float = 0.0
    note: str = ""
    tokens: int = 0
    """Sampled in all steps."""
    started: float = field(default_factory=time.monotonic)
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS + 1))
    _samples_since: float = float("-inf")
    _earlier_s: float = 0.0
    """Seconds of the steps that were finished before this process started."""

    def __post_init__(self) -> None:
        self.records[:] = [CompactRecord(record) for record in self.records]
        self._earlier_s = sum(record.get("time/step_s", 0.0) for record in self.records)
        self.tokens = sum(
            round(record.get("rollout/tokens_per_s", 0.0) * record.get("time/rollout_s", 0.0))
            for record in self.records
        )

    def update(self, record: Mapping[str, float], groups: Sequence[RolloutGroup]) -> None:
        now = time.monotonic()
        self._ends.append(now)
        self.records.append(CompactRecord(record))
        self.note = ""
        self.tokens += sum(len(rollout.completion.token_ids) for group in groups for rollout in group.rollouts)
        is_last = self.finished == self.recipe.steps
        if groups and (is_last or now - self._samples_since >= SAMPLES_REFRESH_S):
            self._samples_since = now
            self.samples_step = self.finished
            self.samples_mean = _mean([r.reward for group in groups for r in group.rollouts if r.scored])
            self.samples = tuple(_sample(group, number) for number, group in enumerate(groups) if group.rollouts)

    @property
    def finished(self) -> int:
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def latest(self) -> Mapping[str, float]:
        return self.records[-1] if self.records else {}

    def series(self, key: str) -> list[float]:
        """Return a metric over all steps that logged it."""
        return [record[key] for record in self.records if key in record]

    @property
    def held_out_key(self) -> str | None:
        """The metric that stands for the evaluations; None before the first one."""
        known = self.evaluations[-1] if self.evaluations else {}
        scores = [key for key in known if key.startswith("eval/") and not key.endswith("_se")]
        return next((key for key in ("eval/mean", *scores) if key in known), None)

    def held_out(self) -> list[float]:
        """Return `held_out_key` over all evaluations that measured it."""
        key = self.held_out_key
        return [record[key] for record in self.evaluations if key is not None and key in record]

    def seconds_elapsed(self) -> float:
        """Return the seconds of the whole run: the steps before a resume, and everything since this process started."""
        return self._earlier_s + time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """Estimate the seconds until the last step; None before two steps have ended."""
        if len(self._ends) < 2:
            return None
        per_step = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return per_step * (self.recipe.steps - self.finished)

    def time_shares(self) -> list[tuple[str, float, str]]:
        """Return name, share of the recent time and colour of each part of a step; nothing before the first step."""
        recent = [record for record in self.records[-RECENT_STEPS:] if "time/step_s" in record]
        total = sum(record["time/step_s"] for record in recent)
        if total <= 0:
            return []
        parts = [
            (name, sum(record[key] for record in recent if key in record) / total, color) for name, key, color in SHARES
        ]
        return [*parts, ("other", max(0.0, 1 - sum(share for _, share, _ in parts)), "bright_black")]


def _sample(group: RolloutGroup, number: int) -> Sample:
    """Return a different member of each group, so that the view shows good and bad completions."""
    rollout = group.rollouts[number % len(group.rollouts)]
    return Sample(prompt=group.prompt.text, completion=rollout.completion.text, reward=rollout.reward)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    label: str
    value: str
    detail: str
    series: Sequence[float]
    alarm: bool = False


class RunView:
    """Draws a `RunState` into whatever room there is; everything it needs is looked up anew at each drawing."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, ascii_only = options.max_width, options.ascii_only
        lines: list[Text | Table] = [self._title(width), self._progress(width, ascii_only), Text("")]
        rows = _metric_rows(self._state)
        lines.append(_metric_table(rows, width, ascii_only))
        used = 3 + len(rows)
        shares = self._state.time_shares()
        if shares:
            lines += [
                Text(""),
                _share_bar(shares, width, plain=ascii_only or console.color_system is None),
                _share_legend(shares, width),
            ]
            used += 3
        room = console.size.height - used - 3  # a blank line, the heading, and the line that the cursor stands on
        if self._state.samples and room > 0:
            heading = f"samples of step {self._state.samples_step}"
            lines += [Text(""), Text(heading, style="bold")]
            lines += self._samples(width, room)
        yield from lines

    def _samples(self, width: int, room: int) -> list[Text]:
        """Return as many samples as fit into ``room`` lines; long ones get two lines each if there is enough room."""
        shown: list[Text] = []
        for sample in self._state.samples:
            lines = sample_lines(sample, self._state.samples_mean, width, lines=2 if room >= TALL_ROOM else 1)
            if len(shown) + len(lines) > room:
                break
            shown += lines
        return shown

    def _title(self, width: int) -> Text:
        recipe = self._state.recipe
        name = Text.assemble(
            (recipe.run.name, "bold"),
            (f"  {recipe.update.rule}  {recipe.model.path}  ", "bright_black"),
            (one_line(self._state.note), "italic"),
        )
        name.truncate(width, overflow="ellipsis")
        return name

    def _progress(self, width: int, ascii_only: bool) -> Text:
        state = self._state
        left = state.seconds_left()
        counts = f" {state.finished}/{state.recipe.steps}"
        clock = f"  {duration(state.seconds_elapsed())}" + (f"  {duration(left)} left" if left is not None else "")
        bar = max(width - len(counts) - len(clock), 8)
        done = round(bar * min(state.finished / state.recipe.steps, 1))
        mark, rest = ("#", "-") if ascii_only else ("━", "━")
        line = Text.assemble((mark * done, "green"), (rest * (bar - done), "bright_black"), (counts, "bold"), clock)
        line.truncate(width)
        return line


def _metric_rows(state: RunState) -> list[_Row]:
    """Return one row for each quantity that the run logs."""
    now = state.latest
    rows = []
    if "reward/mean" in now:
        rewards = state.series("reward/mean")
        detail = f"first {number(rewards[0])}   best {number(max(rewards))}"
        rows.append(_Row(label="reward", value=number(now["reward/mean"]), detail=detail, series=rewards))
    if held_out := state.held_out():
        rows.append(_Row(label="held-out", value=number(held_out[-1]), detail=_held_out(state), series=held_out))
    for key, label, detail, template in (
        ("kl/policy_to_reference", "KL to reference", "kl/policy_to_reference_per_token", "nats/sequence   {} /token"),
        ("entropy/policy", "entropy", "entropy/policy", "nats/token"),
        ("optim/grad_norm", "gradient norm", "optim/lr", "learning rate {}"),
        ("rollout/mismatch_max", "mismatch", "rollout/mismatch_kl", "nats at most, sampler to learner"),
    ):
        if key in now:
            text = template.format(number(now[detail])) if detail in now else ""
            rows.append(_Row(label=label, value=number(now[key]), detail=text, series=state.series(key)))
    if now.get("rollout/staleness_max", 0.0) > 0:
        rows.append(
            _Row(
                label="staleness",
                value=number(now["rollout/staleness_mean"]),
                detail=f"versions, at most {now['rollout/staleness_max']:.0f}",
                series=state.series("rollout/staleness_mean"),
            )
        )
    if "weights/verified" in now:
        verified = now["weights/verified"] == 1
        version = f"version {now['weights/version']:.0f}" if "weights/version" in now else ""
        rows.append(
            _Row(
                label="weights",
                value="verified" if verified else "WRONG",
                detail=version,
                series=(),
                alarm=not verified,
            )
        )
    if "rollout/tokens_per_s" in now:
        parts = [
            f"{name} {text.format(now[key])}"
            for key, name, text in (
                ("rollout/length_mean", "length", "{:.1f}"),
                ("rollout/truncated_fraction", "cut off", "{:.1%}"),
                ("rollout/empty_fraction", "empty", "{:.1%}"),
            )
            if key in now
        ]
        key = "rollout/tokens_per_s"
        rows.append(_Row(label="tokens/s", value=number(now[key]), detail="   ".join(parts), series=state.series(key)))
    return rows


def _held_out(state: RunState) -> str:
    last = state.evaluations[-1]
    error = last.get(f"{state.held_out_key}_se")
    spread = "" if error is None else f"+- {number(error)}   "
    return f"{spread}first {number(state.held_out()[0])}   at step {last['step']:.0f}"


def _metric_table(rows: Sequence[_Row], width: int, ascii_only: bool) -> Table:
    """Build a table of label, value, detail and curve; a narrow terminal shows no detail."""
    label = max((len(row.label) for row in rows), default=0)
    detail = max((len(row.detail) for row in rows), default=0)
    value = max((len(row.value) for row in rows), default=0)
    room = width - label - value - 4
    with_detail = room >= detail
    curve = min(room - detail - 2 if with_detail else room, 60)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for row in rows:
        cells = [row.label, Text(row.value, style="bold red" if row.alarm else "bold")]
        if with_detail:
            cells.append(Text(row.detail, style="bright_black"))
        if curve >= 8:
            cells.append(Text(sparkline(row.series, curve, ascii_only=ascii_only), style="cyan"))
        table.add_row(*cells)
    return table


def _share_bar(shares: Sequence[tuple[str, float, str]], width: int, *, plain: bool) -> Text:
    """Cut one line up by share. Without colours each part is drawn by its initial."""
    bar, drawn, upto = Text(), 0, 0.0
    for name, share, color in shares:
        upto += share
        end = min(round(width * upto), width)
        bar.append((name[0] if plain else "█") * (end - drawn), style=color)
        drawn = end
    return bar


def _share_legend(shares: Sequence[tuple[str, float, str]], width: int) -> Text:
    legend = Text.assemble(*((f"{name} {share:.0%}   ", color) for name, share, color in shares))
    legend.truncate(width, overflow="ellipsis")
    return legend


def sample_lines(sample: Sample, mean: float, width: int, *, lines: int) -> list[Text]:
    """Return reward, end of the prompt and beginning of the completion.

    In one line if they fit or ``lines`` is 1, else in two.

    The reward is green above the step's mean, red below.
    """
    style = "green" if sample.reward > mean else "red" if sample.reward < mean else ""
    reward = f"{sample.reward:6.2f}  "
    indent, arrow = " " * len(reward), "-> "
    prompt = one_line(_MARKER.sub(" ", sample.prompt))
    completion = one_line(sample.completion)
    room = max(width - len(reward) - len(arrow) - 1, 0)
    if cell_len(prompt) + cell_len(completion) <= room or lines == 1:
        prompt = _last_cells(prompt, max(room * 2 // 5, room - cell_len(completion)))
        shown = [Text.assemble((reward, style), (prompt, "bright_black"), " ", arrow, completion)]
    else:
        shown = [
            Text.assemble((reward, style), (_last_cells(prompt, width - len(reward)), "bright_black")),
            Text.assemble(indent, arrow, completion),
        ]
    for line in shown:
        line.truncate(width, overflow="ellipsis")
    return shown


def one_line(text: str) -> str:
    """Replace line breaks by a sign and control characters, which a model may produce, by spaces."""
    return "".join(char if char.isprintable() else " " for char in text.replace("\n", "⏎")).strip()


def _last_cells(text: str, cells: int) -> str:
    """Return the end of a text, with a mark if something is left out."""
    if cell_len(text) <= cells:
        return text
    start = len(text)
    while start > 0 and cell_len(text[start - 1 :]) < cells:
        start -= 1
    return "…" + text[start:]


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Draw a curve of at most ``width`` characters; if there are more values, each character is the mean of some."""
    marks = "_.-=*#" if ascii_only else "▁▂▃▄▅▆▇█"
    count = len(values)
    columns = min(width, count)
    means = [_mean(values[column * count // columns : (column + 1) * count // columns]) for column in range(columns)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if high == low:
        return marks[0] * columns
    return "".join(marks[round((mean - low) / (high - low) * (len(marks) - 1))] for mean in means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def number(value: float) -> str:
    """Write a number with about four significant characters."""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
