"""Packages whose compiled library does not load, in a process of their own: what has been imported cannot be undone."""

import os
import subprocess
import sys
from pathlib import Path

PROLOGUE = """
import torch
from transformers.utils.import_utils import is_torchaudio_available, is_torchcodec_available
from rlkl.system.compat import ensure_torch_extras

torch.version.cuda = torch.version.hip = None
"""


def run_beside(packages: Path, code: str) -> str:
    """What ``code`` prints with ``packages`` first on the import path and torch's own call of the function off."""
    path = os.pathsep.join([str(packages), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", PROLOGUE + code],
        env={**os.environ, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.strip()


def make_broken(folder: Path, name: str) -> None:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_C.so").write_bytes(b"no library")


def test_broken_audio_packages_count_as_absent_even_for_a_transformers_that_has_seen_them(tmp_path: Path):
    make_broken(tmp_path, "torchaudio")
    make_broken(tmp_path, "torchcodec")

    asked = "print(is_torchaudio_available(), is_torchcodec_available())"
    assert run_beside(tmp_path, f"{asked}; ensure_torch_extras(); {asked}") == "True True\nFalse False"


def test_a_broken_torchvision_gets_the_operators_that_its_python_part_asks_for(tmp_path: Path):
    make_broken(tmp_path, "torchvision")

    asked = "print([hasattr(torch.ops.torchvision, name) for name in ('nms', 'qnms')])"
    assert run_beside(tmp_path, f"{asked}; ensure_torch_extras(); {asked}") == "[False, False]\n[True, True]"


def test_packages_of_pure_python_are_left_alone(tmp_path: Path):
    for name in ("torchaudio", "torchvision"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()

    answer = run_beside(tmp_path, "ensure_torch_extras(); import torchaudio, torchvision; print(torchaudio.__file__)")
    assert answer == str(tmp_path / "torchaudio" / "__init__.py")
