"""`rlkl push` as a process of its own, against a hub on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkl.cli import main
from rlkl.system.compat import ensure_torch_extras
from tests.chat_tokenizers import chat_tokenizer
from tests.unit.analysis.card.run_folders import HOME, finished_run
from tests.unit.commands.hub_server import TOKEN, Hub, serve


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


def push(hub: Hub, home: Path, *words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "rlkl", "push", *words],
        env=kept | own | ({} if token is None else {"HF_TOKEN": token}),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_policy_card_and_pictures_arrive_and_nothing_else(hub: Hub, tmp_path: Path):
    run = finished_run(tmp_path / "run", adapter=True)
    done = push(hub, tmp_path / "home", str(run), "me/sums", "--private", "--with-samples")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/me/sums"
    assert hub.is_private == {"me/sums": True}
    files = hub.files["me/sums"]
    assert sorted(files) == [
        "README.md", "config.json", "frontier.png", "model.safetensors", "reward.png", "samples/step_000001.parquet",
        "tokenizer.json",
    ]  # fmt: skip
    assert files["model.safetensors"] == (run / "policy" / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"]) == {"model_type": "qwen3", "_name_or_path": "base"}
    assert files["README.md"] == (run / "policy" / "README.md").read_bytes()
    assert 'from_pretrained("me/sums")' in files["README.md"].decode()
    assert all(HOME.encode() not in content for content in files.values())


def test_the_adapters_alone(hub: Hub, tmp_path: Path):
    run = finished_run(tmp_path / "run", adapter=True)
    done = push(hub, tmp_path / "home", str(run), "me/sums", "--adapter")
    assert done.returncode == 0, done.stderr
    files = hub.files["me/sums"]
    weights = [name for name in files if name.endswith(".safetensors")]
    assert weights == ["adapter_model.safetensors"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert "library_name: peft" in files["README.md"].decode()


TOOLS = "tools: {{ messages[0].content }}"


def write_tokenizer(policy: Path) -> Any:
    """Save a tokenizer with two chat templates into a policy; return it."""
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": TOOLS}
    tokenizer.unk_token = "<pad>"
    tokenizer.save_pretrained(policy)
    names = ("eos_token", "pad_token", "unk_token")
    (policy / "special_tokens_map.json").write_text(json.dumps({name: getattr(tokenizer, name) for name in names}))
    return tokenizer


def test_the_tokenizer_arrives_as_it_is(hub: Hub, tmp_path: Path):
    ensure_torch_extras()
    from transformers import AutoTokenizer, GenerationConfig

    run, arrived = finished_run(tmp_path / "run"), tmp_path / "arrived"
    written = write_tokenizer(run / "policy")
    stops = written.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    GenerationConfig(eos_token_id=stops, pad_token_id=written.pad_token_id).save_pretrained(str(run / "policy"))
    done = push(hub, tmp_path / "home", str(run), "me/sums")
    assert done.returncode == 0, done.stderr
    for name, content in hub.files["me/sums"].items():
        (arrived / name).parent.mkdir(parents=True, exist_ok=True)
        (arrived / name).write_bytes(content)
    read = AutoTokenizer.from_pretrained(arrived)
    messages = [{"role": "user", "content": "two plus three?"}]
    assert len(read) == len(written)
    assert read.special_tokens_map == written.special_tokens_map
    assert (read.eos_token_id, read.pad_token_id, read.unk_token_id) == (
        written.eos_token_id,
        written.pad_token_id,
        written.unk_token_id,
    )
    assert read("two<|im_end|><pad>")["input_ids"] == written("two<|im_end|><pad>")["input_ids"]
    for template in ("default", "tool_use"):
        texts = [one.apply_chat_template(messages, chat_template=template, tokenize=False) for one in (read, written)]
        assert texts[0] == texts[1]
    assert GenerationConfig.from_pretrained(str(arrived)).eos_token_id == stops


CONFIGS = {
    "config.json": '{"_name_or_path": %s, "eos_token_id": [1, 2], "rms_norm_eps": 1E-6, "text_config": {"n": 1e30}}',
    "generation_config.json": '{\n  "eos_token_id": 7,\n  "transformers_version": "5.0",\n  "cache_dir": %s}',
    "tokenizer_config.json": '{"name_or_path": %s, "eos_token": "</s>", "pad_token": {"content": "/pad/it"}, '
    '"chat_template": "{{ \\"name_or_path\\": \\"/a/b\\" }}/x/y", "list": ["name_or_path", ":", "/a/b"], '
    '"bos_token": "\u00e9"}',
    "processor_config.json": '{"image_token": "<image>", "tokenizer_file" : %s, "path": "relative/it"}\n',
    "preprocessor_config.json": '{"image_processor_type": "Fast", "vocab_file": %s, "key": "abc123def456abc789"}',
    "video_preprocessor_config.json": '{"name_or_path": %s, "auto_map": {"AutoProcessor": "a--b.C"}}',
}
"""Settings files -> their text, with a place for a path."""


@pytest.mark.parametrize("path", [f"{HOME}/base", r"C:\Users\me\base", "~/base", f"{HOME}/my models/base"])
def test_settings_files_differ_in_their_local_paths_only(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rlkl.analysis.runs import read_run
    from rlkl.commands.push import stage

    run, staged = finished_run(tmp_path / "run", adapter=True), tmp_path / "staged"
    staged.mkdir()
    for name, text in CONFIGS.items():
        (run / "policy" / name).write_text(text % json.dumps(path), encoding="utf-8")
    stage(read_run(run), run / "policy", staged, "me/sums")
    for name, text in CONFIGS.items():
        assert (staged / name).read_text(encoding="utf-8") == text % '"base"'


def test_a_key_in_a_settings_file_is_not_published(tmp_path: Path):
    from rlkl.analysis.card.scrub import scrub_settings

    key = "hf_" + "aB3d" * 8
    assert scrub_settings(f'{{"use_auth_token": "{key}", "n": 1.50}}') == '{"use_auth_token": "(left out)", "n": 1.50}'


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (("me/sums",), None, "hf auth login"),
        (("me/sums",), "hf_wrong", "does not accept the token"),
        (("me/open", "--private"), TOKEN, "me/open exists and is public"),
    ],
)
def test_the_account_is_checked_before_anything_is_written(
    hub: Hub, tmp_path: Path, words: tuple[str, ...], token: str | None, message: str
):
    hub.is_private["me/open"] = False
    run = finished_run(tmp_path / "run")
    done = push(hub, tmp_path / "home", str(run), *words, token=token)
    assert done.returncode == 2
    assert message in done.stderr
    assert [request for request in hub.requests if request.startswith("POST")] == []
    assert not (run / "policy" / "README.md").exists()


def test_a_dry_run_writes_and_prints_the_card_and_lists_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = finished_run(tmp_path / "run")
    assert main(["push", str(run), "me/sums", "--dry-run"]) == 0
    out = capsys.readouterr().out
    card = (run / "policy" / "README.md").read_text()
    assert out.startswith(card)
    assert "  model.safetensors            700 bytes\n" in out
    assert "optimizer.pt" not in out


@pytest.mark.parametrize(
    ("repo", "spoil", "message"),
    [
        ("me/a b", "", "'me/a b' cannot name a repository"),
        ("me/sums", "policy", "has no policy yet, because the run is not finished"),
        ("me/sums", "policy/model.safetensors", "holds no .safetensors file"),
        ("me/sums", "recipe.yaml", "is not the folder of a run"),
    ],
)
def test_bad_input_is_refused(repo: str, spoil: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = finished_run(tmp_path / "run")
    if spoil:
        (run / spoil).rename(tmp_path / "away")
    assert main(["push", str(run), repo, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_adapters_of_a_run_without_them_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(finished_run(tmp_path / "run")), "me/sums", "--adapter", "--dry-run"]) == 2
    assert "was not trained with model.lora" in capsys.readouterr().err
