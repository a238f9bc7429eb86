"""The source of a reward function, from which another process can build it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkl.errors import RewardInputError, RlklError, did_you_mean
from rlkl.rewards.function.fingerprint import described, identity_of
from rlkl.system.importing import Importer, file_of, is_file

IMPORTER = Importer(
    key="rewards[].function",
    noun="reward",
    forms="path/to/file.py:function, package.module:function, or task:<name>",
    error=RewardInputError,
)

_TASK = "task:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A reference and settings. A file's text travels along, so that an edit during a run changes nothing."""

    reference: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    text: bytes = b""

    def found(self) -> Any:
        """Find the function, class or instance that the reference names; raises `RewardInputError` or `InputError`."""
        if self.reference.startswith(_TASK):
            from rlkl.tasks import task_reward

            return task_reward(self.reference.removeprefix(_TASK))
        if self.file is None:
            return IMPORTER.callable_at(self.reference)
        return IMPORTER.callable_in(IMPORTER.source(self.file, self.text), self.reference)

    def build(self) -> Callable[..., Any]:
        """Build the callable: the function with its settings filled in, or an instance of the class."""
        found = self.found()
        if not isinstance(found, type):
            return functools.partial(found, **self.settings) if self.settings else found
        try:
            return found(**self.settings)
        except RlklError:
            raise
        except Exception as error:  # whatever a user's class raises is told with its name
            raise RewardInputError(
                f"rewards[].function = '{self.reference}': {found.__name__}(**settings) raised "
                f"{type(error).__name__}: {error}"
            ) from error


def source_of(reference: str, settings: Mapping[str, Any]) -> Source:
    """Return the source as it is now."""
    if reference.startswith(_TASK) or not is_file(reference) or not file_of(reference).is_file():
        return Source(reference=reference, settings=settings)
    file = file_of(reference)
    return Source(reference=reference, settings=settings, file=file, text=IMPORTER.text_of(file))


def check_settings(found: Any, settings: Mapping[str, Any], reference: str) -> None:
    """Raise `RewardInputError` for a setting that the function or class does not take."""
    where = f"rewards[].function = '{reference}'"
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError as error:
        raise RewardInputError(f"{where} has no signature to read; wrap it in a Python function") from error
    if isinstance(found, type) and not any("__call__" in vars(base) for base in found.__mro__):
        raise RewardInputError(f"{where} is a class whose instances cannot be called; give it a __call__ method")
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY]
    for name in settings:
        if name not in names:
            raise RewardInputError(f"{where} takes no setting '{name}'; {did_you_mean(name, names)}")


def fingerprint_of(source: Source | None, function: Callable[..., Any]) -> str:
    """Hash the source text and the settings: the whole file of a reward that has one, else its module.

    For a function from Python, `identity_of` lists the parts that count. An instance with a method ``fingerprint`` adds
    the text that it returns, for everything else that its scores depend on, such as a model's weights.
    """
    if source is not None and source.file is not None:
        text = source.text.decode(errors="replace") + source.reference.rpartition(":")[2]
    elif source is not None:
        text = _module_text(function) + source.reference
    else:
        text = identity_of(function)
    settings = json.dumps(source.settings, sort_keys=True, default=repr) if source and source.settings else ""
    own = getattr(function, "fingerprint", None)
    further = str(own()) if callable(own) else ""
    return hashlib.blake2b((text + settings + further).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _module_text(function: Callable[..., Any]) -> str:
    function = described(function)
    module = sys.modules.get(function.__module__)
    try:
        return inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        return f"{function.__module__}.{function.__qualname__}"
