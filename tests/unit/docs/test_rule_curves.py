"""`recipes/rule_curves.py` draws a run's record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.unit.docs.scripts import ROOT

SCRIPT = ROOT / "recipes" / "rule_curves.py"


def draw(run_dir: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, run_dir, target], capture_output=True, text=True, check=False)


def record(folder: Path, *keys: str) -> Path:
    folder.mkdir()
    steps = [{"step": step} | dict.fromkeys(keys, step / 10) for step in range(1, 21)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    return folder


def test_it_draws_the_metrics_that_the_run_has(tmp_path: Path):
    run = record(tmp_path / "first", "reward/mean", "kl/policy_to_reference")
    watched = record(tmp_path / "second", "reward/mean", "monitor/gold", "kl/policy_to_reference")
    targets = [tmp_path / name for name in ("a.svg", "b.svg", "c.svg")]
    for source, target in zip((run, run, watched), targets, strict=True):
        done = draw(source, target)
        assert done.returncode == 0, done.stderr
    plain, again, gold = (target.read_text() for target in targets)
    assert plain == again
    assert "first, 20 steps" in plain
    assert "KL to the reference, nats per sequence" in plain
    assert "gold reward, only watched" not in plain
    assert "gold reward, only watched" in gold


def test_a_folder_without_a_record_is_bad_input(tmp_path: Path):
    done = draw(tmp_path, tmp_path / "a.svg")
    assert done.returncode == 2
    assert "metrics.jsonl is not there" in done.stdout
    assert not (tmp_path / "a.svg").exists()
