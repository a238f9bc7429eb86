"""The optimizers of the learner, and where their state is kept between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import LearnerSection
from rlkl.updates.base import Heads


class LearnerOptimizer(Protocol):
    """The interface of an optimizer whose state can be saved, loaded and moved, tensor by tensor."""

    param_groups: list[dict[str, Any]]
    state: Any

    def step(self) -> Any: ...

    def begin(self, parameter: Tensor) -> None:
        """Give a parameter the state of no step made."""
        ...

    def kept(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter by name: ``step`` is a number, the rest is divided as the parameter is."""
        ...


class AdamW(torch.optim.AdamW):
    """torch's AdamW, fused: one pass over parameters, gradients and moments."""

    def begin(self, parameter: Tensor) -> None:
        """Set both moments to zero."""
        moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}

    def kept(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return ``step``, ``exp_avg`` and ``exp_avg_sq``; nothing before the first step."""
        return dict(self.state.get(parameter, {}))


def build_optimizer(
    trained: Mapping[str, nn.Parameter],
    section: LearnerSection,
    heads: Heads | None,
    whole: Mapping[str, Tensor] | None = None,
) -> LearnerOptimizer:
    """Build ``learner.optimizer``. Weight decay is on matrices; heads name their own decay and learning rate scale.

    ``trained`` are this rank's parts of the parameters ``whole``; None: they are whole. Raises `EnvironmentProblem`
    if the optimizer's library is missing.
    """
    groups = _groups(trained, "policy.", weight_decay=section.weight_decay, lr_scale=1.0)
    if heads is not None:
        groups += _groups(trained, "heads.", weight_decay=heads.weight_decay, lr_scale=heads.lr_scale)
    betas = (section.beta1, section.beta2)
    if section.optimizer == "adamw":
        return AdamW(groups, lr=section.lr, betas=betas, eps=section.adam_eps, fused=True)
    try:
        from rlkl.learner.eight_bit import AdamW8bit, in_blocks
    except ImportError as error:
        raise EnvironmentProblem(
            f"learner.optimizer=adamw_8bit needs the package bitsandbytes, which cannot be imported ({error}): "
            "pip install 'rlkl[8bit]', or take learner.optimizer=adamw"
        ) from error
    small = [part for name, part in trained.items() if in_blocks(name, (whole or trained)[name].shape)]
    return AdamW8bit(groups, lr=section.lr, betas=betas, eps=section.adam_eps, in_8_bit=small)


class HostedState:
    """The state of an optimizer, kept in host memory between steps (``learner.offload``)."""

    def __init__(self, optimizer: LearnerOptimizer) -> None:
        self._optimizer = optimizer
        self._buffers: dict[tuple[Tensor, str], Tensor] = {}

    def fetch(self) -> None:
        """Copy the state to the devices of the parameters."""
        for parameter, key, tensor in self._tensors():
            self._optimizer.state[parameter][key] = tensor.to(parameter.device, non_blocking=True)

    def store(self) -> None:
        """Copy the state into host memory, and free the device's."""
        devices = set()
        for parameter, key, tensor in self._tensors():
            if tensor.device.type == "cpu":
                continue
            devices.add(tensor.device)
            buffer = self._buffers.get((parameter, key))
            if buffer is None:
                buffer = torch.empty_like(tensor, device="cpu", pin_memory=True)
                self._buffers[parameter, key] = buffer
            self._optimizer.state[parameter][key] = buffer.copy_(tensor, non_blocking=True)
        for device in devices:
            torch.cuda.synchronize(device)

    def release(self) -> None:
        """Free the host memory."""
        self._buffers.clear()

    def _tensors(self) -> list[tuple[Tensor, str, Tensor]]:
        """List the state that is as large as its parameter: parameter, name and tensor."""
        found = [(p, k, t) for p in self._optimizer.state for k, t in self._optimizer.kept(p).items()]
        return [(parameter, key, tensor) for parameter, key, tensor in found if tensor.ndim]


def _groups(
    trained: Mapping[str, nn.Parameter], prefix: str, *, weight_decay: float, lr_scale: float
) -> list[dict[str, Any]]:
    own = [p for name, p in trained.items() if name.startswith(prefix)]
    return [
        {"params": [p for p in own if p.ndim >= 2], "weight_decay": weight_decay, "lr_scale": lr_scale},
        {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
