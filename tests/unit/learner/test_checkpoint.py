import shutil
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import CheckpointError, SaveError
from rlkl.learner.manifest import list_files, write_manifest
from rlkl.training.checkpoint import Checkpoints, LoopState, read_state


def state(step: int) -> LoopState:
    return LoopState(
        step=step,
        position=8 * step,
        run_id="abc",
        reward_fingerprints={"gold": "f00d"},
        data_fingerprint="da7a",
        recipe={"steps": 9},
        fingerprints={},
    )


def write(checkpoints: Checkpoints, step: int) -> None:
    with checkpoints.writing(state(step)) as draft:
        (draft.folder / "policy").mkdir()
        (draft.folder / "policy" / "weights").write_text(str(step))


def break_off(checkpoints: Checkpoints, step: int) -> None:
    with checkpoints.writing(state(step)) as draft:
        (draft.folder / "half").write_text("half")
        raise KeyboardInterrupt


def test_the_state_comes_back_as_it_was_written(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 10)

    assert checkpoints.latest() == tmp_path / "checkpoints" / "step_000010"
    assert read_state(checkpoints.latest()) == state(10)
    assert (checkpoints.latest() / "policy" / "weights").read_text() == "10"


def test_only_the_last_ones_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        write(checkpoints, step)

    assert [path.name for path in checkpoints.complete()] == ["step_000010", "step_000015"]
    assert checkpoints.has(15)
    assert not checkpoints.has(5)


def test_checkpoints_are_in_the_order_of_their_steps_and_not_of_their_names(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_900, 999_950, 1_000_000):
        write(checkpoints, step)

    assert [path.name for path in checkpoints.complete()] == ["step_999950", "step_1000000"]
    assert checkpoints.latest().name == "step_1000000"
    assert checkpoints.newest_whole().state.step == 1_000_000


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)
    whole = shutil.rmtree

    def killed(folder: Path, **options: Any) -> None:
        if (folder / "manifest.json").exists():
            (folder / "manifest.json").unlink()
            raise KeyboardInterrupt
        whole(folder, **options)

    with monkeypatch.context() as patched:
        patched.setattr("rlkl.training.checkpoint.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write(checkpoints, 10)
    assert {path.name for path in (tmp_path / "checkpoints").glob("step_*")} == {"step_000010"}

    write(checkpoints, 15)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000015"]


def test_a_checkpoint_that_broke_off_is_never_seen_and_costs_no_older_one(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)

    with pytest.raises(KeyboardInterrupt):
        break_off(checkpoints, 10)

    assert checkpoints.latest().name == "step_000005"
    write(checkpoints, 10)
    assert not (checkpoints.latest() / "half").exists()


def test_foreign_folders_are_no_checkpoints(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)
    (tmp_path / "checkpoints" / "step_old").mkdir()

    assert checkpoints.latest().name == "step_000005"


def test_no_checkpoint_says_what_to_do(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no complete checkpoint .*checkpoint\.every"):
        Checkpoints(tmp_path, keep=1).latest()


@pytest.mark.parametrize("left", [".writing-step_000010", ".writing-step_000003"])
def test_what_a_killed_or_failed_save_left_is_removed(tmp_path: Path, left: str):
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 5)
    (tmp_path / "checkpoints" / left / "policy").mkdir(parents=True)  # by a run that was killed
    with pytest.raises(KeyboardInterrupt):
        break_off(checkpoints, 10)

    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000005"]


def test_a_file_that_the_learner_wrote_and_the_driver_does_not_see_makes_no_checkpoint(tmp_path: Path):
    """As on another machine, where the folder of the same path is another one."""
    checkpoints = Checkpoints(tmp_path / "here", keep=2)
    write(checkpoints, 5)
    elsewhere = tmp_path / "there"
    elsewhere.mkdir()
    (elsewhere / "learner.pt").write_text("weights")

    with pytest.raises(SaveError, match=r"learner\.pt is missing .*run\.dir"), checkpoints.writing(state(10)) as draft:
        draft.written |= list_files(elsewhere)
    assert [path.name for path in (tmp_path / "here" / "checkpoints").iterdir()] == ["step_000005"]


def write_and_change(checkpoints: Checkpoints) -> None:
    with checkpoints.writing(state(10)) as draft:
        (draft.folder / "learner.pt").write_text("weights")
        draft.written |= list_files(draft.folder)
        (draft.folder / "learner.pt").write_text("WEIGHTS")


def test_a_file_that_arrives_with_another_content_makes_no_checkpoint(tmp_path: Path):
    with pytest.raises(SaveError, match=r"learner\.pt has another content"):
        write_and_change(Checkpoints(tmp_path, keep=2))


def spoil(checkpoint: Path, how: str) -> None:
    path = checkpoint / "policy" / "weights"
    match how:
        case "gone":
            path.unlink()
        case "short":
            path.write_text("")
        case "changed":
            path.write_text("9")
        case "no manifest":
            (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("gone", "policy/weights is missing"),
        ("short", "policy/weights has 0 bytes, expected 1"),
        ("changed", "policy/weights has another content than was written"),
        ("no manifest", "manifest.json is missing"),
    ],
)
def test_a_checkpoint_is_used_only_if_every_file_of_its_manifest_is_there(tmp_path: Path, how: str, problem: str):
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 5)
    assert read_state(checkpoints.latest()) == state(5)
    spoil(tmp_path / "checkpoints" / "step_000005", how)

    with pytest.raises(CheckpointError, match=rf"step_000005 is not complete: {problem}"):
        read_state(checkpoints.latest())
    assert checkpoints.has(5) == (how == "changed"), "contents are compared before a resume, not each time"


def test_a_checkpoint_with_missing_files_is_written_anew_and_never_counts_as_one_of_those_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)
    write(checkpoints, 5)
    spoil(tmp_path / "checkpoints" / "step_000005", "gone")
    assert not checkpoints.has(5)
    write(checkpoints, 5)
    assert checkpoints.has(5)


@pytest.mark.parametrize("how", ["gone", "short", "changed", "no manifest"])
def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_one_is_kept_aside(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10):
        write(checkpoints, step)
    spoil(tmp_path / "checkpoints" / "step_000010", how)

    found = checkpoints.newest_whole()
    assert (found.checkpoint.name, found.state) == ("step_000005", state(5))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000005", "step_000010"]

    checkpoints.set_aside(found.damaged)
    assert "skipped and kept as damaged_step_000010: the checkpoint" in caplog.text
    assert not checkpoints.has(10), "the step is saved anew"
    write(checkpoints, 10)
    assert checkpoints.newest_whole().checkpoint.name == "step_000010"
    assert (tmp_path / "checkpoints" / "damaged_step_000010").is_dir()


def test_if_no_checkpoint_is_whole_each_is_named(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10):
        write(checkpoints, step)
        spoil(tmp_path / "checkpoints" / f"step_{step:06d}", "changed")

    with pytest.raises(CheckpointError, match=r"step_000010 is not complete(?s:.*)step_000005 is not complete"):
        checkpoints.newest_whole()


def test_an_unreadable_state_names_the_file(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)
    folder = checkpoints.latest()
    (folder / "state.json").write_text("{")
    write_manifest(folder, list_files(folder))

    with pytest.raises(CheckpointError, match=r"step_000005/state.json cannot be read"):
        read_state(folder)
