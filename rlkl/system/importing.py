"""Import functions and classes that a recipe names: ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rlkl.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """Imports what one recipe key names, and writes the error messages. Paths start at the working directory.

    A file may import others from its folder.
    """

    key: str
    """``update.rule``"""
    noun: str
    """The kind of file, for messages: ``reward``."""
    forms: str
    """The accepted forms of the key's value, for messages."""
    error: type[InputError]

    def callable_at(self, reference: str) -> Any:
        """Return the function or class that ``reference`` names; raise ``error`` if there is none."""
        location, _, attribute = reference.rpartition(":")
        if not location or not attribute:
            raise self.error(f"{self.key} = '{reference}' names nothing to call; expected {self.forms}")
        module = self._file(file_of(reference)) if is_file(reference) else self._module(location)
        return self.callable_in(module, reference)

    def callable_in(self, module: ModuleType, reference: str) -> Any:
        """Return the function or class that ``reference`` names in an imported module."""
        location, _, attribute = reference.rpartition(":")
        found = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("__")}
        if attribute not in found:
            problem = "is not callable" if hasattr(module, attribute) else "does not exist"
            known = did_you_mean(attribute, found) if found else f"{location} defines no function and no class"
            raise self.error(f"{self.key} = '{reference}': '{attribute}' {problem} in {location}; {known}")
        return found[attribute]

    def _file(self, path: Path) -> ModuleType:
        if path.is_dir():
            raise self.error(f"the {self.noun} file '{path}' is a folder; expected a file of Python code")
        if not path.is_file():
            if not path.parent.is_dir():
                raise self.error(f"there is no {self.noun} file '{path}', nor the folder '{path.parent}'")
            files = (file.name for file in path.parent.glob("*.py"))
            raise self.error(
                f"there is no {self.noun} file '{path}'; {did_you_mean(path.name, files, folder=path.parent)}"
            )
        return self.source(path, self.text_of(path))

    def text_of(self, path: Path) -> bytes:
        """Read a file; raise ``error`` if that is not allowed."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise self.error(
                f"the {self.noun} file '{path}' cannot be read ({error.strerror}); see that you may read it"
            ) from error

    def source(self, path: Path, text: bytes) -> ModuleType:
        """Run ``text``, the contents of ``path``, as a module and return it; equal path and text share one module."""
        content_hash = hashlib.blake2b(str(path).encode() + text, digest_size=8).hexdigest()
        name = f"rlkl_file_{path.stem}_{content_hash}"
        if name in sys.modules:  # two references into one file share its module, an edited file gets a new one
            return sys.modules[name]
        _make_importable(path.parent)
        spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(path)
        sys.modules[name] = module
        try:
            exec(compile(text, path, "exec"), module.__dict__)
        except KeyboardInterrupt:
            del sys.modules[name]
            raise
        except (Exception, SystemExit) as error:  # any error of a user's file is reported with its path
            del sys.modules[name]
            raise self.error(f"importing '{path}' raised {type(error).__name__}: {error}. {_way_out(error)}") from error
        return module

    def _module(self, name: str) -> ModuleType:
        _make_importable(Path.cwd())
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # any error of a user's module is reported with its name
            raise self.error(
                f"importing '{name}' (from {Path.cwd()} or an installed package) raised {type(error).__name__}: "
                f"{error}. {_way_out(error)}"
            ) from error


def _way_out(error: BaseException) -> str:
    """Return what a user can do about an import that failed."""
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "A file is no package: write 'import helper' instead of 'from . import helper'"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"Install '{error.name}', or put its file beside the one that imports it"
    if isinstance(error, SystemExit):
        return "Put what ends the program below: if __name__ == '__main__'"
    return "Correct it; --debug shows the traceback"


def is_file(reference: str) -> bool:
    """Return whether ``reference`` names a file rather than an importable module."""
    location = reference.rpartition(":")[0]
    return location.endswith(".py") or "/" in location


def file_of(reference: str) -> Path:
    """Return the absolute path of the file that ``reference`` names."""
    return Path(reference.rpartition(":")[0]).expanduser().absolute()


def _make_importable(folder: Path) -> None:
    """Put a folder last on the import path, as Python does with a script's own, but without hiding anything."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
