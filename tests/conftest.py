"""Settings of every test process."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported: the models are tiny, and OpenMP's threads wait for one another busily on a loaded machine."""
