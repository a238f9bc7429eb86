"""The learned gate of ``kept_mass`` (DAC-KL in arXiv 2407.10068; what is ours: README.md), and the window's metrics.

Shapes: B sequences, T tokens, K likeliest tokens of teacher and of policy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlkl.batch import Batch
from rlkl.functional.reduce import masked
from rlkl.functional.windows import WindowKl
from rlkl.seeds import derive_seed
from rlkl.signals import Signal, Signals
from rlkl.updates.base import HeadInput, Heads, ModelShape
from rlkl.updates.distill.settings import DistillSettings

WIDTH = 32
"""Hidden units."""
OPEN_AT_START = 0.5
"""The window's width before the first step: half of what the teacher's nucleus leaves out."""
_FLOOR, _SCALE = -20.0, 10.0
"""Log-probs below the floor count as the floor; the scale makes inputs of about one."""


class Gate(Heads):
    """Two layers that give the window's width at each token, ``[B, T, 1]``; see `rlkl.functional.windows.WindowKl`."""

    reads = HeadInput.LIKELIEST

    def __init__(self, model: ModelShape, settings: DistillSettings) -> None:
        super().__init__()
        assert settings.gate_tokens is not None
        self.beside, self.likeliest = settings.teacher, settings.gate_tokens
        self.lr_scale = settings.gate_lr_scale
        self.inner = nn.Linear(2 * self.likeliest, WIDTH)
        self.outer = nn.Linear(WIDTH, 1)
        self._start(model.seed)

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        """Draw the inner layer; the outer one starts as `OPEN_AT_START` for every input."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "gate"))
        drawn = torch.randn(self.inner.weight.shape, generator=generator)
        self.inner.weight.copy_(drawn / self.inner.in_features**0.5)
        self.inner.bias.zero_()
        self.outer.weight.zero_()
        self.outer.bias.fill_(OPEN_AT_START)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x.float().clamp_min(_FLOOR) / _SCALE)))


def window_of(settings: DistillSettings) -> WindowKl:
    """Return the divergence that ``kept_mass`` names, with a gate if the settings have one."""
    assert settings.kept_mass is not None
    temperature = None if settings.gate_tokens is None else settings.gate_temperature
    return WindowKl(settings.kept_mass, settings.direction == "model_to_policy", temperature)


def window_metrics(batch: Batch, signals: Signals, divergence: Signal) -> dict[str, Tensor]:
    """Return ``outside``, ``coverage`` and ``window_tokens``, and with a gate ``gate``; sums over the response tokens.

    All are divided by the response tokens of the step.
    """
    tokens = batch.denominators.tokens
    columns = signals[divergence].detach().unbind(dim=-1)
    named = zip(("outside", "coverage", "window_tokens"), columns[1:], strict=True)
    found = {f"distill/{name}": masked(x_BT, batch.response_BT).sum() / tokens for name, x_BT in named}
    if Signal.HEADS in signals:
        found["distill/gate"] = masked(signals[Signal.HEADS][..., 0].detach(), batch.response_BT).sum() / tokens
    return found
