"""`launch/Dockerfile`: its steps, run in a folder in place of a container, with the packages of this environment.

Steps that change a system (apt, users, links in /usr) are only parsed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "launch" / "Dockerfile"
ON_THE_SYSTEM = ("apt-get", "useradd", "ln -s")


def instructions() -> list[tuple[str, str]]:
    """Keyword and text of each instruction, without comments and with continued lines joined."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def commands() -> list[str]:
    """The shell commands of the RUN instructions, without their options."""
    return [re.sub(r"^(--\S+ +)+", "", text) for word, text in instructions() if word == "RUN"]


def test_instructions_are_known() -> None:
    found = [word for word, _ in instructions()]
    assert found[:2] == ["ARG", "FROM"]
    assert set(found) <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    assert len(commands()) == 5


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0


def test_it_is_for_gpus_by_default_and_ends_as_a_plain_user() -> None:
    assert ("ARG", "ACCELERATOR=cuda") in instructions()
    words = [word for word, _ in instructions()]
    assert words.count("USER") == 1
    assert "RUN" not in words[words.index("USER") :]
    assert ("USER", "rlkl") in instructions()


def test_downloads_are_cached_and_no_secret_is_copied() -> None:
    installs = [text for word, text in instructions() if word == "RUN" and ("install.sh" in text or "apt-get" in text)]
    assert all(text.startswith("--mount=type=cache,") for text in installs)
    assert not re.search(r"(TOKEN|PASSWORD|SECRET|API_KEY)\s*=", FILE.read_text())
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "**/.env", "**/.netrc"} <= set(ignored)


def test_the_steps_of_the_cpu_image_install_a_working_rlkl(tmp_path: Path) -> None:
    """pip finds the packages of this environment, so nothing is downloaded; all else happens as in a build."""
    image = tmp_path / "image"
    venv.create(image / ".venv", with_pip=True)
    (site,) = (image / ".venv").glob("lib/python*/site-packages")
    for bundled in site.glob("setuptools*"):  # older than the one that the project is built with
        shutil.rmtree(bundled)
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))
    options = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        **options,
        "ACCELERATOR": "cpu",
        "EXTRAS": "",
    }
    for word, text in instructions():
        if word == "COPY":
            copy(text.split(), image)
        elif word == "RUN" and not any(name in text for name in ON_THE_SYSTEM):
            command = re.sub(r"^(--\S+ +)+", "", text)
            done = subprocess.run(["sh", "-c", command], cwd=image, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    asked = subprocess.run(
        [image / ".venv" / "bin" / "python", "-c", "import rlkl, reward_models; print(rlkl.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert asked.stdout.strip() == str(image / "rlkl" / "__init__.py"), asked.stderr
    planned = subprocess.run(
        [image / ".venv" / "bin" / "rlkl", "plan", "quickstart"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert planned.returncode == 0, planned.stderr
    assert (image / "launch" / "train_or_resume.sh").is_file()


def copy(words: list[str], image: Path) -> None:
    """Copy tracked files as COPY does: the last word is the target."""
    *sources, target = words
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *sources], cwd=ROOT, capture_output=True)
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            place = image / name if sources == ["."] else image / target / Path(name).name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place)
