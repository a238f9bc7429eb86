"""Settings of every test process."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported. The models are tiny; on a loaded machine OpenMP's threads wait for one another."""
