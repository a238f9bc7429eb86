"""Run folders as a finished run leaves them, with planted numbers, paths and secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlkl.recipe.io import dump_recipe, load_recipe

SECRETS = (
    "hf_abcdefghijklmnopqrst",
    "sk-abcdefghijklmnop1234",
    "0123456789abcdef" * 2 + "01234567",
    "hunter2",
    "me:pw@",
)
HOME = "/home/somebody/secret-project"


def finished_run(path: Path, *overrides: str, evaluated: bool = False, adapter: bool = False) -> Path:
    """Write a run of three steps; the reward rises, the monitor falls, the watch trips at step 2."""
    (path / "samples").mkdir(parents=True)
    words = [
        f"run.dir={path}",
        f"data.source={HOME}/data/rows.jsonl",
        f"rewards=[{{function: {HOME}/my_rewards.py:score, settings: {{password: hunter2, "
        f"url: 'https://me:pw@host/v1', note: 'see {HOME}/notes.txt and {SECRETS[0]} or {SECRETS[1]}', "
        f"wandb: '{SECRETS[2]}'}}}}]",
        *overrides,
    ]
    (path / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart", *words)))
    levels = (0.5, 1.5, 1.2)
    records = [
        {
            "step": step,
            "reward/mean": step / 4,
            "reward/std": 0.5,
            "monitor/gold": 1 - step / 4,
            "kl/policy_to_reference": step / 2,
            "rollout/length_mean": 10.0 + step,
            "watch/gap/gold": levels[step - 1],
            "watch/spread/reward": 7.0,
            "watch/warnings": float(step == 2),
        }
        for step in (1, 2, 3)
    ]
    write_lines(path / "metrics.jsonl", records)
    if evaluated:
        found = [(0, 0.25), (3, 0.5)]
        write_lines(
            path / "eval.jsonl",
            [
                {"step": n, "eval/mean": v, "eval/mean_se": 0.0625, "eval/kl": n / 2, "time/eval_s": 1.0}
                for n, v in found
            ],
        )
    policy = path / "policy"
    policy.mkdir()
    write_policy(policy)
    if adapter:
        (policy / "adapter").mkdir()
        (policy / "adapter" / "adapter_model.safetensors").write_bytes(b"adapter")
        settings = {"base_model_name_or_path": f"{HOME}/base", "r": 8}
        (policy / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    (path / "samples" / "step_000001.parquet").write_bytes(b"samples")
    return path


def write_policy(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "_name_or_path": f"{HOME}/base"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"never published")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
