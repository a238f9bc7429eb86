"""Imports run downward only, and each heavy library is imported in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = (
    {"types", "errors", "seeds", "schema"},
    {"system", "quantities", "signals", "costs"},
    {"batch", "functional", "weights"},
    {"updates"},
    {"recipe"},
    {"data", "models", "tasks"},
    {"rollout", "rewards", "learner"},
    {"tracking"},
    {"analysis"},
    {"sweeps"},
    {"actors"},
    {"training"},
    {"commands"},
    {"cli", "__main__"},
)
"""From the bottom up. A module imports from its own layer and from those below."""

APART = ({"updates", "data", "models"}, {"rollout", "rewards"}, {"rollout", "learner"}, {"rewards", "learner"})
"""Parts that do not import each other."""

HOMES = {
    "vllm": "rlkl/rollout/vllm_engine",
    "wandb": "rlkl/tracking/wandb/",
    "wandb_workspaces": "rlkl/tracking/wandb/",
    "tensorboardX": "rlkl/tracking/sinks/event_files.py",
    "trackio": "rlkl/tracking/sinks/trackio_run.py",
    "ray": "rlkl/actors/",
}
"""A heavy library -> the file, or the folder, that alone imports it."""

HEAVY = ("torch", "ray", "vllm", "transformers", "trl", "datasets", "wandb", "peft", "accelerate")


def source_files() -> list[Path]:
    return sorted((ROOT / "rlkl").rglob("*.py"))


def imported_modules(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, also within functions and for type checkers only."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} line {node.lineno}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str | None:
    """``rlkl.rollout.engine.Engine`` -> ``rollout``; None for other packages and for rlkl itself."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    return part if package == "rlkl" and part != "__version__" and part else None


def own_part(file: Path) -> str:
    return file.relative_to(ROOT / "rlkl").parts[0].removesuffix(".py")


def level(part: str) -> int:
    levels = [number for number, parts in enumerate(LAYERS) if part in parts]
    assert levels, f"rlkl/{part} is in no layer; put it into LAYERS"
    return levels[0]


def test_imports_run_downward() -> None:
    upward = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in source_files()
        if own_part(file) != "__init__"  # the public names, loaded when first used
        for module in imported_modules(file)
        if (part := part_of(module)) is not None and level(part) > level(own_part(file))
    ]
    assert upward == []


def test_few_files_lie_loose() -> None:
    assert len(list((ROOT / "rlkl").glob("*.py"))) <= 10


def test_parts_that_stand_apart_do_not_import_each_other() -> None:
    crossings = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in source_files()
        for module in imported_modules(file)
        for parts in APART
        if own_part(file) in parts and part_of(module) in parts - {own_part(file)}
    ]
    assert crossings == []


@pytest.mark.parametrize("library", HOMES)
def test_heavy_library_has_one_home(library: str) -> None:
    importers = {
        str(file.relative_to(ROOT))
        for file in source_files()
        for module in imported_modules(file)
        if module.partition(".")[0] == library
    }
    assert importers, f"nothing imports {library} any more; take it out of HOMES"
    assert {file for file in importers if not file.startswith(HOMES[library])} == set()


@pytest.mark.parametrize(
    "code",
    [
        "import rlkl; rlkl.load_recipe, rlkl.Recipe",
        "import rlkl.recipe.io",
        "import rlkl.updates",
        "from rlkl.cli import main; main(['--help'])",
        "from rlkl.cli import main; main(['plan', 'quickstart'])",
        "from rlkl.cli import main; assert main(['reward-model', 'quickstart']) == 2",
    ],
)
def test_light_commands_load_nothing_heavy(code: str) -> None:
    report = "import sys, atexit; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))"
    answer = subprocess.run([sys.executable, "-c", f"{report}\n{code}"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    loaded = answer.stderr.rpartition("LOADED")[2].split()
    assert "rlkl" in loaded
    assert sorted(set(HEAVY) & set(loaded)) == []
