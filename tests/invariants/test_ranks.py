"""Dealing a step to data-parallel ranks changes neither loss nor gradient, for every rule, with real processes (gloo).

Run as a script it is one rank: python -m tests.invariants.test_ranks RANK STORE_FILE
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed

from rlkl.batch import Batch
from rlkl.updates.settings import UpdateSettings
from tests.invariants.test_grpo_invariants import RULES, cut_for, evaluate, example, learned_of, name, prepared

WORLD = 3
ROOT = Path(__file__).parents[2]


def shares(settings: UpdateSettings, batch: Batch, ranks: int) -> list[list[int]]:
    """Rows of each of the first ``ranks`` ranks, dealt like cards; lists stay whole; nothing for further ranks."""
    dealt = [list(range(batch.size))[rank::ranks] for rank in range(ranks)]
    whole = cut_for(settings, dealt, batch)
    return whole + [[]] * (WORLD - len(whole))


def summed_over_ranks(settings: UpdateSettings, ranks: int, rank: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the rows that this rank was dealt, added up over all ranks."""
    batch = prepared(settings, example())
    learned_BTK = learned_of(batch)
    loss, gradient_BTK = torch.zeros(()), torch.zeros_like(learned_BTK)
    if rows := shares(settings, batch, ranks)[rank]:
        own = batch.rows(torch.tensor(rows))
        width = own.response_BT.shape[1]
        part = evaluate(settings, own, learned_BTK[rows, :width])
        loss += part.loss
        gradient_BTK[rows, :width] = part.gradient_BTK
    distributed.all_reduce(loss)
    distributed.all_reduce(gradient_BTK)
    return loss, gradient_BTK


def be_a_rank(rank: int, store: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for settings in RULES:
        alone = evaluate(settings, prepared(settings, example()), learned_of(example()))
        for ranks in range(1, WORLD + 1):
            loss, gradient_BTK = summed_over_ranks(settings, ranks, rank)
            where = f"{settings.rule} {name(settings)} on {ranks} ranks"
            torch.testing.assert_close(
                float(loss), alone.loss, rtol=1e-5, atol=1e-6, msg=lambda m, w=where: f"{w}: {m}"
            )
            torch.testing.assert_close(
                gradient_BTK, alone.gradient_BTK, rtol=1e-5, atol=1e-7, msg=lambda m, w=where: f"{w}: {m}"
            )
    print(f"compared {len(RULES)} rules")
    distributed.destroy_process_group()


def test_the_number_of_ranks_does_not_matter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.invariants.test_ranks"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], cwd=ROOT, stdout=-1, stderr=-2, text=True)
        for rank in range(WORLD)
    ]
    answers = [process.communicate(timeout=900)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * WORLD, "\n".join(answers)
    assert all(f"compared {len(RULES)} rules" in answer for answer in answers)


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), Path(sys.argv[2]))
