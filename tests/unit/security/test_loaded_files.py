"""Files from elsewhere cannot run code: models, checkpoints and recipes."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from reward_models.classifier import SequenceClassifier
from rlkl.commands.score import _tokenizer
from rlkl.data.vision import load_picture_processor
from rlkl.errors import CheckpointError, RlklError
from rlkl.learner.shards_on_disk import write_tensors
from rlkl.learner.state import OLD_FILE, TENSORS_FOLDER
from rlkl.models.language_model import LanguageModel
from rlkl.recipe.io import load_recipe
from rlkl.recipe.resolved_model import read_model
from rlkl.rollout.settings import load_tokenizer
from rlkl.updates.base import ModelShape
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, train
from tests.unit.security.traps import Trap, add_code

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"), tied=True, seed=0)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "the code ran"


def copy_of(model: Path, target: Path) -> Path:
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_the_traps_of_this_file_work(mark: Path):
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.is_dir()


@pytest.mark.parametrize("kind", ["torch's archive", "a bare pickle"])
def test_pickled_weights_of_a_model_run_no_code(kind: str, model: Path, mark: Path, tmp_path: Path):
    folder = copy_of(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    if kind == "a bare pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap(mark)}))
    else:
        torch.save({"a": Trap(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|pickle"):
        LanguageModel(str(folder), dtype=torch.float32, device=CPU)
    assert not mark.exists()


def test_a_pickled_state_of_the_learner_runs_no_code(model: Path, mark: Path, tmp_path: Path):
    learner = build(str(model))
    torch.save({"trained": Trap(mark)}, tmp_path / OLD_FILE)
    with pytest.raises(CheckpointError, match="cannot be read"):
        learner.restore(tmp_path)
    assert not mark.exists()


def saved_state(model: Path, folder: Path) -> None:
    learner = build(str(model))
    train(learner)
    folder.mkdir()
    learner.save(folder)


def index_as(change: Callable[[pickle.Pickler, dict[str, object]], object], state: Path) -> None:
    """Write the index of saved tensors anew."""
    path = state / TENSORS_FOLDER / ".metadata"
    index = pickle.loads(path.read_bytes())
    stream = io.BytesIO()
    change(pickle.Pickler(stream), vars(index))
    path.write_bytes(stream.getvalue() or pickle.dumps(index))


def test_the_index_of_saved_tensors_runs_no_code(model: Path, mark: Path, tmp_path: Path):
    """Torch's own reader would run it."""
    state = tmp_path / "state"
    saved_state(model, state)
    index_as(lambda pickler, _: pickler.dump(Trap(mark)), state)
    with pytest.raises(CheckpointError, match=r"refers to (posix|nt|os)\.makedirs"):
        build(str(model)).restore(state)
    assert not mark.exists()


def test_values_that_torch_would_unpickle_are_refused_in_the_index(model: Path, tmp_path: Path):
    state = tmp_path / "state"
    saved_state(model, state)

    def to_bytes(_: pickle.Pickler, index: dict[str, object]) -> None:
        entries = index["state_dict_metadata"]
        assert isinstance(entries, dict)
        entries[next(iter(entries))] = BytesStorageMetadata()

    index_as(to_bytes, state)
    with pytest.raises(CheckpointError, match="BytesStorageMetadata, which no index of tensors needs"):
        build(str(model)).restore(state)


def test_an_index_that_names_files_elsewhere_is_refused(model: Path, tmp_path: Path):
    state = tmp_path / "state"
    saved_state(model, state)

    def elsewhere(_: pickle.Pickler, index: dict[str, object]) -> None:
        files = index["storage_data"]
        assert isinstance(files, dict)
        next(iter(files.values())).relative_path = "../elsewhere.distcp"

    index_as(elsewhere, state)
    with pytest.raises(CheckpointError, match=r"a file that is not in the folder: \.\./elsewhere\.distcp"):
        build(str(model)).restore(state)


def test_pickled_tensors_of_an_optimizer_run_no_code(model: Path, mark: Path, tmp_path: Path):
    """The index is as it was written; a shard holds something else at each of its places."""
    state = tmp_path / "state"
    saved_state(model, state)
    stream = io.BytesIO()
    torch.save(Trap(mark), stream)
    shard = state / TENSORS_FOLDER / "__0_0.distcp"
    index_path = state / TENSORS_FOLDER / ".metadata"
    index = pickle.loads(index_path.read_bytes())
    for info in index.storage_data.values():
        info.offset, info.length = 0, len(stream.getvalue())
    index_path.write_bytes(pickle.dumps(index))
    shard.write_bytes(stream.getvalue())
    with pytest.raises(CheckpointError, match="cannot be read"):
        build(str(model)).restore(state)
    assert not mark.exists()


def test_every_precision_can_be_saved_and_read_again(tmp_path: Path):
    from rlkl.learner.shards_on_disk import read_tensors, shapes_in

    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn)
    saved = {str(kind): torch.tensor([1.0, 0.0]).to(kind) for kind in kinds}
    write_tensors(saved, tmp_path / "x", alone=True)
    assert shapes_in(tmp_path / "x") == dict.fromkeys(saved, (2,))
    found = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    read_tensors(found, tmp_path / "x", alone=True)
    assert all(torch.equal(found[name].float(), saved[name].float()) for name in saved)


LOADERS: dict[str, Callable[[str], object]] = {
    "config": read_model,
    "weights": lambda path: LanguageModel(path, dtype=torch.float32, device=CPU),
    "heads": lambda path: ModelShape(path=path, hidden_size=1, layers=1, seed=0).load_copy(),
    "tokenizer": load_tokenizer,
    "tokenizer of rlkl score": _tokenizer,
    "pictures": load_picture_processor,
    "reward model": lambda path: SequenceClassifier(path=path, text="completion").setup(),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_code_in_a_models_folder_does_not_run(
    loader: str, model: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The terminal answers yes if transformers asks whether to run the code. rlkl tells it not to ask."""
    folder = copy_of(model, tmp_path / "model")
    add_code(folder, mark)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises((RlklError, ValueError), match=r"code of its own|custom code"):
        LOADERS[loader](str(folder))
    assert not mark.exists()
    assert sys.stdin.read(2) == "y\n", "nobody has asked"


def test_the_message_about_a_model_with_code_says_what_to_do(model: Path, mark: Path, tmp_path: Path):
    folder = copy_of(model, tmp_path / "model")
    add_code(folder, mark)
    with pytest.raises(RlklError, match=r"Python code of its own .*rlkl runs no code from a model's folder"):
        read_model(str(folder))


@pytest.mark.parametrize("key", ["rollout.vllm.trust_remote_code=true", "rollout.vllm.hf_token=abc"])
def test_no_key_of_the_engine_lets_code_or_a_token_in(key: str):
    from rlkl.rollout.vllm_arguments import check_vllm_arguments

    with pytest.raises(RlklError, match=r"no code from a model's folder|must not hold secrets"):
        check_vllm_arguments(load_recipe("quickstart", key).rollout.vllm.arguments)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.makedirs [{mark}]",
        "model: !!python/object/new:os.makedirs [{mark}]",
        "a: !!python/name:os.makedirs",
    ],
)
def test_yaml_makes_no_objects(text: str, mark: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("{mark}", json.dumps(str(mark))))
    with pytest.raises(RlklError, match="could not determine a constructor"):
        load_recipe(recipe)
    with pytest.raises(RlklError, match="could not determine a constructor"):
        load_recipe("quickstart", f"run={text.replace('{mark}', json.dumps(str(mark)))}")
    assert not mark.exists()


def test_records_of_a_foreign_run_run_no_code(mark: Path, tmp_path: Path):
    """`rlkl report` and `rlkl compare` read the recipe of a run as plain values: its rule's file is not imported."""
    from tests.run_folders import write_run

    run = write_run(tmp_path / "run", steps=3)
    rule = tmp_path / "rule.py"
    rule.write_text(f"import os\nos.makedirs({str(mark)!r})\n")
    recipe = run / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace("rule: grpo", f"rule: {rule}:Rule").replace("task:arithmetic", f"{rule}:reward")
    )
    done = subprocess.run([sys.executable, "-m", "rlkl", "report", str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
