"""From references and functions to a set of rewards."""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rlkl.errors import InputError, RewardInputError
from rlkl.recipe import RewardSection
from rlkl.rewards import RewardSet, load_rewards, reward
from rlkl.types import Completion, Prompt

EXAMPLE = Path(__file__).parents[3] / "recipes" / "rewards_example.py"
PROMPT = Prompt(id="7+12", text="7+12=", token_ids=(1,), columns={"answer": "19"})


def score(rewards: RewardSet, text: str) -> float:
    completion = Completion(token_ids=(), logprobs=(), finish_reason="stop", text=text)
    with closing(rewards):
        return rewards.score(PROMPT, [completion], step=0, seed=0)[0].reward


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@reward(name="brevity", weight=0.5)
def short(completion: str) -> float:
    return -float(len(completion))


def constant() -> float:
    return 1.0


@pytest.mark.parametrize(("text", "expected"), [("19", 1.0), ("17", 0.8), ("3", 0.0), ("x", 0.0), ("", 0.0)])
def test_the_example_reward(text, expected):
    rewards = load_rewards([RewardSection(function=f"{EXAMPLE}:closeness")])
    rewards.check([PROMPT])
    assert score(rewards, text) == pytest.approx(expected)
    assert rewards.fingerprints.keys() == {"closeness"}


def test_a_task_gives_its_gold_reward_under_its_own_name():
    rewards = load_rewards([RewardSection(function="task:arithmetic")])
    assert (score(rewards, "19"), score(rewards, "20")) == (1.0, 0.0)
    assert rewards.fingerprints.keys() == {"arithmetic"}
    parts = load_rewards(
        [RewardSection(function="task:reviews"), RewardSection(function="task:reviews/gold", weight=0.0)]
    )
    assert parts.fingerprints.keys() == {"reviews", "gold"}
    with pytest.raises(InputError, match=r"did you mean 'arithmetic'"):
        load_rewards([RewardSection(function="task:arithmetik")])


def test_modules_and_files_are_found_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    write(tmp_path / "own_rewards_module.py", "def two():\n    return 2\n")
    sections = [
        RewardSection(function="own_rewards_module:two"),
        RewardSection(function="own_rewards_module.py:two", name="again"),
    ]
    assert score(load_rewards(sections), "") == 4.0


def test_a_reward_file_may_import_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    write(tmp_path / "neighbour_of_reward.py", "VALUE = 3\n")
    file = write(tmp_path / "own.py", "from neighbour_of_reward import VALUE\ndef three():\n    return VALUE\n")
    assert score(load_rewards([RewardSection(function=f"{file}:three")]), "") == 3.0


def test_two_inline_rewards_of_one_file_share_its_module_and_an_edited_file_is_read_again(tmp_path):
    text = "calls = []\ndef first():\n    calls.append(1)\n    return 0\ndef second():\n    return len(calls)\n"
    file = write(tmp_path / "own.py", text)
    sections = [RewardSection(function=f"{file}:{name}", mode="inline") for name in ("first", "second")]
    assert score(load_rewards(sections), "") == 1.0
    write(tmp_path / "own.py", "def first():\n    return 10\n")
    assert score(load_rewards(sections[:1]), "") == 10.0


def test_decorator_names_and_weighs_and_the_recipe_wins(tmp_path):
    assert score(load_rewards([], [short]), "abcd") == -2.0
    assert short("abcd") == -4.0
    file = write(
        tmp_path / "own.py",
        "import rlkl.rewards\n@rlkl.rewards.reward(name='there', weight=3.0)\ndef one():\n    return 1\n",
    )
    declared = load_rewards([RewardSection(function=f"{file}:one")])
    assert (score(declared, ""), list(declared.fingerprints)) == (3.0, ["there"])
    overruled = load_rewards([RewardSection(function=f"{file}:one", name="here", weight=1.0)])
    assert (score(overruled, ""), list(overruled.fingerprints)) == (1.0, ["here"])


def test_a_decorated_function_can_be_pickled():
    assert pickle.loads(pickle.dumps(short)) is short


def test_the_bare_decorator_leaves_name_and_weight_alone():
    @reward
    def plain() -> float:
        return 5.0

    rewards = load_rewards([], [plain])
    assert (score(rewards, ""), list(rewards.fingerprints)) == (5.0, ["plain"])


def test_recipe_and_caller_rewards_add_up():
    rewards = load_rewards([RewardSection(function="task:arithmetic", weight=2.0)], [constant])
    assert score(rewards, "19") == 3.0
    assert list(rewards.fingerprints) == ["arithmetic", "constant"]


def test_a_changed_source_changes_the_fingerprint(tmp_path):
    fingerprints = []
    for value in (1, 2, 1):
        file = write(tmp_path / "own.py", f"def one():\n    return {value}\n")
        fingerprints.append(load_rewards([RewardSection(function=f"{file}:one")]).fingerprints["one"])
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        ("def closeness(): ...\n", "own.py:closenes", "does not exist.*did you mean 'closeness'"),
        ("VALUE = 1\n", "own.py:VALUE", "is not callable"),
        ("def f(:\n", "own.py:f", "raised SyntaxError"),
        ("import no_such_package_here\n", "own.py:f", "raised ModuleNotFoundError.*no_such_package_here"),
        ("1 / 0\n", "own.py:f", "raised ZeroDivisionError"),
        ("class f:\n    pass\n", "own.py:f", "instances cannot be called; give it a __call__"),
        ("", "owm.py:f", r"no reward file.*did you mean '.*own\.py'"),
        ("", "nowhere/own.py:f", "nor the folder"),
        ("", "own.py", "names nothing to call; expected path/to/file.py:function"),
        ("", "no_such_module_here:f", "no_such_module_here.*raised ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path, monkeypatch, text, reference, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    write(tmp_path / "own.py", text)
    with pytest.raises(RewardInputError, match=message):
        load_rewards([RewardSection(function=reference)])


def test_no_reward_at_all_says_how_to_give_one():
    with pytest.raises(RewardInputError, match=r"rewards: \[\{function.*rlkl.train\(recipe, rewards="):
        load_rewards([])


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(RewardInputError, match=r"2 rewards are called 'constant'"):
        load_rewards([], [constant, constant])


@pytest.mark.parametrize("name", ["mean", "std", "failed", "a b", "<lambda>"])
def test_names_that_make_no_curve_are_refused(name):
    with pytest.raises(RewardInputError, match=name):
        load_rewards([RewardSection(function="task:arithmetic", name=name)])


def test_a_reference_among_the_functions_is_refused():
    with pytest.raises(RewardInputError, match=r"takes functions, got 'own.py:f'"):
        load_rewards([], ["own.py:f"])  # pyright: ignore[reportArgumentType]


def test_rewards_import_no_torch():
    code = "import rlkl.rewards, sys; sys.exit(bool({'torch', 'ray', 'vllm', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=EXAMPLE.parents[1], check=False).returncode == 0
