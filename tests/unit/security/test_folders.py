"""Folders are private, and names in files do not lead out of their folder."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlkl.actors.cluster import keep_token_private
from rlkl.analysis.report.report import write_report
from rlkl.commands import generate
from rlkl.commands.push import _policy_folder
from rlkl.errors import CheckpointError, InputError, RecipeError
from rlkl.learner.manifest import SavedFile, list_files, missing, read_manifest, write_manifest
from rlkl.recipe.io import load_recipe
from rlkl.recipe.run_dir import claim_run_dir
from rlkl.tracking.records.pictures import side_by_side
from rlkl.training.checkpoint import read_state
from tests.run_folders import write_run, write_sample_file
from tests.unit.analysis.card.run_folders import finished_run


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("named", [True, False])
def test_nobody_else_can_read_a_run(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("quickstart", *([f"run.dir={tmp_path / 'deep' / 'run'}"] if named else []))
    with claim_run_dir(recipe) as lock:
        assert mode(lock.run_dir) == 0o700


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path):
    """Somebody may have opened it for a group on purpose."""
    (tmp_path / "run").mkdir(mode=0o750)
    with claim_run_dir(load_recipe("quickstart", f"run.dir={tmp_path / 'run'}")):
        assert mode(tmp_path / "run") == 0o750


def test_nobody_else_can_read_the_token_of_a_local_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / ".ray" / "auth_token"
    keep_token_private(tmp_path)
    made = token.read_text()
    assert (mode(token), mode(token.parent), len(made)) == (0o600, 0o700, 64)
    token.chmod(0o644)  # as Ray leaves it
    keep_token_private(tmp_path)
    assert (mode(token), token.read_text()) == (0o600, made)
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_token_that_the_user_keeps_elsewhere_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    keep_token_private(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp/x", "..", ".hidden", "a\\b", "a\nb", ""])
def test_a_runs_name_is_no_path(name: str):
    with pytest.raises(RecipeError, match=r"run\.name"):
        load_recipe("quickstart", f"run.name={json.dumps(name)}")


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp/x", "a\\b"])
def test_a_rewards_name_is_no_path(name: str, tmp_path: Path):
    """It names a file of the reward cache."""
    from rlkl.rewards import load_rewards

    with pytest.raises(InputError, match="name"):
        load_rewards(load_recipe("quickstart", f"rewards[0].name={json.dumps(name)}").rewards)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd"])
def test_a_manifest_that_leads_out_of_its_checkpoint_is_refused(name: str, tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    checkpoint = tmp_path / "step_000001"
    (checkpoint / "a").mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    size = (checkpoint / name).stat().st_size
    write_manifest(checkpoint, list_files(checkpoint) | {name: SavedFile(size=size, sha256="0")})
    assert [problem for problem in missing(checkpoint) if "which is not in the checkpoint" in problem]
    with pytest.raises(ValueError, match="which is not in the checkpoint"):
        read_manifest(checkpoint)
    with pytest.raises(CheckpointError, match="which is not in the checkpoint"):
        read_state(checkpoint)


@pytest.mark.parametrize("how", ["relative", "absolute", "link"])
def test_a_record_shows_no_picture_outside_of_its_run(how: str, tmp_path: Path):
    picture = tmp_path / "private.png"
    Image.new("RGB", (2, 2)).save(picture)
    run = write_run(tmp_path / "run", steps=1)
    (run / "images").mkdir()
    (run / "images" / "link.png").symlink_to(picture)
    named = {"relative": "../private.png", "absolute": str(picture), "link": "images/link.png"}[how]
    write_sample_file(run, 1, ["a"] * 4)
    (file,) = (run / "samples").glob("*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.append_column("images", [[[named]] * len(table)]), file)
    with pytest.raises(InputError, match="which is not in that folder"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(InputError, match="which is not in that folder"):
        side_by_side(run, [named])


@pytest.mark.parametrize("place", ["policy/vocab.txt", "samples/extra.parquet"])
def test_a_link_to_a_private_file_is_not_published(place: str, tmp_path: Path):
    from rlkl.analysis.runs import read_run

    (tmp_path / "netrc").write_text("password")
    run = finished_run(tmp_path / "run")
    (run / place).symlink_to(tmp_path / "netrc")
    with pytest.raises(InputError, match=r"is a link to .*netrc, outside of the run"):
        _policy_folder(read_run(run), adapter=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_obeys_no_text_of_a_model():
    bad = "\N{REPLACEMENT CHARACTER}"
    text = "a\x1b]52;c;aGk=\x07b\r\x9b2Jc\n\td héllo 漢字 🙂"
    assert generate.shown(text, Terminal()) == f"a{bad}]52;c;aGk={bad}b{bad}{bad}2Jc\n\td héllo 漢字 🙂"
    assert generate.shown(text, io.StringIO()) == text
