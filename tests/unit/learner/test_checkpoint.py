from pathlib import Path

import pytest

from rlkl.errors import CheckpointError
from rlkl.learner.checkpoint import Checkpoints, LoopState, read_state


def state(step: int) -> LoopState:
    return LoopState(
        step=step, position=8 * step, run_id="abc", reward_fingerprints={"gold": "f00d"}, data_fingerprint="da7a"
    )


def write(checkpoints: Checkpoints, step: int) -> None:
    with checkpoints.writing(state(step)) as folder:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").write_text(str(step))


def break_off(checkpoints: Checkpoints, step: int) -> None:
    with checkpoints.writing(state(step)) as folder:
        (folder / "half").write_text("half")
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


def test_an_unreadable_state_names_the_file(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)
    (checkpoints.latest() / "state.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"step_000005/state.json cannot be read"):
        read_state(checkpoints.latest())
