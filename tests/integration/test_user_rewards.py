"""Rewards as users write them (tests/user_rewards), all in one run of two steps, each with a curve of its own."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

import rlkl
from tests.integration.runs import make_recipe, records
from tests.user_rewards import table


def test_odd_and_plain_rewards_train(untied_model: Path, tmp_path: Path):
    recipe = make_recipe(
        tmp_path / "run",
        untied_model,
        rewards=table.sections(),
        rollout={"engine": "hf"},
        steps=2,
        tracking={"samples_every": 1},
    )
    result = rlkl.train(recipe)

    assert result.status == "done"
    assert [line["step"] for line in records(result.run_dir)] == [1, 2]
    for step, line in enumerate(records(result.run_dir), start=1):
        rows = pq.read_table(result.run_dir / "samples" / f"step_{step:06d}.parquet").to_pylist()
        assert len(rows) == 32
        for row in rows:
            answer = sum(map(int, row["prompt"].removesuffix("=").split("+")))
            table.check(row, row["completion"], str(answer))
        assert line["reward/failed"] == sum(len(row["completion"]) == 3 for row in rows)
        assert line["reward/dropped"] == 0
        for reference in table.ACCEPTED:
            kind = "monitor" if reference == table.RAISES else "reward"
            assert f"{kind}/{table.name_of(reference)}" in line
        assert line["optim/grad_norm"] > 0
