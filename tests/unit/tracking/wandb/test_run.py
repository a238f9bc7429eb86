"""Real offline W&B runs, read back with W&B's own reader of its log files."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from PIL import Image

from rlkl.data.images import encode_image
from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.tracking.records.pictures import save_pictures
from rlkl.tracking.records.reading import sample_path, write_samples
from rlkl.tracking.sinks.rows import COLUMNS
from rlkl.tracking.wandb import parts
from rlkl.tracking.wandb.parts import part_folders, read_rows
from rlkl.tracking.wandb.run import WandbRun
from rlkl.types import SHARED_TOKEN_COLUMNS, Completion, Prompt, Rollout, RolloutGroup
from tests.unit.tracking.wandb.graphql_server import serve

RUN_ID = "0123456789ab"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def _recipe(**tracking: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": "task:arithmetic"},
            "data": {"source": "task:arithmetic"},
            "tracking": {"samples_kept": 2, **tracking},
        }
    )


def _groups(finished: int) -> list[RolloutGroup]:
    rollouts = tuple(
        Rollout(
            sample_index=index,
            completion=Completion(
                token_ids=(5,), logprobs=(-0.5,), finish_reason="stop", text=f"answer {index} of step {finished}"
            ),
            reward=float(index),
            components={"gold": float(index)},
            weights_version=finished - 1,
        )
        for index in range(3)
    )
    return [RolloutGroup(prompt=Prompt(id="row-7", text="2+3=", token_ids=(3,)), rollouts=rollouts)]


def _run(run_dir: Path, *, first_step: int, last_step: int, recipe: Recipe) -> Path:
    """Steps of one process, samples logged at each; returns W&B's folder."""
    run = WandbRun(run_dir, recipe, run_id=RUN_ID, first_step=first_step)
    for finished in range(first_step + 1, last_step + 1):
        write_samples(sample_path(run_dir, finished), finished, _groups(finished))
        run.log(finished, {"reward/mean": finished / 8})
        run.log_samples(finished)
    run.finish()
    return run.folder


def _read_back(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of the run's ``.wandb`` file by type."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    records: dict[str, list[dict[str, Any]]] = {}
    for line in out.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record)
    return records


def _table_rows(folder: Path, history: dict[str, Any]) -> list[list[Any]]:
    table = json.loads((folder / "files" / history["samples.path"]).read_text())
    assert table["columns"] == list(COLUMNS)
    return table["data"]


def test_pictures_and_numbers_a_token_stand_in_the_table(tmp_path: Path):
    clean, spoiled = encode_image(Image.new("RGB", (6, 4), "red")), encode_image(Image.new("RGB", (6, 4), "black"))
    prompt = Prompt(id="row-7", text="?", token_ids=(3,), images=(clean, clean))
    groups = [replace(_groups(1)[0], prompt=prompt)]
    pictures = save_pictures(tmp_path, groups, {"corrupted": {0: (spoiled, spoiled)}}, kept=2)
    numbers = {name: [[0.25], None, [0.5]] for name in ("perception_kl", *SHARED_TOKEN_COLUMNS)}
    write_samples(sample_path(tmp_path, 1), 1, groups, numbers, pictures)
    run = WandbRun(tmp_path, _recipe(), run_id=RUN_ID, first_step=0)

    run.log_samples(1)
    run.finish()

    staged = [file.read_bytes() for file in (tmp_path / "wandb" / "data").rglob("*") if file.is_file()]
    table, *_ = [json.loads(data) for data in staged if b'"image-file"' in data and b'"data"' in data]
    assert table["columns"] == [*COLUMNS, "images", "corrupted_images", "perception_kl"]
    assert [row[-1] for row in table["data"]] == ["0.25", ""]
    assert {cell["_type"] for row in table["data"] for cell in row[-3:-1]} == {"image-file"}
    shown = [Image.open(io.BytesIO(data)) for data in staged if data.startswith(b"\x89PNG")]
    for colour in ((255, 0, 0), (0, 0, 0)):
        row = [colour, (255, 255, 255), colour]  # two pictures and the gap between them
        assert any([picture.getpixel((x, 0)) for x in (0, 8, 19)] == row for picture in shown)


def test_rows_that_are_logged_are_not_kept_in_memory(tmp_path: Path):
    """A soak found it: the driver grew with each table of samples."""
    picture = encode_image(Image.new("RGB", (6, 4), "red"))
    prompt = Prompt(id="row-7", text="?", token_ids=(3,), images=(picture,))
    run = WandbRun(tmp_path, _recipe(), run_id=RUN_ID, first_step=0)
    for finished in range(1, 5):
        groups = [replace(_groups(finished)[0], prompt=prompt)]
        pictures = save_pictures(tmp_path, groups, {}, kept=2)
        write_samples(sample_path(tmp_path, finished), finished, groups, {}, pictures)
        run.log_samples(finished)
    gc.collect()
    alive = sum(type(one) is wandb.Image for one in gc.get_objects())
    assert alive <= 2, "the two rows of the last table, at most"
    run.finish()

    staged = [file.read_bytes() for file in (tmp_path / "wandb" / "data").rglob("*") if file.is_file()]
    tables = [json.loads(data) for data in staged if b'"image-file"' in data and b'"data"' in data]
    place = COLUMNS.index("completion")
    texts = {row[place] for table in tables for row in table["data"]}
    assert texts == {f"answer {index} of step {finished}" for finished in range(1, 5) for index in range(2)}
    assert all(len(table["data"]) == 2 for table in tables)


def test_a_column_that_comes_up_later_has_a_table_of_its_own_until_a_resume(tmp_path: Path):
    """A step whose groups had no spread trains on nothing, so its sample file has fewer columns than the next one."""
    run = WandbRun(tmp_path, _recipe(), run_id=RUN_ID, first_step=0)
    for finished, masks in ((1, {}), (2, {"mask": [[1.0], [0.5], None]}), (3, {})):
        write_samples(sample_path(tmp_path, finished), finished, _groups(finished), masks)
        run.log_samples(finished)
    run.finish()
    items = [record["history"]["item"] for record in _read_back(run.folder)["history"]]
    assert [key for item in items for key in item if key.endswith(".path")] == [
        "samples.path", "samples_2.path", "samples_2.path",
    ]  # fmt: skip
    run.folder.rename(run.folder.with_name(run.folder.name.replace("offline-run-2", "offline-run-1")))
    write_samples(sample_path(tmp_path, 4), 4, _groups(4), {"mask": [[1.0], [0.5], None]})
    again = WandbRun(tmp_path, _recipe(), run_id=RUN_ID, first_step=3)
    again.log_samples(4)
    again.finish()

    (history,) = [record["history"]["item"] for record in _read_back(again.folder)["history"]]
    table = json.loads((again.folder / "files" / history["samples.path"]).read_text())
    assert table["columns"] == [*COLUMNS, "mask"]
    assert [row[-1] for row in table["data"]] == ["", "", "1", "0.5", "", "", "1", "0.5"], "two rows of each step"


def _row(finished: int, index: int) -> list[Any]:
    return [finished, "row-7", "2+3=", f"answer {index} of step {finished}", "stop", float(index)]


def test_curves_config_and_every_sample_table_are_in_the_run(tmp_path: Path):
    folder = _run(tmp_path, first_step=0, last_step=2, recipe=_recipe())
    records = _read_back(folder)
    history = [record["history"]["item"] for record in records["history"]]
    assert [(item["step"], item["_step"], item["reward/mean"]) for item in history] == [(1, 1, 0.125), (2, 2, 0.25)]
    rows = [row for item in history for row in _table_rows(folder, item)]
    assert rows == [_row(1, 0), _row(1, 1), _row(2, 0), _row(2, 1)]
    assert len(history[1]["samples.previous_increments_paths"]) == 1, "the second table points at the first"
    run = records["run"][0]["run"]
    assert run["run_id"] == RUN_ID
    config = run["config"]["update"]
    assert config["update"]["rule"] == "grpo"
    assert config["tracking"]["samples_kept"] == 2


def test_a_resumed_run_keeps_its_id_and_the_rows_so_far(tmp_path: Path):
    before = _run(tmp_path, first_step=0, last_step=3, recipe=_recipe())
    moved = before.with_name(before.name.replace("offline-run-2", "offline-run-1"))
    before.rename(moved)  # W&B names folders by the second; a real resume comes later
    after = _run(tmp_path, first_step=2, last_step=4, recipe=_recipe())
    records = _read_back(after)
    assert records["run"][0]["run"]["run_id"] == RUN_ID
    assert records["run"][0]["run"]["resume"] is True
    history = [record["history"]["item"] for record in records["history"]]
    assert [item["step"] for item in history] == [3, 4]
    rows = [row for item in history for row in _table_rows(after, item)]
    assert rows == [_row(finished, index) for finished in (1, 2, 3, 4) for index in (0, 1)]


_KILLED = """
import sys
from pathlib import Path
import psutil
from tests.unit.tracking.wandb import test_run as this
run = this.WandbRun(Path(sys.argv[1]), this._recipe(), run_id=this.RUN_ID, first_step=0)
run.log_evaluation(0, {"eval/mean": 0.5})
for finished in (1, 2, 3):
    run.log(finished, {"reward/mean": finished / 8})
run.log_evaluation(3, {"eval/mean": 0.75})
run.flush()
me = psutil.Process()
for process in [*me.children(recursive=True), me]:
    process.kill()
"""


def test_a_resume_logs_again_what_a_kill_has_cut_off(tmp_path: Path):
    """The kill reaches W&B's own process too."""
    records = [{"step": step, "reward/mean": step / 8} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    evaluations = [{"step": step, "eval/mean": mean} for step, mean in ((0, 0.5), (3, 0.75))]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in evaluations))
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}  # W&B's process its own
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], timeout=600, env=own)
    assert killed.returncode == -signal.SIGKILL
    (before,) = part_folders(tmp_path, RUN_ID)
    before.rename(before.with_name(before.name.replace("offline-run-2", "offline-run-1")))

    run = WandbRun(tmp_path, _recipe(), run_id=RUN_ID, first_step=3)
    run.log(4, {"reward/mean": 0.5})
    run.finish()

    rows = [row for part in part_folders(tmp_path, RUN_ID) for row in read_rows(part)]
    found = [(row["step"], row.get("reward/mean"), row.get("eval/mean")) for row in rows]
    assert found == [(0, None, 0.5), (1, 0.125, None), (2, 0.25, None), (3, 0.375, 0.75), (4, 0.5, None)]


def test_parts_that_cannot_be_read_are_said_and_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    _run(tmp_path, first_step=0, last_step=2, recipe=_recipe())
    monkeypatch.setattr(parts, "sys", SimpleNamespace(executable="/bin/false"))
    assert parts.last_step(tmp_path, RUN_ID) is None
    assert "Steps that a kill has cut off from W&B are not added to it" in caplog.text


def test_the_hint_names_all_parts_of_the_run(tmp_path: Path):
    run = WandbRun(tmp_path / "my run", _recipe(), run_id=RUN_ID, first_step=0)
    run.finish()
    command, sync, pattern = _shell_words(run.sync_hint())
    assert (command, sync) == ("wandb", "sync")
    assert pattern == str(run.folder)


def _shell_words(command: str) -> list[str]:
    """How a shell splits and expands the command."""
    script = f'printf "%s\\n" {command}'
    return subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout.splitlines()


def test_online_without_a_key_records_offline_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        run = WandbRun(tmp_path, _recipe(wandb="online"), run_id=RUN_ID, first_step=0)
    run.finish()
    assert "there is no W&B key" in caplog.text
    assert run.folder.name.startswith("offline-run-")


def test_a_wandb_that_cannot_start_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_binary(**_: object) -> None:
        raise FileNotFoundError("wandb-core")

    monkeypatch.setattr("wandb.init", no_binary)
    with pytest.raises(EnvironmentProblem, match=r"FileNotFoundError: wandb-core.*tracking\.wandb=off"):
        WandbRun(tmp_path, _recipe(), run_id=RUN_ID, first_step=0)


def test_tables_wait_for_their_upload_inside_the_run_folder(tmp_path: Path):
    _run(tmp_path, first_step=0, last_step=1, recipe=_recipe())
    staged = [file.read_text() for file in (tmp_path / "wandb" / "data").rglob("*") if file.is_file()]
    assert any("answer 1 of step 1" in text for text in staged)
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The records of a run of two steps with all that a sink is given but samples."""
    recipe = _recipe(group="rules of reviews", tags=["paper", "grpo"], arm="GRPO 0.2")
    run = WandbRun(tmp_path_factory.mktemp("shown"), recipe, run_id=RUN_ID, first_step=0)
    run.log_evaluation(0, {"eval/mean": 0.25})
    run.log(1, {"reward/mean": 1.5, "monitor/gold": -1.0, "watch/length": 1.5, "kl/policy_to_reference": 1.5})
    run.log(2, {"reward/mean": 0.5, "monitor/gold": -0.5, "watch/length": 0.5, "kl/policy_to_reference": 0.5})
    run.log_evaluation(2, {"eval/mean": 0.125})
    run.alert("hacking watch: length", "step 2, hacking watch, length: longer", level="WARN")
    run.finish()
    return _read_back(run.folder)


def test_group_job_type_tags_and_flat_names_are_in_the_run(shown: dict[str, list[dict[str, Any]]]):
    run = shown["run"][0]["run"]
    assert (run["run_group"], run["job_type"]) == ("rules of reviews", "train")
    assert run["tags"] == ["grpo", "task:arithmetic", "paper"]
    config = run["config"]["update"]
    assert [config[name] for name in ("rule", "variant", "arm")] == ["grpo", "grpo", "GRPO 0.2"]


def test_tables_of_runs_sort_by_the_largest_and_the_last_value(shown: dict[str, list[dict[str, Any]]]):
    summary: dict[str, Any] = {}
    for record in shown["summary"]:
        summary |= record["summary"]["update"]
    assert summary["reward/mean"] == {"max": 1.5, "last": 0.5}
    assert summary["monitor/gold"] == {"max": -0.5, "last": -0.5}
    assert summary["eval/mean"] == {"max": 0.25, "last": 0.125}
    assert summary["watch/length"] == {"max": 1.5}
    assert summary["kl/policy_to_reference"] == 0.5


def test_an_evaluation_stands_at_its_step(shown: dict[str, list[dict[str, Any]]]):
    history = [record["history"]["item"] for record in shown["history"]]
    assert [item["step"] for item in history] == [0, 1, 2]
    assert [item.get("eval/mean") for item in history] == [0.25, None, 0.125]
    assert [item.get("reward/mean") for item in history] == [None, 1.5, 0.5]


def test_an_alert_is_in_the_offline_record(shown: dict[str, list[dict[str, Any]]]):
    (alert,) = [record["alert"] for record in shown["alert"]]
    assert (alert["title"], alert["level"]) == ("hacking watch: length", "WARN")
    assert alert["text"] == "step 2, hacking watch, length: longer"


def test_a_run_inside_a_sweep_keeps_the_id_of_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "fromsweep")
    wandb.teardown()  # it has read the environment already
    run = WandbRun(tmp_path, _recipe(), run_id=RUN_ID, first_step=0)
    run.log(1, {"reward/mean": 0.5})
    run.finish()
    wandb.teardown()
    assert run.run_id == "fromsweep"
    assert run.folder.name.endswith("-fromsweep")
    assert run.sync_hint().endswith("offline-run-*-fromsweep")


def test_an_online_run_sends_its_alert_and_names_the_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serve(monkeypatch) as server:
        run = WandbRun(tmp_path, _recipe(wandb="online", group="rules"), run_id=RUN_ID, first_step=0)
        run.log(1, {"reward/mean": 0.5})
        run.alert("run quickstart failed", "RewardError: no", level="ERROR")
        run.finish(failed=True)
        places = run.places()
    assert places["W&B"] == f"{server.address}/team/rlkl/runs/{RUN_ID}"
    assert places["dashboard by"] == "rlkl dashboard team/rlkl"
    bucket = server.requests("UpsertBucket")[0]
    assert (bucket["name"], bucket["groupName"], bucket["jobType"]) == (RUN_ID, "rules", "train")
    (alert,) = server.requests("NotifyScriptableRunAlert")
    assert (alert["title"], alert["severity"]) == ("run quickstart failed", "ERROR")
