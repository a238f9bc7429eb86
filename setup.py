"""Puts the YAML files of recipes/ into the package that is built. Everything else about it is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """An installed rlkl finds its recipes in rlkl/built_in_recipes, a source tree in recipes/."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for recipe in sorted(Path("recipes").rglob("*.yaml")):
            target = Path(self.build_lib) / "rlkl" / "built_in_recipes" / recipe.relative_to("recipes")
            self.mkpath(str(target.parent))
            self.copy_file(str(recipe), str(target))


setup(cmdclass={"build_py": BuildWithRecipes})
