"""No tracked file holds a real key."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from rlkl.system.secret_texts import SHAPES, secrets_in

ROOT = Path(__file__).resolve().parents[3]

INVENTED = {
    "tests/unit/analysis/card/run_folders.py": (
        "hf_" + "abcdefghijklmnopqrst",
        "sk-" + "abcdefghijklmnop1234",
        "me:pw" + "@",
    ),
    "tests/unit/commands/hub_server.py": ("hf_" + "tokenOfTheTestAccount",),
}
"""File -> keys that were invented for a test."""

NAMED_KEY = re.compile(
    r"(?i)\b(?:wandb_api_key|api_?key|secret(?:_access)?_key|password|passwd|token)['\"]?\s*[=:]\s*['\"]?"
    r"(?=[A-Za-z0-9+/_-]{32,}\b)(?=[A-Za-z0-9+/_-]*\d)[A-Za-z0-9+/_-]+"
)
"""A long value with a digit after a name of a secret, such as the forty digits of a W&B key."""

EXAMPLES = {
    "a Hugging Face token": "hf_" + "aB3d" * 8,
    "an OpenAI or Anthropic key": "sk-" + "ant-api03-" + "aB3d" * 8,
    "a GitHub token": "ghp_" + "aB3d" * 9,
    "a GitLab token": "glpat-" + "aB3d" * 5,
    "a Slack token": "xoxb-" + "123456789012-abcdef",
    "an AWS access key": "AKIA" + "ABCDEFGH12345678",
    "a Google key": "AIza" + "aB3d_" * 7,
    "a W&B key": "wandb_v1_" + "aB3d" * 8,
    "a PyPI token": "pypi-" + "aB3d" * 12,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "an address with a password": "postgres://me:" + "hunter2@host/db",
}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_holds_a_key():
    found = []
    for name in tracked():
        text = (ROOT / name).read_bytes().decode("utf-8", errors="replace")
        for invented in INVENTED.get(name, ()):
            assert invented in text, f"{invented} is gone from {name}; take it out of INVENTED"
            text = text.replace(invented, "")
        places = [*secrets_in(text, {}), *(("a value named as a secret", m.start()) for m in NAMED_KEY.finditer(text))]
        found += [f"{name}:{text.count(chr(10), 0, at) + 1} holds {kind}" for kind, at in places]
    assert found == []


@pytest.mark.parametrize("kind", SHAPES)
def test_each_shape_finds_its_kind_and_nothing_in_ordinary_text(kind: str):
    ordinary = "task-1 sk-learn hf_hub_download ghp AKIA https://user@host:80/a:b@c 'http://{host}:{port}@x' xoxo"
    assert list(secrets_in(ordinary, {})) == []
    assert kind in [found for found, _ in secrets_in(f"x = '{EXAMPLES[kind]}'", {})]


def test_a_key_after_its_name_is_found():
    assert NAMED_KEY.search("WANDB_API_KEY=" + "0123456789abcdef" * 2 + "01234567")
    assert NAMED_KEY.search('"token": "' + "a1" * 20 + '"')
    assert not NAMED_KEY.search("api_key_variable: OPENAI_API_KEY")


def test_values_of_secret_variables_are_found_by_their_names():
    environment = {"MY_SERVICE_TOKEN": "correct-horse-battery", "HOME": "/home/correct", "SHORT_KEY": "abc"}
    assert [kind for kind, _ in secrets_in("x correct-horse-battery abc /home/correct", environment)] == [
        "the value of the environment variable MY_SERVICE_TOKEN"
    ]


def test_no_key_file_is_tracked():
    names = {Path(name).name for name in tracked()}
    assert not names & {".env", ".netrc", "id_rsa", "id_ed25519", "credentials.json", ".pypirc", ".git-credentials"}
    assert not [name for name in names if name.endswith((".pem", ".key", ".p12", ".pfx"))]
