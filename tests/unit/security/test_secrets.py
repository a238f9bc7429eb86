"""Secrets of the environment reach no record, no recipe and no program of a model."""

from __future__ import annotations

import gzip
import json
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from reward_models import Judge
from rlkl.analysis.card.scrub import scrub
from rlkl.cli import main
from rlkl.commands.plan_inputs import check_inputs
from rlkl.errors import RecipeError, RewardError
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.recipe.run_dir import write_recipe
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.training.setup import train
from tests.scheduled import Delays, build
from tests.unit.reward_models.sandboxes import make_sandbox
from tests.unit.security.settings_with_secrets import HARMLESS, WITH_SECRET

VALUES = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "HF_TOKEN": "hf_" + "A1b2C3d4" * 4,
    "OPENAI_API_KEY": "sk-" + "proj-Zy9Xw8Vu7Ts6" * 2,
    "AWS_SECRET_ACCESS_KEY": "wJalr/K7MDENG+bPxRfiCY" + "0EXAMPLE0KEY00000",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def files_with_secrets(folder: Path) -> list[str]:
    found = []
    for file in folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            data += gzip.decompress(data) if data.startswith(b"\x1f\x8b") else b""
            found += [f"{name} in {file.name}" for name, value in VALUES.items() if value.encode() in data]
    return found


def test_no_file_of_a_run_has_a_secret_of_the_environment(tmp_path: Path):
    """Metrics, samples, failures, checkpoints, recipe and W&B's own files, as a run with doubles writes them."""
    run_dir = tmp_path / "run"
    sections = {"steps": 4, "tracking": {"wandb": "offline", "hacking_watch": False, "samples_every": 1}}
    run = build(run_dir, Delays(), **sections)
    write_recipe(run_dir, dump_recipe(run.recipe))
    run.run()
    wandb = [file for file in (run_dir / "wandb").rglob("*.wandb") if file.stat().st_size > 1000]
    assert wandb, "W&B has recorded the run"
    assert {"recipe.yaml", "metrics.jsonl", "samples", "checkpoints", "wandb"} <= {p.name for p in run_dir.iterdir()}
    assert files_with_secrets(run_dir) == []


def test_the_search_of_this_file_finds_a_secret(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(VALUES))
    (tmp_path / "b.gz").write_bytes(gzip.compress(VALUES["HF_TOKEN"].encode()))
    assert len(files_with_secrets(tmp_path)) == 5


def recipe_with(*overrides: str) -> Recipe:
    return load_recipe("quickstart", *overrides)


@pytest.mark.parametrize("name", VALUES)
def test_a_recipe_with_a_secret_of_the_environment_is_refused(name: str, tmp_path: Path):
    reward = f"{{function: 'my.py:f', settings: {{note: 'use {VALUES[name]} here'}}}}"
    recipe = recipe_with(f"run.dir={tmp_path / 'run'}", f"rewards=[{reward}]")
    for check in (check_no_secrets, check_inputs, train):
        with pytest.raises(RecipeError, match=r"rewards\[0\]\.settings\.note holds .*must not hold secrets") as caught:
            check(recipe)
        assert VALUES[name] not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_plan_for_a_cluster_refuses_a_recipe_with_a_secret(capsys: pytest.CaptureFixture[str]):
    reward = "rewards=[{function: 'my.py:f', settings: {api_key: anything}}]"
    assert main(["plan", "quickstart", "--gpus", "1", "--gpu", "H100", reward]) == 2
    assert "must not hold secrets" in capsys.readouterr().err


@pytest.mark.parametrize("point", [0, 1])
def test_a_sweep_with_a_secret_in_any_point_is_refused_before_it_records_one(
    point: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text("def f(completion, url):\n    return 0.0\n")
    urls = ["http://host/v1", "http://host/v2"]
    urls[point] = "https://me:" + "hunter2@host/v1"
    settings = [{"function": "my.py:f", "settings": {"url": url}} for url in urls]
    (tmp_path / "s.yaml").write_text(
        "name: s\nseeds: 1\narms:\n  plain: {recipe: quickstart}\n"
        f"  judged: {{recipe: quickstart, vary: {{rewards: {json.dumps([[one] for one in settings])}}}}}\n"
    )
    monkeypatch.setattr("rlkl.commands.sweep.Sweep", lambda **_: pytest.fail("the sweep has started"))
    assert main(["sweep", "s.yaml"]) == 2
    told = capsys.readouterr().err
    assert "arm judged: rewards[0].settings.url holds an address with a password" in told
    assert "hunter2" not in told
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__") == []


SECRETS = [
    "note: ghp_" + "a1B2" * 9,
    "note: AKIA" + "ABCDEFGH12345678",
    "note: 'https://me:" + "hunter2@host/v1'",
    "api_key: anything",
    "password: hunter2",
    "deep: {list: [{access_token: short}]}",
    "headers: {Authorization: Basic}",
]


@pytest.mark.parametrize("settings", SECRETS)
def test_a_recipe_with_what_looks_like_a_secret_is_refused(settings: str):
    recipe = recipe_with(f"rewards=[{{function: 'my.py:f', settings: {{{settings}}}}}]")
    with pytest.raises(RecipeError, match="must not hold secrets"):
        check_no_secrets(recipe)


def test_names_of_variables_and_ordinary_values_are_no_secrets():
    settings = "{api_key_variable: OPENAI_API_KEY, token: '</s>', key: answer, url: 'http://127.0.0.1:8000/v1', n: 3}"
    check_no_secrets(recipe_with(f"rewards=[{{function: 'my.py:f', settings: {settings}}}]"))


def recipe_of(settings: dict[str, Any]) -> Recipe:
    recipe = recipe_with("rewards=[{function: 'my.py:f'}]")
    return recipe.model_copy(update={"rewards": [recipe.rewards[0].model_copy(update={"settings": settings})]})


@pytest.mark.parametrize("case", WITH_SECRET)
def test_the_check_and_the_card_find_the_same_secrets(case: str):
    settings, secret = WITH_SECRET[case]
    with pytest.raises(RecipeError, match="must not hold secrets") as caught:
        check_no_secrets(recipe_of(settings))
    assert secret not in str(caught.value)
    assert secret not in json.dumps(scrub({"settings": settings}))


@pytest.mark.parametrize("case", HARMLESS)
def test_the_check_and_the_card_leave_harmless_settings_alone(case: str):
    check_no_secrets(recipe_of(HARMLESS[case]))
    assert scrub(HARMLESS[case]) == HARMLESS[case]


def test_a_program_in_the_sandbox_sees_seven_variables_and_no_secret():
    for isolation in ("namespaces", "process"):
        program = """
            import os, glob
            print(len(os.environ), dict(os.environ))
            for path in [*glob.glob("/proc/*/environ"), "/proc/self/environ", "/proc/thread-self/environ"]:
                try:
                    print(open(path, "rb").read())
                except OSError:
                    pass
        """
        outcome = make_sandbox(isolation).run(["-c", textwrap.dedent(program)])
        assert outcome.stdout.startswith("7 "), outcome
        assert [name for name, value in VALUES.items() if value in outcome.stdout + outcome.stderr] == []


class Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = f"Incorrect API key provided: {self.headers['Authorization']}".encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def echo() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_judges_key_is_not_in_the_failure_that_the_server_tells(echo: str):
    """The text of a failure is kept in the run folder."""
    import asyncio

    judge = Judge(
        base_url=echo, model="m", template="{completion}", check=False, api_key_variable="OPENAI_API_KEY", low=0, high=1
    )
    with pytest.raises(RewardError, match=r"status 401: Incorrect API key provided: Bearer \(the key\)"):
        asyncio.run(judge(completion="x"))
