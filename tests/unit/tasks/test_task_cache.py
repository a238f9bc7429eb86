"""Finding tasks, and keeping their base models."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import InputError
from rlkl.system.cache import cache_folder
from rlkl.tasks import TASKS, Task, base_model, get_task, model_task, task_name, task_reward, task_rows
from rlkl.tasks.arithmetic import Arithmetic
from rlkl.tasks.cache import _fingerprint, cached_base_model
from rlkl.tasks.reviews import REWARD_MODEL, Reviews


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Counted(Task):
    """A task that counts its builds in a file and calls ``meanwhile`` during each."""

    log: Path
    setting: int = 0
    meanwhile: Callable[[], None] = nothing

    def rows(self) -> list[dict[str, Any]]:
        return []

    def reward(self, prompt: str, completion: str, answer: str) -> float:
        return 0.0

    def build_base_model(self, folder: Path) -> None:
        with self.log.open("a") as log:
            log.write("built\n")
        (folder / "weights").write_text("ours")
        self.meanwhile()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RLKL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "base_models"


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match=r"'arithmetics'; did you mean 'arithmetic'"):
        get_task("arithmetics")
    with pytest.raises(InputError, match=r"'x'"):
        base_model("x")


def test_an_unknown_further_model_names_the_nearest():
    with pytest.raises(InputError, match=r"task:arithmetic has no model called 'teachr'; did you mean 'teacher'"):
        base_model("arithmetic/teachr")
    with pytest.raises(InputError, match=r"task:shapes has no model called 'teacher'"):
        model_task("shapes/teacher")


@pytest.mark.parametrize("name", ["arithmetic", "reviews"])
def test_a_teacher_is_a_larger_model_with_the_tokens_of_the_base_model(name: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, teacher = model_task(name), model_task(f"{name}/teacher")
    sizes, tokens = [], []
    for number, task in enumerate((base, teacher)):
        few = {"pairs": 64} if isinstance(task, Reviews) else {}
        replace(task, steps=1, batch_size=4, **few).build_base_model(tmp_path / str(number))  # pyright: ignore
        sizes.append(AutoModelForCausalLM.from_pretrained(tmp_path / str(number)).num_parameters())
        tokens.append(AutoTokenizer.from_pretrained(tmp_path / str(number)).get_vocab())
    assert sizes[1] > 2 * sizes[0]
    assert tokens[0] == tokens[1]
    assert not (tmp_path / "1" / REWARD_MODEL).exists()


def test_a_further_model_has_a_folder_of_its_own_beside_the_base_model(tmp_path, cache):
    task = Counted(tmp_path / "log")
    base, further = (cached_base_model(name, task) for name in ("counted", "counted/teacher"))
    assert base.parent == further.parent == cache
    assert further.name.startswith("counted-teacher-")


def test_task_name_is_what_follows_the_prefix():
    assert task_name("task:arithmetic") == "arithmetic"
    assert task_name("Qwen/Qwen3-0.6B") is None


def test_cache_folder_defaults_to_the_home_folder(monkeypatch):
    monkeypatch.delenv("RLKL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "rlkl"


def test_a_base_model_is_built_once_and_says_so(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO, logger="rlkl")
    task = Counted(tmp_path / "log")
    folder = cached_base_model("counted", task)
    assert (folder / "weights").read_text() == "ours"
    assert folder.parent == cache
    assert "building the base model of task:counted" in caplog.text
    assert cached_base_model("counted", task) == folder
    assert (tmp_path / "log").read_text() == "built\n"


def test_changed_settings_get_a_model_of_their_own(tmp_path):
    first = cached_base_model("counted", Counted(tmp_path / "log", setting=1))
    second = cached_base_model("counted", Counted(tmp_path / "log", setting=2))
    assert first != second


def test_a_failed_build_leaves_nothing_behind(tmp_path, cache):
    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"out of memory"):
        cached_base_model("counted", Counted(tmp_path / "log", meanwhile=fail))
    assert list(cache.iterdir()) == []


def test_of_two_builders_at_once_the_first_wins(tmp_path, cache):
    built: list[Path] = []

    def finish_first() -> None:
        if built:
            built[0].mkdir()
            (built[0] / "weights").write_text("theirs")

    task = Counted(tmp_path / "log", meanwhile=finish_first)
    built.append(cached_base_model("counted", task))
    shutil.rmtree(built[0])
    assert (cached_base_model("counted", task) / "weights").read_text() == "theirs"
    assert list(cache.iterdir()) == built


def test_every_registered_task_has_rows_with_an_id_of_their_own_and_a_prompt():
    for task in TASKS.values():
        rows = task.rows()
        assert len({row["id"] for row in rows}) == len(rows)
        assert all(row["prompt"] for row in rows)


def test_a_part_of_a_task_is_named_after_a_slash():
    assert task_rows("arithmetic")[0]["prompt"] == "0+0="
    assert task_rows("reviews/pairs")[0].keys() >= {"id", "prompt", "chosen", "rejected"}
    assert task_reward("arithmetic")("0+0=", "0", "0") == 1.0
    assert task_reward("reviews/gold")("the plot of this western was", "brilliant .") == 1.0
    with pytest.raises(InputError, match=r"task:reviews has no reward called 'glod'; did you mean 'gold'"):
        task_reward("reviews/glod")
    with pytest.raises(InputError, match=r"task:arithmetic has no rows called 'pairs'"):
        task_rows("arithmetic/pairs")
    with pytest.raises(InputError, match=r"did you mean 'reviews'"):
        task_rows("review/pairs")


def test_a_change_in_any_file_of_a_world_builds_anew(tmp_path, monkeypatch):
    """The builders' texts are part of the key: with another text, another key."""
    before = _fingerprint(Reviews())
    assert _fingerprint(Reviews()) == before
    assert _fingerprint(Reviews(seed=1)) != before
    read = Path.read_text

    def edited(file: Path, **arguments: Any) -> str:
        return read(file, **arguments) + ("# edited" if file.name == "reviews_language.py" else "")

    arithmetic = _fingerprint(Arithmetic())
    monkeypatch.setattr(Path, "read_text", edited)
    assert _fingerprint(Reviews()) != before
    assert _fingerprint(Arithmetic()) == arithmetic
