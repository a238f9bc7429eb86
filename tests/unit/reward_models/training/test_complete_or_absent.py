from pathlib import Path

import pytest

from reward_models.training.start import complete_or_absent


def write(folder: Path, *, fails: bool) -> None:
    with complete_or_absent(folder) as aside:
        (aside / "weights").write_text("weights")
        if fails:
            raise OSError("no space left")


def test_a_folder_has_its_name_once_it_is_complete(tmp_path: Path):
    write(tmp_path / "model", fails=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_nothing(tmp_path: Path):
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "model", fails=True)
    assert list(tmp_path.iterdir()) == []
