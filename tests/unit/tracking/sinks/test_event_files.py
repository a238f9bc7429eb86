"""TensorBoard's event files, written by a real run of the tracker and read back record by record."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from rlkl.errors import InputError
from rlkl.tracking.records.reading import read_metrics
from rlkl.tracking.sinks.opening import check_sinks
from rlkl.tracking.tracker import RunSummary, Tracker
from tests.unit.tracking.sinks.recorded import groups, recipe, record


def events(file: Path) -> Iterator[Event]:
    """Read the records of an event file: length, checksum, an Event, checksum."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length


def shown(run_dir: Path) -> list[Event]:
    """The events that TensorBoard shows: a start of a session hides the events of its step and later ones before it."""
    kept: list[Event] = []
    for file in sorted((run_dir / "tensorboard").iterdir()):
        for event in events(file):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                kept = [earlier for earlier in kept if earlier.step < event.step]
            elif event.HasField("summary"):
                kept.append(event)
    return kept


def curve(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, v.simple_value) for e in shown(run_dir) for v in e.summary.value if v.tag == tag]


def texts(run_dir: Path) -> list[tuple[int, str, str]]:
    return [
        (event.step, value.tag, value.tensor.string_val[0].decode())
        for event in shown(run_dir)
        for value in event.summary.value
        if value.tensor.string_val
    ]


def test_scalars_samples_and_the_failure_are_in_the_event_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record(tmp_path, recipe(also=["tensorboard"]), first=0, last=3, fails=True)
    assert curve(tmp_path, "reward/mean") == [(1, 0.125), (2, 0.25), (3, 0.375)]
    found = texts(tmp_path)
    assert [(step, tag.removesuffix("/text_summary")) for step, tag, _ in found] == [
        (1, "samples"), (2, "samples"), (3, "alerts/run sums failed"),
    ]  # fmt: skip
    assert found[2][2] == "**ERROR** RewardError: reward 'gold' raised"
    _, _, row = found[0][2].splitlines()
    assert row.startswith("| 1 | <code>p</code> | <code>1+1=</code> |")
    assert "&lt;script&gt;" in row
    assert "<script>" not in row
    assert f"tensorboard --logdir {tmp_path / 'tensorboard'}" in capsys.readouterr().out


def test_the_hacking_watch_sends_an_alert_where_a_signal_sets_in(tmp_path: Path):
    tracker = Tracker(tmp_path, recipe(also=["tensorboard"]), run_id=None, first_step=0)
    for step in range(15):
        tracker.log(step, {"reward/mean": 0.5, "rollout/length_mean": 4.0 if step < 8 else 40.0}, groups(step))
    tracker.finish(RunSummary(interrupted=False, policy_dir=None))
    tripped = next(r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if r.get("watch/length", 0.0) >= 1)
    alerts = [(step, tag, text) for step, tag, text in texts(tmp_path) if tag.startswith("alerts/")]
    assert [(step, tag) for step, tag, _ in alerts] == [(tripped, "alerts/hacking watch: length/text_summary")]
    assert alerts[0][2].startswith(f"**WARN** step {tripped}, hacking watch, length: ")


def test_a_resumed_run_continues_the_same_curves(tmp_path: Path):
    used = recipe(also=["tensorboard"])
    run_id = record(tmp_path, used, first=0, last=5)
    record(tmp_path, used, first=3, last=6, run_id=run_id)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert curve(tmp_path, "reward/mean") == [
        (1, 0.125), (2, 0.25), (3, 0.375), (4, 1.5), (5, 1.625), (6, 1.75),
    ]  # fmt: skip


def test_a_sink_that_cannot_open_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tmp_path.joinpath("tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        record(tmp_path, recipe(also=["tensorboard"]), first=0, last=6)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "TensorBoard failed (" in caplog.text
    assert "a resume of the run starts TensorBoard again" in caplog.text


@pytest.mark.parametrize(
    ("name", "advice"), [("tensorboard", r"rlkl\[tensorboard\]"), ("trackio", "--no-deps trackio")]
)
def test_a_sink_that_is_not_installed_names_the_cure(name: str, advice: str, monkeypatch: pytest.MonkeyPatch):
    check_sinks(recipe(also=[name]))
    monkeypatch.setattr("rlkl.tracking.sinks.opening.find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"tracking\.also = \['{name}'\].*pip install '?{advice}"):
        check_sinks(recipe(also=[name]))
