"""`make audit` says why it was skipped, never hangs, and fails only for a vulnerability."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def answer(*packages: str, code: int = 0) -> str:
    return f"import sys; print('{{\"dependencies\": [{', '.join(packages)}]}}'); sys.exit({code})"


UNKNOWN = '{"name": "y", "skip_reason": "not found"}'
KNOWN = '{"name": "x", "version": "1.0", "vulns": []}'
BAD = '{"name": "z", "version": "2.0", "vulns": [{"id": "PYSEC-0"}]}'
PROGRAMS = {
    "hangs": ("import time; time.sleep(600)", 0, "audit skipped: pip-audit did not end within 3 s"),
    "no network": (
        "import sys; sys.exit('ConnectionError: x')",
        0,
        "is there a network? (ConnectionError: x)",
    ),
    "unknown packages": (
        answer(UNKNOWN),
        0,
        "audit skipped: the server that pip-audit asks knows none of the 1",
    ),
    "finds one": (answer(KNOWN, BAD, UNKNOWN, code=1), 1, "z 2.0 has the known vulnerability PYSEC-0"),
    "finds none": (answer(KNOWN, UNKNOWN), 0, "audit: 1 of 2 packages checked, 0 vulnerabilities"),
}
"""Programs in the place of pip-audit, which needs a network -> exit code and output."""


def audit(folder: Path, seconds: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "audit.py"), seconds],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_audit_fails_for_a_vulnerability_only_and_never_hangs(name: str, tmp_path: Path):
    program, code, shown = PROGRAMS[name]
    (tmp_path / "pip_audit").mkdir()
    (tmp_path / "pip_audit" / "__init__.py").touch()
    (tmp_path / "pip_audit" / "__main__.py").write_text(program)
    done = audit(tmp_path, "3" if name == "hangs" else "300")
    assert done.returncode == code, done
    assert shown in done.stdout


def test_without_pip_audit_it_says_how_to_get_it_and_downloads_nothing(tmp_path: Path):
    hidden = "import sys, runpy; sys.modules['pip_audit'] = None; sys.argv = ['audit.py']; "
    hidden += f"runpy.run_path({str(ROOT / '.ci' / 'audit.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip-audit is not installed. To run it" in done.stdout


def test_make_test_runs_the_audit_and_goes_on_after_it():
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert "test: audit lint docs" in lines
    at = lines.index("audit: $(STAMP)")
    assert lines[at + 1].startswith("\t-$(BIN)/python .ci/audit.py"), "the minus lets make go on"
