"""The models of a recipe: each folder is read once in the whole set-up."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rlkl.errors import RecipeError
from rlkl.models.resolve import check_models, resolve_models
from rlkl.training.setup import _prepare
from tests.integration.runs import make_recipe
from tests.models import tiny_qwen2_5_vl, tiny_qwen3


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the times that rlkl itself reads the configuration of each model."""
    counts: Counter[str] = Counter()
    read: Any = AutoConfig.from_pretrained

    def counted(path: str, **options: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("rlkl"):
            counts[Path(path).name] += 1
        return read(path, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", counted)
    return counts


@pytest.mark.parametrize("sees", [False, True], ids=["text", "pictures"])
def test_set_up_reads_each_model_once(sees: bool, reads: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    policy = (
        tiny_qwen2_5_vl(tmp_path / "policy", seed=0) if sees else tiny_qwen3(tmp_path / "policy", tied=True, seed=0)
    )
    other = shutil.copytree(policy, tmp_path / "other")
    recipe = make_recipe(
        tmp_path / "run",
        policy,
        model={"path": str(policy), "reference": str(other)},
        models={"teacher": {"path": str(other)}, "start": {"path": str(policy)}},
        rollout={"engine": "hf"},
    )
    setup = _prepare(recipe, (), None, allow_changed_rewards=False)
    assert reads == {"policy": 1, "other": 1}
    assert (setup.spec.model_path, setup.spec.reference_path) == (str(policy), str(other))
    assert setup.spec.frozen_paths == {"teacher": str(other), "start": str(policy)}
    assert (setup.pictures is not None) is sees


def test_a_missing_model_is_named_by_its_key_with_and_without_loading(tmp_path: Path):
    policy = tiny_qwen3(tmp_path / "policy", tied=False, seed=0)
    for sections, key in (
        ({"model": {"path": str(tmp_path / "x")}}, r"model\.path"),
        ({"model": {"path": str(policy), "reference": str(tmp_path / "x")}}, r"model\.reference"),
        ({"models": {"teacher": {"path": str(tmp_path / "x")}}}, r"models\.teacher\.path"),
        ({"model": {"path": "task:arithmetics"}}, r"model\.path"),
    ):
        recipe = make_recipe(tmp_path / "run", policy, **sections)
        for look in (resolve_models, check_models):
            with pytest.raises(RecipeError, match=rf"^{key} = '.*(there is no such folder|no built-in task)"):
                look(recipe)


def test_a_folder_without_weights_is_refused_with_and_without_loading(tmp_path: Path):
    policy = tiny_qwen3(tmp_path / "policy", tied=False, seed=0)
    assert check_models(make_recipe(tmp_path / "run", policy)) == []
    (policy / "model.safetensors").unlink()
    for look in (resolve_models, check_models):
        with pytest.raises(RecipeError, match=r"^model\.path = .*holds no weights"):
            look(make_recipe(tmp_path / "run", policy))
