"""Build the documentation as a site in build/docs/site. A broken link or anchor is an error. Uses no network.

python docs/build_site.py

The pages lie all over the tree, each beside its code. This script copies them to build/docs/pages under the same paths,
together with every file that they link to, and runs mkdocs there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "docs" / "pages"
FOLDERS = ("docs", "recipes", "launch", "reward_models", "rlkl/updates")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def pages() -> list[Path]:
    """Return every page of the project."""
    return [*sorted(ROOT.glob("*.md")), *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]


def linked_files(page: Path) -> Iterator[Path]:
    """Yield the files of the tree that a page links to."""
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if "://" not in target:
            yield (page.parent / target).resolve()


def broken_links(page: Path) -> list[str]:
    """Return one message for each link of a page that names no file of the tree."""
    missing = [file for file in linked_files(page) if not (file.is_file() and file.is_relative_to(ROOT))]
    return [f"{page} links to {file}, which is not a file of the project" for file in missing]


def gather() -> None:
    """Copy the pages and the files that they link to."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for file in {*pages(), *(file for page in pages() for file in linked_files(page))}:
        target = PAGES / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def main() -> int:
    broken = [message for page in pages() for message in broken_links(page)]
    if broken:
        print(*broken, sep="\n")
        return 1
    gather()
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    code = subprocess.run(mkdocs, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}).returncode
    if code == 0:
        print(f"built {ROOT / 'build' / 'docs' / 'site' / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
