"""An installed wheel works without the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_%s(sys.argv[1])"


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, since a build leaves files behind."""
    copy = tmp_path_factory.mktemp("source") / "rlkl"
    copy.mkdir()
    for name in ("rlkl", "reward_models", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def build(source: Path, folder: Path) -> Path:
    """Build a source distribution, from that a wheel, as for a release, and unpack the wheel."""
    answer = run([sys.executable, "-c", BUILD % "sdist", str(folder)], source)
    assert answer.returncode == 0, answer.stderr
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    answer = run([sys.executable, "-c", BUILD % "wheel", str(folder)], unpacked)
    assert answer.returncode == 0, answer.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_an_installed_package_has_its_recipes_and_pages(source: Path, tmp_path: Path):
    installed = build(source, tmp_path)
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "rlkl",
        "reward_models",
    }
    for kind in ("*.py", "*.md"):
        there = {path.relative_to(installed / "rlkl") for path in (installed / "rlkl").rglob(kind)}
        assert there == {path.relative_to(source / "rlkl") for path in (source / "rlkl").rglob(kind)}

    (tmp_path / "elsewhere").mkdir()
    for name, code in (("reviews_dpo", 0), ("quikstart", 2)):
        command = [sys.executable, "-m", "rlkl", "plan", name]
        answer = run(command, tmp_path / "elsewhere", PYTHONPATH=str(installed))
        assert answer.returncode == code, answer.stderr
    assert "built-in recipe: quickstart" in answer.stderr
    where = [sys.executable, "-c", "import rlkl; print(rlkl.__file__)"]
    assert run(where, tmp_path, PYTHONPATH=str(installed)).stdout.strip() == str(installed / "rlkl" / "__init__.py")
