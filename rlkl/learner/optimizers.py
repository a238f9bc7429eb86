"""The optimizers of the learner, and where their state is kept between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlkl.costs.eight_bit import in_blocks
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
        from rlkl.learner.eight_bit import AdamW8bit
    except ImportError as error:
        raise EnvironmentProblem(
            f"learner.optimizer=adamw_8bit needs the package bitsandbytes, which cannot be imported ({error}): "
            "pip install 'rlkl[8bit]', or take learner.optimizer=adamw"
        ) from error
    small = [part for name, part in trained.items() if in_blocks(name, (whole or trained)[name].shape)]
    return AdamW8bit(groups, lr=section.lr, betas=betas, eps=section.adam_eps, in_8_bit=small)


class HostedState:
    """The state of an optimizer, kept in host memory between steps (``learner.offload``).

    A step moves one parameter after the other: its state comes to the parameter's device and goes back. So the device
    never holds the state of more than one parameter. The memory is not pinned: torch rounds pinned blocks up to powers
    of two, which can double them.
    """

    copies_on_cpu = False
    """Whether to copy also if parameter and host are the same memory, which tests do."""

    def __init__(self, optimizer: LearnerOptimizer) -> None:
        self._optimizer = optimizer
        self._buffers: dict[tuple[Tensor, str], Tensor] = {}

    def step(self) -> None:
        """Make one optimizer step."""
        groups = self._optimizer.param_groups
        try:
            for group in groups:
                for parameter in group["params"]:
                    self._optimizer.param_groups = [{**group, "params": [parameter]}]
                    self._fetch(parameter)
                    self._optimizer.step()
                    self.store(parameter)
        finally:
            self._optimizer.param_groups = groups

    def _fetch(self, parameter: Tensor) -> None:
        """Copy the state of a parameter to its device."""
        for key, tensor in self._large(parameter):
            self._optimizer.state[parameter][key] = tensor.to(parameter.device, copy=self.copies_on_cpu)

    def store(self, parameter: Tensor) -> None:
        """Copy the state of a parameter into host memory, and free the device's."""
        for key, tensor in self._large(parameter):
            if tensor.device.type == "cpu" and not self.copies_on_cpu:
                continue
            buffer = self._buffers.get((parameter, key))
            if buffer is None:
                buffer = self._buffers[parameter, key] = torch.empty_like(tensor, device="cpu")
            self._optimizer.state[parameter][key] = buffer.copy_(tensor)

    def release(self) -> None:
        """Free the host memory."""
        self._buffers.clear()

    def _large(self, parameter: Tensor) -> list[tuple[str, Tensor]]:
        """List the state of a parameter but for the count of its steps."""
        return [(key, tensor) for key, tensor in self._optimizer.kept(parameter).items() if tensor.ndim]


def _groups(
    trained: Mapping[str, nn.Parameter], prefix: str, *, weight_decay: float, lr_scale: float
) -> list[dict[str, Any]]:
    own = [p for name, p in trained.items() if name.startswith(prefix)]
    return [
        {"params": [p for p in own if p.ndim >= 2], "weight_decay": weight_decay, "lr_scale": lr_scale},
        {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
