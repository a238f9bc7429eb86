"""`rlkl push`: publish the policy of a run on the Hugging Face Hub, with a model card that holds its numbers."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from rlkl.analysis.card.scrub import scrub_settings
from rlkl.analysis.runs import RunFolder, read_run
from rlkl.errors import EnvironmentProblem, InputError
from rlkl.recipe.run_dir import has_checkpoint, start_anew
from rlkl.system.telemetry import silence_telemetry

_ADAPTER = "adapter"
_WEIGHTS = ".safetensors"
_SETTINGS = (".json", ".jinja", ".txt", ".model")
"""Endings of the published files beside the weights: settings, tokenizer and chat templates."""
_WITH_PATHS = "config.json"
"""The end of the names of files in which libraries leave local paths, such as that of the base model."""
_TEMPLATES = "additional_chat_templates"
"""The folder of further chat templates, beside ``chat_template.jinja``."""


def run(options: Namespace) -> int:
    """Write the card and upload the policy, print the address, and return 0; with ``--dry-run`` upload nothing.

    The name of the repository, the token and the run are checked before anything is written.
    """
    silence_telemetry()
    _check_name(options.repo)
    trained = read_run(options.run)
    folder = _policy_folder(trained, adapter=options.adapter)
    user = None if options.dry_run else _check_account(options.repo, private=options.private)
    with tempfile.TemporaryDirectory(prefix="rlkl-push-") as staged:
        stage(trained, folder, Path(staged), options.repo, with_samples=options.with_samples)
        shown = _listed(Path(staged)) if user is None else _upload(Path(staged), options)
    Console(markup=False, highlight=False, emoji=False, soft_wrap=True).print(shown)
    return 0


def stage(trained: RunFolder, folder: Path, target: Path, repo: str, *, with_samples: bool = False) -> None:
    """Fill ``target`` with all that is published: links to the weights, settings without local paths, and the card.

    The card is also written into the run's ``policy/``.
    """
    from rlkl.analysis.card.card import CARD_FILE, write_card
    from rlkl.analysis.card.charts import can_draw, draw_pictures

    for file in sorted(_files_of_policy(folder)):
        copy = target / file.relative_to(folder)
        if file.suffix == _WEIGHTS:
            copy.symlink_to(file.absolute())
        elif file.name.endswith(_WITH_PATHS):
            copy.write_bytes(scrub_settings(file.read_bytes().decode("utf-8")).encode("utf-8"))
        elif file.suffix in _SETTINGS:
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    pictures = draw_pictures(trained, target) if can_draw() else []
    card = write_card(trained, repo, pictures=pictures, is_adapter=folder.name == _ADAPTER)
    (target / CARD_FILE).write_text(card, encoding="utf-8")
    if with_samples:
        (target / "samples").mkdir()
        for file in sorted((trained.path / "samples").glob("*.parquet")):
            (target / "samples" / file.name).symlink_to(file.absolute())
    for name in (CARD_FILE, *pictures):
        (trained.path / "policy" / name).write_bytes((target / name).read_bytes())


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"'{repo}' cannot name a repository ({error}); expected USER/NAME, such as me/my-policy"
        ) from error


def _policy_folder(trained: RunFolder, *, adapter: bool) -> Path:
    """Return the folder that is published; raise `InputError` if the run has none, or has other than safetensors."""
    if not trained.is_finished:
        if has_checkpoint(trained.path):
            way = f"Go on with it: rlkl train --resume {trained.path}"
        else:
            way = f"It has no checkpoint to go on from; start it anew: {start_anew(trained.path)}"
        raise InputError(f"{trained.path} has no policy yet, because the run is not finished. {way}")
    folder = trained.path / "policy"
    if adapter:
        folder = folder / _ADAPTER
        if not folder.is_dir():
            raise InputError(f"--adapter: {trained.path} was not trained with model.lora; leave --adapter out")
    for file in (*folder.iterdir(), *_files_of_policy(folder), *(trained.path / "samples").glob("*")):
        if not file.resolve().is_relative_to(trained.path.resolve()):
            raise InputError(f"{file} is a link to {file.resolve()}, outside of the run; remove it, or copy the file")
    if not any(folder.glob(f"*{_WEIGHTS}")):
        raise InputError(f"{folder} holds no {_WEIGHTS} file, and rlkl publishes no other weights; export it again")
    return folder


def _files_of_policy(folder: Path) -> Iterator[Path]:
    yield from (file for file in folder.iterdir() if file.is_file())
    yield from (folder / _TEMPLATES).glob("*.jinja")


def _check_account(repo: str, *, private: bool) -> str:
    """Return the name of the user; raise if there is no token, or if a private policy would become public."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    api = HfApi()
    try:
        user = str(api.whoami()["name"])
        known = api.repo_info(repo)
    except LocalTokenNotFoundError as error:
        raise EnvironmentProblem("there is no Hugging Face token: run `hf auth login`, or set HF_TOKEN") from error
    except RepositoryNotFoundError:  # it will be made
        return user
    except (HfHubHTTPError, OSError) as error:
        raise EnvironmentProblem(
            f"the hub does not accept the token, or is not reached: {_first_line(error)}"
        ) from error
    if private and not known.private:
        raise InputError(f"--private: {repo} exists and is public; choose another name, or make it private first")
    return user


def _upload(staged: Path, options: Namespace) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(options.repo, private=options.private or None, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=staged, commit_message="Policy and card by rlkl")
    except (HfHubHTTPError, OSError) as error:
        raise EnvironmentProblem(
            f"{options.repo} cannot be written ({_first_line(error)}). Check that the token may write there. The same "
            "command uploads what is missing"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _listed(staged: Path) -> str:
    """Return the card, and the names and sizes of all files that would be uploaded."""
    files = list(_files(staged))
    width = max(len(name) for name, _ in files)
    lines = [f"  {name:<{width}}  {size:>13,} bytes" for name, size in files]
    return "\n".join([(staged / "README.md").read_text(encoding="utf-8"), "would upload:", *lines])


def _files(staged: Path) -> Iterator[tuple[str, int]]:
    for file in sorted(staged.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(staged)), file.stat().st_size
