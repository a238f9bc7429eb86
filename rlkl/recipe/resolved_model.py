"""The facts of a model that set-up reads once and hands on: folder, vocabulary, limits, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkl.errors import RecipeError, did_you_mean
from rlkl.recipe.changes import absolute_if_local
from rlkl.recipe.weight_files import problem_with_shape, problem_with_weights

EXPECTED = (
    "Expected a folder with a Hugging Face model (config.json, weights, tokenizer), the name of a model on "
    "huggingface.co such as Qwen/Qwen3-0.6B, or a built-in model such as task:arithmetic"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """A recipe key that names a model, and its value: ``models.teacher.path``, ``Qwen/Qwen3-0.6B``."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model of a run: where it is, and the facts of its config.json. `read_model` makes it."""

    path: str
    """Its absolute folder, or its name on huggingface.co."""
    kind: str
    """``model_type`` of config.json: ``qwen3``."""
    vocabulary: int
    """Number of token ids."""
    is_multimodal: bool
    """Whether it is a vision-language model."""
    image_token_id: int | None
    """The placeholder of a picture in its prompts; None if it has none."""
    commit: str | None
    """Its commit on huggingface.co; None for a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModels:
    """All models of a run. `rlkl.models.resolve.resolve_models` makes it."""

    policy: ResolvedModel
    reference: ResolvedModel | None
    """The model of ``model.reference``; None: the policy as it starts."""
    frozen: Mapping[str, ResolvedModel]
    """The models of ``models``, by name."""

    @property
    def frozen_paths(self) -> dict[str, str]:
        """The folders of ``frozen``, by name."""
        return {name: model.path for name, model in self.frozen.items()}


def read_model(path: str, name: ModelName | None = None) -> ResolvedModel:
    """Read the config.json of a model. ``name``: its key in the recipe and the value there, for messages.

    Raises `RecipeError` if there is no such folder, if it holds no model, or if a model cannot be fetched.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    name = name or ModelName(key="model.path", value=path)
    path = absolute_if_local(path)
    check_place(path, name)
    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise _unreadable(path, name, error) from error
    text = config.get_text_config()
    if getattr(text, "vocab_size", None) is None:
        raise RecipeError(f"{name} is a model of type {config.model_type}, which has no vocabulary. {EXPECTED}")
    return ResolvedModel(
        path=path,
        kind=config.model_type,
        vocabulary=text.vocab_size,
        is_multimodal=getattr(config, "vision_config", None) is not None,
        image_token_id=getattr(config, "image_token_id", None),
        commit=getattr(config, "_commit_hash", None),
    )


def check_place(path: str, name: ModelName) -> None:
    """Raise `RecipeError` if ``path`` cannot be a model: no such folder, not a folder, or no model in it.

    Loads nothing and asks no server, so the name of a model on huggingface.co passes.
    """
    folder = Path(path)
    if folder.is_dir():
        _check_folder(folder, name)
    elif folder.exists():
        raise RecipeError(f"{name} is a file. {EXPECTED}")
    elif not is_hub_name(path):
        near = _near(folder)
        raise RecipeError(f"{name}: there is no such folder{near}{'' if near.endswith('?') else '.'} {EXPECTED}")


def check_weights(path: str, name: ModelName) -> None:
    """Raise `RecipeError` if ``path`` is a folder whose weights are missing, not whole, or of another config.json."""
    folder = Path(path)
    if not folder.is_dir():
        return
    if problem := problem_with_weights(folder) or problem_with_shape(folder, _values_of(folder, name)):
        raise RecipeError(f"{name}: {problem}. {EXPECTED}")


def warn_unless_here(path: str, name: ModelName) -> str | None:
    """Return a warning if the model must be fetched from huggingface.co before a run can start; else None."""
    if Path(path).exists():
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(path, "config.json"), str):
        return None
    effect = (
        f"a run would be refused, because {_OFFLINE}"
        if constants.is_offline_mode()
        else "the run downloads this model first"
    )
    return f"{name} is no folder in {Path.cwd()} and not in the local cache of huggingface_hub: {effect}"


def is_hub_name(path: str) -> bool:
    """Return whether a model on huggingface.co can have this name: ``gpt2``, ``Qwen/Qwen3-0.6B``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def _check_folder(folder: Path, name: ModelName) -> None:
    if (folder / "config.json").is_file():
        _values_of(folder, name)
        return
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(
            f"{name}: the folder holds adapters of {_base_of(folder)}, and no whole model. Name the folder above it if "
            "a run exported it (policy/ holds the merged model), or merge them with peft's merge_and_unload() and save"
        )
    if (folder / "policy" / "config.json").is_file():
        raise RecipeError(f"{name} is the folder of a run; its model is in {folder / 'policy'}: give that")
    raise RecipeError(f"{name}: the folder holds no config.json, so it is no Hugging Face model. {EXPECTED}")


def _values_of(folder: Path, name: ModelName) -> dict[str, Any]:
    """Return the values of config.json in a folder; raise `RecipeError` if it cannot be read."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(str(folder), name, error) from error
    if not isinstance(values, dict):
        raise _unreadable(str(folder), name, ValueError("it is no JSON object"))
    return values


def _base_of(folder: Path) -> str:
    try:
        return repr(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another model"


def _near(folder: Path) -> str:
    """Return the folders that lie beside a missing one, for a message."""
    parent = folder.expanduser().absolute().parent
    if not parent.is_dir():
        return f", nor the folder {str(parent)!r}"
    beside = (entry.name for entry in parent.iterdir() if entry.is_dir())
    return f"; {did_you_mean(folder.name, beside, folder=folder.parent)}"


_OFFLINE = "HF_HUB_OFFLINE forbids to download it"
_NOT_CACHED = "it is not in the local cache of huggingface_hub, and"


def _unreadable(path: str, name: ModelName, error: Exception) -> RecipeError:
    """Return the error for a config.json that cannot be had or read."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if "trust_remote_code" in str(error):
        return RecipeError(
            f"{name} comes with Python code of its own (auto_map in its config.json), and rlkl runs no code from a "
            "model's folder. Take a model that transformers knows by itself"
        )
    if Path(path).exists():
        return RecipeError(f"{name}: its config.json cannot be read ({_first_line(error)}). {EXPECTED}")
    causes = list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return _not_fetched(
            name, "its owner gives access on request; accept the terms on its page and run hf auth login"
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return _not_fetched(name, "huggingface.co has no public model of that name")
    if constants.is_offline_mode():
        return _not_fetched(name, f"{_NOT_CACHED} {_OFFLINE}")
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        return _not_fetched(name, f"{_NOT_CACHED} huggingface.co does not answer")
    return _not_fetched(name, _first_line(error))


def _not_fetched(name: ModelName, reason: str) -> RecipeError:
    return RecipeError(
        f"{name}: there is no such folder in {Path.cwd()}, and no model of that name can be fetched: {reason}. "
        f"{EXPECTED}"
    )


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
