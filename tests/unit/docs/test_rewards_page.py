"""Every example of the README and of docs/rewards.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkl.recipe import RewardSection, ScoringSection
from rlkl.rewards import load_rewards
from tests.unit.rewards.score_texts import loaded, score, values

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rewards.md").read_text()
README = re.search(r"## Write a reward\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)
assert README is not None


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of the page's code in the one file that its recipes name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text("\n".join(blocks(PAGE, "python")))
    return tmp_path


GROUPS = (["1", "2 please"], ["2", "2 2 and so on and so on"])  # the answers are 1 and 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("closeness", [1.0, 0.0, 1.0, 0.0]),
        ("all_at_once", [1.0, 0.0, 1.0, 0.0]),
        ("shortest_right_one", [1.0, 0.0, 1.0, 0.0]),
        ("graded", [1.1, 0.1, 1.1, 1.0]),
        ("asked", [1.0, 8.0, 1.0, 23.0]),
        ("no_repeats", [0.0, -0.1, 0.0, -1.6]),
    ],
)
def test_functions_score_as_they_say(here: Path, name: str, expected: list[float]):
    with loaded({"function": f"my_rewards.py:{name}"}) as rewards:
        assert values(score(rewards, *GROUPS)) == pytest.approx(expected)


def test_a_class_with_the_settings_of_its_recipe(here: Path):
    section = yaml.safe_load(blocks(PAGE, "yaml")[0])["rewards"][0]
    with loaded(section | {"mode": "process"}) as rewards:
        assert values(score(rewards, *GROUPS)) == [0.0, 1.0, 0.0, 0.0]


def test_the_recipe_with_every_key(here: Path):
    recipe = yaml.safe_load(blocks(PAGE, "yaml")[1])
    sections = [RewardSection.model_validate(section) for section in recipe["rewards"]]
    ScoringSection.model_validate(recipe["scoring"])
    load_rewards(sections)
    assert set().union(*(section.model_fields_set for section in sections)) == set(RewardSection.model_fields)


def test_every_key_is_explained():
    for key in RewardSection.model_fields:
        assert f"`{key}" in PAGE or f"{key}:" in PAGE, key


def test_the_readmes_reward_is_ten_lines_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert README is not None
    code = blocks(README[1], "python")[0]
    assert len(code.splitlines()) <= 10
    assert "import" not in code
    monkeypatch.chdir(tmp_path)
    Path("my_reward.py").write_text(code)
    Path("my_judge.py").write_text("class Judge:\n    def __call__(self, completion):\n        return 0.0\n")
    Path("held_out.py").write_text("def score(completion):\n    return float(len(completion))\n")
    sections: list[dict[str, Any]] = yaml.safe_load(blocks(README[1], "yaml")[0])["rewards"]
    with loaded(*sections) as rewards:
        done = score(rewards, ["1", "2"], ["x", "3"])
    assert values(done) == pytest.approx([1.0, 0.9, 0.0, 0.9])
    assert [scored.monitors for scored in done.scored] == [{"score": 1.0}] * 4
