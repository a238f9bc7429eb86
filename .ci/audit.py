"""Look for known vulnerabilities in the installed packages with pip-audit, which asks a server for them.

Prints why it was skipped if it cannot: pip-audit is not installed, nothing answers in time, or the server knows none of
the packages. Downloads no program. Exit code 1 means that pip-audit has found a vulnerability; everything else is 0.

    python .ci/audit.py [SECONDS]      give up after so many seconds, by default 25
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

LIMIT_S = 25.0


def main(limit_s: float) -> int:
    """Run pip-audit for at most ``limit_s`` seconds, and return the exit code."""
    if find_spec("pip_audit") is None:
        return skip("pip-audit is not installed. To run it: .venv/bin/pip install pip-audit, then make audit")
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--timeout", "5"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return skip(f"pip-audit did not end within {limit_s:g} s; is there a network?")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return skip(f"pip-audit ended with exit code {done.returncode} and no result; is there a network? ({last})")
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return skip(f"the server that pip-audit asks knows none of the {len(packages)} packages")
    found = [(package, one["id"]) for package in audited for one in package["vulns"]]
    for package, name in found:
        sys.stdout.write(f"audit: {package['name']} {package['version']} has the known vulnerability {name}\n")
    sys.stdout.write(f"audit: {len(audited)} of {len(packages)} packages checked, {len(found)} vulnerabilities\n")
    return 1 if found else 0


def skip(reason: str) -> int:
    """Print the reason and return 0."""
    sys.stdout.write(f"audit skipped: {reason}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else LIMIT_S))
