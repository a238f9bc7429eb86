"""Facts that are read of a model, and the errors for a path that is no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig

from rlkl.errors import RecipeError
from rlkl.recipe.resolved_model import ModelName, check_place, check_weights, read_model, warn_unless_here
from tests.models import tiny_qwen2_5_vl, tiny_qwen3

NAME = ModelName(key="models.teacher.path", value="as written")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_text_model_and_one_that_sees(tmp_path: Path):
    text = read_model(str(tiny_qwen3(tmp_path / "text", tied=False, seed=0)))
    assert (text.kind, text.is_multimodal, text.image_token_id, text.commit) == ("qwen3", False, None, None)
    sees = read_model(str(tiny_qwen2_5_vl(tmp_path / "sees", seed=0)))
    assert (sees.kind, sees.is_multimodal) == ("qwen2_5_vl", True)
    assert isinstance(sees.image_token_id, int)
    assert min(text.vocabulary, sees.vocabulary) > 10


def test_a_relative_folder_becomes_absolute(tmp_path: Path):
    tiny_qwen3(tmp_path / "model", tied=False, seed=0)
    assert read_model("model").path == str(tmp_path / "model")


def broken(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield paths that are no model, with a part of the error for each."""
    (folder / "models" / "qwen3").mkdir(parents=True)
    yield "models/qwen3", "the folder holds no config.json"
    yield "models/sub/qwen4", "there is no such folder, nor the folder '.*models/sub'"
    yield "./models/qwen4", r"there is no such folder; did you mean 'models/qwen3'\?"
    (folder / "file").touch()
    yield "file", "is a file"
    for name, text in (("text", "{"), ("list", "[]"), ("empty", "{}"), ("unknown", '{"model_type": "unheard"}')):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
        yield name, r"its config\.json cannot be read \("
    (folder / "vit").mkdir()
    (folder / "vit" / "config.json").write_text('{"model_type": "vit"}')
    yield "vit", "is a model of type vit, which has no vocabulary"


def test_each_mistake_names_the_key_the_value_what_is_wrong_and_what_is_expected(tmp_path: Path):
    for path, problem in broken(tmp_path):
        with pytest.raises(RecipeError, match=rf"models\.teacher\.path = 'as written'.*{problem}.*Expected a folder"):
            read_model(path, NAME)


def test_the_folder_of_a_run_is_refused_with_the_folder_of_its_policy(tmp_path: Path):
    tiny_qwen3(tmp_path / "run" / "policy", tied=False, seed=0)
    with pytest.raises(RecipeError, match=r"is the folder of a run; its model is in .*run/policy: give that"):
        read_model(str(tmp_path / "run"), NAME)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    folder = tiny_qwen3(tmp_path / "model", tied=False, seed=0)
    check_weights(str(folder), NAME)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"models\.teacher\.path = 'as written': the folder holds no weights"):
        check_weights(str(folder), NAME)


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (GatedRepoError, "its owner gives access on request"),
        (RepositoryNotFoundError, "huggingface.co has no public model of that name"),
        (LocalEntryNotFoundError, "not in the local cache of huggingface_hub, and huggingface.co does not answer"),
        (ConnectionResetError, "the raw message"),
    ],
)
def test_a_name_that_cannot_be_fetched_has_its_reason(
    cause: type[Exception], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object, **__: object) -> None:
        raise OSError("the raw message\nand its advice") from cause.__new__(cause)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(AutoConfig, "from_pretrained", fails)
    with pytest.raises(RecipeError) as caught:
        read_model("someone/model", NAME)
    text = str(caught.value)
    assert text.startswith(f"models.teacher.path = 'as written': there is no such folder in {tmp_path}, and no model")
    assert reason in text
    assert "and its advice" not in text


def test_a_name_is_refused_where_nothing_may_be_downloaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=r"models\.teacher\.path = .*HF_HUB_OFFLINE forbids to download it"):
        read_model("someone/model", NAME)


def test_a_name_passes_without_a_look_at_a_server_and_is_warned_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    check_place("someone/model", NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "the run downloads this model first" in str(warn_unless_here("someone/model", NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "a run would be refused" in str(warn_unless_here("someone/model", NAME))
    assert warn_unless_here(str(tmp_path), NAME) is None
