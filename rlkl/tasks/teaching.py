"""Teaching the base models of built-in worlds: deterministic next-token training on one CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlkl.tasks.characters import PAD_ID

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Qwen3ForCausalLM

IGNORED = -100
"""Label of a position that carries no loss, as transformers defines it."""


def teach(model: Qwen3ForCausalLM, demonstrations: Iterable[tuple[Tensor, Tensor]], *, steps: int, lr: float) -> None:
    """Take one AdamW step on the completions of each batch. ``lr`` is the peak of a one-cycle schedule over ``steps``.

    A batch is right-padded token ids ``[B, T]`` and prompt lengths ``[B]``. Leaves the model in evaluation mode.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps + 1, pct_start=0.15)
    model.train()
    for ids_BT, prompt_lengths_B in demonstrations:
        ids_BT = ids_BT[:, : int(ids_BT.ne(PAD_ID).sum(dim=1).max())]
        positions_T = torch.arange(ids_BT.shape[1])
        trained_BT = (positions_T >= prompt_lengths_B[:, None]) & ids_BT.ne(PAD_ID)
        labels_BT = torch.where(trained_BT, ids_BT, IGNORED)
        model(input_ids=ids_BT, labels=labels_BT, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch on ``count`` CPU threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
