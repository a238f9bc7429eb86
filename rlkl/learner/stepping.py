"""Optimizer steps: the trained parameters, their optimizer, and undoing a step that fails."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlkl.errors import LearnerError, NumericalFault
from rlkl.learner.followers import Followers
from rlkl.learner.masters import Masters
from rlkl.learner.optimizers import HostedState, build_optimizer
from rlkl.learner.ranks import Ranks
from rlkl.models.policy import Policy
from rlkl.recipe import LearnerSection
from rlkl.updates.base import Heads
from rlkl.updates.base_settings import RuleSettings


class Optimization:
    """The trained parameters and the optimizer over them."""

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        section: LearnerSection,
        heads: Heads | None,
        ranks: Ranks,
        sharded: Sequence[nn.Module] = (),
        followers: Followers | None = None,
    ) -> None:
        """Make the optimizer. ``sharded``: the trained models that are divided among the ranks."""
        self._masters = Masters(trained, sharded)
        self.ranks = ranks
        self.parameters = trained
        """The model's parameters, by name: shards if there are several ranks."""
        self.trained: Mapping[str, nn.Parameter] = self._masters.parameters
        """Float32 parameters, by name; of a shard, this rank's part."""
        self.optimizer = build_optimizer(self.trained, section, heads, whole=trained)
        self.followers = followers or Followers({}, RuleSettings())
        self.followers.begin(self.trained)
        self._hosted = HostedState(self.optimizer) if section.offload == "optimizer" else None
        self.steps = 0
        """Optimizer steps made."""
        self._max_grad_norm = section.max_grad_norm
        self._copy: dict[str, Tensor] = {}
        self._torn = False

    def zero_gradients(self) -> None:
        """Drop the gradients of the optimizer step before."""
        self._masters.drop_gradients()

    def finish_gradients(self, *, without: str | None = None) -> None:
        """Make the gradients ready for `clip_gradients`; sum those of parameters that are not sharded over the ranks.

        ``without``: parameters with this word in their names took part in no pass on any rank, so they have none.
        """
        if self.ranks.size == 1:
            return
        self._masters.take_gradients()
        whole = {n: p for n, p in self.trained.items() if n not in self._masters.sharded and p.grad is not None}
        if whole:
            flat_N = self.ranks.sum_(torch.cat([p.grad.flatten() for p in whole.values() if p.grad is not None]))
            for p, part_N in zip(whole.values(), flat_N.split([p.numel() for p in whole.values()]), strict=True):
                p.grad = part_N.view_as(p)
        for name, parameter in self.trained.items():
            if without is not None and without in name.split("."):
                parameter.grad = None

    def clip_gradients(self, losses: Mapping[str, float]) -> float:
        """Clip the gradients to ``learner.max_grad_norm`` and return their norm before.

        ``losses`` by name, the whole one as ``loss/total``. Raises `NumericalFault` if it or the norm is not finite.
        """
        norm = self._clip()
        after = (
            "The weights are those of the last finished step. Lower learner.lr, or look for a reward of extreme size."
        )
        if not math.isfinite(norm):
            broken = self._broken()
            raise NumericalFault(
                f"the gradient is not finite (norm {norm}) at optimizer step {self.steps}, first in "
                f"{', '.join(broken[:3])}; losses: {dict(losses)}. {after}"
            )
        if not math.isfinite(losses.get("loss/total", 0.0)):
            raise NumericalFault(f"the loss is not finite at optimizer step {self.steps}: {dict(losses)}. {after}")
        return norm

    def _clip(self) -> float:
        if self.ranks.size == 1:
            return float(nn.utils.clip_grad_norm_(self.trained.values(), self._max_grad_norm))
        shards, whole = (
            [p.grad for n, p in self.trained.items() if p.grad is not None and (n in self._masters.sharded) is sharded]
            for sharded in (True, False)
        )
        square = nn.utils.get_total_norm(shards).double().cpu().square()
        square = self.ranks.sum_(square) + nn.utils.get_total_norm(whole).double().cpu().square()
        norm = square.sqrt().float()
        parameters = list(self.trained.values())
        nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm.to(parameters[0].device))
        return float(norm)

    def _broken(self) -> list[str]:
        """Name the parameters whose gradient is not finite, on any rank."""
        flags_P = torch.tensor(
            [float(p.grad is not None and not torch.isfinite(p.grad).all()) for p in self.trained.values()]
        )
        return [name for name, flag in zip(self.trained, self.ranks.sum_(flags_P).tolist(), strict=True) if flag]

    def apply(self, lr: float) -> None:
        """Make one optimizer step with the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._torn = True
        (self._hosted or self.optimizer).step()
        self._masters.write_back()
        self.followers.follow(self.trained, self.steps + 1)
        self._torn = False
        self.steps += 1

    def write_back(self) -> None:
        """Bring the models to the trained parameters and the weights that follow them, which were set from outside."""
        self._masters.write_back()
        self.followers.write_back()

    def begin_state(self, name: str) -> dict[str, Tensor]:
        """Give a parameter the optimizer state of no step, where the recipe keeps it, and return that."""
        parameter = self.trained[name]
        self.optimizer.begin(parameter)
        if self._hosted is not None:
            self._hosted.store(parameter)
        return self.optimizer.kept(parameter)

    def release(self) -> None:
        """Free the memory of optimizer, gradients and float32 copies. No optimizer step can follow."""
        self.optimizer.state.clear()
        if self._hosted is not None:
            self._hosted.release()
        self._masters.release()
        self.followers.release()

    @contextmanager
    def undone_on_error(self, *, several: bool) -> Iterator[None]:
        """Bring weights and optimizer back to where they were if the block raises.

        A block of ``several`` optimizer steps costs a copy in host memory of the trained parameters and of their
        optimizer state. A single optimizer step is not copied: an error before it has changed nothing, and one inside
        it leaves a state that `check_whole` refuses.
        """
        steps = self.steps
        if several:
            self._take_copy()
        try:
            yield
        except BaseException:
            if several:
                self._bring_back(steps)
            raise

    def check_whole(self) -> None:
        """Raise `LearnerError` if an error inside an optimizer step left the weights between two steps."""
        if self._torn:
            raise LearnerError(
                "the learner's optimizer step ended with an error half-way, so that its weights are those of no step; "
                "they are not saved"
            )

    @torch.no_grad()
    def _take_copy(self) -> None:
        tensors = self._tensors()
        self._copy = {name: copy for name, copy in self._copy.items() if name in tensors}
        for name, tensor in tensors.items():
            if name in self._copy:
                self._copy[name].copy_(tensor)
            else:
                self._copy[name] = tensor.detach().to("cpu", copy=True)

    @torch.no_grad()
    def _bring_back(self, steps: int) -> None:
        for name, parameter in self.trained.items():  # an optimizer state that began in the block goes
            if not any(key.startswith(f"{name}/") for key in self._copy):
                self.optimizer.state.pop(parameter, None)
        for name, tensor in self._tensors().items():
            tensor.copy_(self._copy[name])
        self.write_back()
        self.zero_gradients()
        self.steps, self._torn = steps, False

    def _tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name, their optimizer state as ``name/exp_avg``, and followers."""
        found: dict[str, Tensor] = {**self.trained, **self.followers.on_disk()}
        for name, parameter in self.trained.items():
            found |= {f"{name}/{key}": tensor for key, tensor in self.optimizer.kept(parameter).items()}
        return found


def trained_parameters(policy: Policy, heads: Heads | None) -> dict[str, nn.Parameter]:
    """Return the trained parameters, with ``policy.`` or ``heads.`` before their names."""
    named: Iterable[tuple[str, nn.Parameter]] = policy.named_parameters()
    trained = {f"policy.{name}": p for name, p in named if p.requires_grad}
    if heads is not None:
        trained |= {f"heads.{name}": p for name, p in heads.to(policy.device).named_parameters()}
    return trained
