"""The report at the end of a run. It is written by another process, so that no problem of it can end the run."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

TIMEOUT_S = 300.0


def report_at_end(run_dir: Path) -> None:
    """Write ``report.html`` into the folder of a run; warn if that fails."""
    command = [sys.executable, "-m", "rlkl", "report", str(run_dir)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        problem = f"it took longer than {TIMEOUT_S:.0f} s"
    else:
        if done.returncode == 0:
            logger.info("%s", done.stdout.strip())
            return
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    logger.warning("tracking.report: no report of this run was written (%s); try: rlkl report %s", problem, run_dir)
