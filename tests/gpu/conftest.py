"""Collect these tests only on a machine with a CUDA device: ``make gpu``."""

from __future__ import annotations

from benchmarks.gpu.device import cuda_devices

collect_ignore_glob = [] if cuda_devices() else ["test_*.py"]
