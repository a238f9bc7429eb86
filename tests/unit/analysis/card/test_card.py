"""The model card: numbers, warnings and setting of a run, and nothing of its owner."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rlkl.analysis.card.at_end import leave_card
from rlkl.analysis.card.card import write_card
from rlkl.analysis.card.charts import draw_pictures, frontier_chart, reward_chart
from rlkl.analysis.card.scrub import is_local, scrub, scrub_text
from rlkl.analysis.runs import read_run
from tests.unit.analysis.card.run_folders import HOME, SECRETS, finished_run


def metadata(card: str) -> dict[str, Any]:
    return ModelCard(card).data.to_dict()


def test_the_card_has_the_numbers_of_the_run(tmp_path: Path):
    card = write_card(read_run(finished_run(tmp_path / "run", evaluated=True)), "me/sums")
    for row in (
        "| reward (weighted sum) | 0.250 | 0.750 |",
        "| monitor `gold` | 0.750 | 0.250 |",
        "| KL | 0.500 | 1.500 |",
        "| tokens of a completion | 11.000 | 13.000 |",
        "| held-out score | 0.250 ± 0.062 | 0.500 ± 0.062 |",
        "| held-out KL | 0.000 | 1.500 |",
    ):
        assert row in card
    assert "reward/std" not in card
    assert "after 3 steps of grpo" in card
    assert 'from_pretrained("me/sums")' in card
    assert 'LLM("me/sums")' in card


def test_the_card_warns_with_the_step_at_which_the_watch_set_in(tmp_path: Path):
    run = finished_run(tmp_path / "run")
    assert "**Warning.**" in write_card(read_run(run))
    assert "- `gap/gold` at step 2\n" in write_card(read_run(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**r, "watch/gap/gold": 0.1}) + "\n" for r in lines))
    assert "did not trip in this run" in write_card(read_run(run))


def test_the_metadata_of_a_hub_model_can_be_found(tmp_path: Path):
    run = finished_run(
        tmp_path / "run",
        "model.path=Qwen/Qwen3-0.6B",
        "data.source=openai/gsm8k",
        "update.variant=dapo",
        evaluated=True,
    )
    found = metadata(write_card(read_run(run), "me/sums"))
    assert found["base_model"] == "Qwen/Qwen3-0.6B"
    assert found["datasets"] == ["openai/gsm8k"]
    assert found["library_name"] == "transformers"
    assert found["tags"] == ["rlkl", "rl", "grpo", "dapo"]
    assert "license" not in found
    (result,) = found["model-index"]
    values = {metric["name"]: metric["value"] for one in result["results"] for metric in one["metrics"]}
    assert (result["name"], values) == ("sums", {"eval/mean": 0.5, "eval/kl": 1.5})


def test_the_license_is_that_of_the_base_model(tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://q/LICENSE\n---\nhi\n"
    )
    found = metadata(write_card(read_run(finished_run(tmp_path / "run", f"model.path={base}"))))
    assert [found[key] for key in ("license", "license_name", "license_link")] == ["other", "qwen", "https://q/LICENSE"]
    assert "base_model" not in found, "a folder of this machine is no model of the hub"


def test_no_secret_and_no_local_path_is_in_the_card(tmp_path: Path):
    base = tmp_path / "somewhere" / "base-model"
    base.mkdir(parents=True)
    run = finished_run(tmp_path / "run", f"model.path={base}", "run.name=sums", "cluster.address=10.1.2.3:6379")
    card = write_card(read_run(run), "me/sums")
    for hidden in (*SECRETS, HOME, str(tmp_path), "somebody", "10.1.2.3"):
        assert hidden not in card
    recipe = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["model"]["path"] == "base-model"
    assert recipe["data"]["source"] == "rows.jsonl"
    (reward,) = recipe["rewards"]
    assert reward["function"] == "my_rewards.py:score"
    assert reward["settings"] == {
        "password": "(left out)",
        "url": "https://host/v1",
        "note": "see notes.txt and (left out) or (left out)",
        "wandb": "(left out)",
    }
    assert {"tracking", "cluster", "run", "checkpoint"} & recipe.keys() == set()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("task:arithmetic", "task:arithmetic"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("my.module:score", "my.module:score"),
        ("1/2 or 3/4", "1/2 or 3/4"),
        ("https://host/a/b/c", "https://host/a/b/c"),
        ("~/models/base", "base"),
        ("../rows.jsonl", "rows.jsonl"),
        (r"C:\Users\me\rows.jsonl", "rows.jsonl"),
        ("/a/b.py:C", "b.py:C"),
    ],
)
def test_of_a_path_the_last_part_is_left(text: str, left: str):
    assert scrub_text(text) == left
    assert is_local(text) == (text != left)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("see file:///home/me/x.txt", "see x.txt"),
        ("PATHS=/home/me/a:/home/me/b", "PATHS=a:b"),
        (r"open C:\Users\me\x.txt now", "open x.txt now"),
        ("read ~me/notes/x.txt", "read x.txt"),
        ("/home/me/one.txt and /home/me/two.txt", "one.txt and two.txt"),
        ("https://me:" + "pw@host/a/b?x=1#y, then", "https://host/a/b then"),
        ("https://host/page#part", "https://host/page#part"),
        ("/think about a/b", "/think about a/b"),
        ("/no_think", "/no_think"),
        ("~5 words", "~5 words"),
        ("./a and ../b", "./a and ../b"),
    ],
)
def test_of_a_text_only_paths_and_parts_of_addresses_go(text: str, left: str):
    assert scrub_text(text) == left


def test_numbers_and_harmless_keys_stay():
    values = {"max_prompt_tokens": 16, "api_key_variable": "OPENAI_API_KEY", "key": None, "tokens": ["a", 1.5, True]}
    assert scrub(values) == values
    assert scrub({"api_key": "x", "HF_TOKEN": "y"}) == {"api_key": "(left out)", "HF_TOKEN": "(left out)"}


def test_the_pictures_are_drawn(tmp_path: Path):
    run = read_run(finished_run(tmp_path / "run"))
    assert draw_pictures(run, tmp_path) == ["reward.png", "frontier.png"]
    for name in ("reward.png", "frontier.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    chart = frontier_chart(run)
    assert chart is not None
    points = [row for row in chart["data"]["values"] if row["metric"] == "monitor/gold"]
    assert [(row["kl"], row["value"]) for row in points] == [(0.5, 0.75), (1.0, 0.5), (1.5, 0.25)]
    assert "![reward](reward.png)\n![frontier](frontier.png)" in write_card(
        run, pictures=["reward.png", "frontier.png"]
    )


def test_a_run_without_a_kl_has_no_frontier(tmp_path: Path):
    folder = finished_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    run = read_run(folder)
    assert reward_chart(run) is not None
    assert frontier_chart(run) is None


def test_a_finished_run_has_its_card_and_a_damaged_one_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = finished_run(tmp_path / "run")
    leave_card(run)
    assert "Software: rlkl " in (run / "policy" / "README.md").read_text()
    assert caplog.records == []
    (run / "recipe.yaml").unlink()
    with caplog.at_level(logging.WARNING):
        leave_card(run)
    assert "no model card was written beside the policy (CheckpointError" in caplog.text
