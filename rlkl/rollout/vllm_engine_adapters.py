"""Adapters in vLLM's worker: loading them from memory, and reading them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlkl.errors import RolloutError
from rlkl.models.adapter import adapted_module, adapter_names
from rlkl.rollout.engine import EngineSettings

ADAPTER_ID = 1
"""vLLM's number of the only adapter."""


_VISION = "model.visual."
"""Names of a vision-language model's vision tower and projector start with this."""


def adapter_request() -> Any:
    """Return the request that makes vLLM use the adapter. Its path is never read: the tensors come from memory."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name="policy", lora_int_id=ADAPTER_ID, lora_path="memory")


def adapter_arguments(settings: EngineSettings, names: Sequence[str]) -> dict[str, Any]:
    """Return vLLM's arguments for an engine whose policy has adapters with these names.

    Other modules get no room for an adapter. An LM head with that room cannot give log-probs of a prompt.
    """
    assert settings.adapter is not None
    modules = {adapted_module(name) for name in names}
    # By the last part of the name, because vLLM fuses modules. Within a vision tower that part is not unique.
    vision = {module.removeprefix("model.") for module in modules if module.startswith(_VISION)}
    text = {module.rpartition(".")[2] for module in modules if not module.startswith(_VISION)}
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": _room(settings.adapter.rank),
        "lora_target_modules": sorted(vision | text),
        "enable_tower_connector_lora": bool(vision),
    }


def names_of(settings: EngineSettings) -> list[str]:
    """Return the names of the adapters that the learner will publish; empty where it publishes merged weights."""
    if settings.adapter is None:
        return []
    return adapter_names(settings.model_path, settings.adapter, freeze_vision=settings.freeze_vision)


class AdapterReceiver:
    """Methods for adapters that vLLM mixes into its worker, where the model lives."""

    model_runner: Any

    def receive_adapters(self, tensors: list[tuple[str, Tensor]], rank: int, alpha: float) -> list[str]:
        """Replace the adapter by ``tensors``, named as in a peft file; return those that no module of vLLM holds."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper
        from vllm.platforms import current_platform

        manager = self.model_runner.lora_manager._adapter_manager
        adapter = LoRAModel.from_lora_tensors(
            ADAPTER_ID,
            {name: tensor.clone() for name, tensor in tensors},  # vLLM multiplies them in place by the scale
            PEFTHelper(r=rank, lora_alpha=alpha, target_modules=[]),  # pyright: ignore[reportArgumentType]
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            weights_mapper=self._mapper(),
        )
        if current_platform.is_cpu():
            for wrapper in manager.punica_wrapper_mapping.values():
                wrapper.add_lora_linear = _add_one_adapter
        manager.remove_adapter(ADAPTER_ID)
        manager.add_adapter(adapter)
        manager.activate_adapter(ADAPTER_ID)
        held = {name: (part, shard) for name, part, shard in self._held(rank)}
        scale = alpha / rank
        return [name for name, tensor in tensors if not _same(held.get(self._own_name(name)), tensor, scale, name)]

    def readable_adapters(self, names: list[str], rank: int, alpha: float) -> list[tuple[str, Tensor]]:
        """Return the adapter as vLLM holds it, named as in a peft file; ``names`` are those to look for.

        With several processes to an engine, some matrices are this process's part.
        """
        held = {name: part for name, part, _ in self._held(rank)}
        found = [(name, held.get(self._own_name(name))) for name in names]
        return [
            (name, (tensor / (alpha / rank) if ".lora_B" in name else tensor).cpu())
            for name, tensor in found
            if tensor is not None
        ]

    def _held(self, rank: int) -> Iterator[tuple[tuple[str, bool], Tensor, int]]:
        """Yield the matrices that vLLM multiplies by, under its module's name and whether it is the first matrix.

        The last value is the number of this process's part, if several processes divide the matrix.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        for name, module in manager.modules.items():
            parts = manager.packed_modules.get(name, [name])
            if len(parts) != len(module.lora_a_stacked):
                parts = [name]
            own = getattr(module, "tp_rank", 0)
            shards = getattr(module, "output_ids", [own] * len(parts))
            for part, a, b, shard in zip(parts, module.lora_a_stacked, module.lora_b_stacked, shards, strict=False):
                yield (part, True), a[0, 0, :rank], own
                yield (part, False), b[0, 0, :, :rank], shard

    def _own_name(self, name: str) -> tuple[str, bool]:
        from vllm.lora.utils import parse_fine_tuned_lora_name

        return parse_fine_tuned_lora_name(name, self._mapper())

    def _mapper(self) -> Any:
        mapper = getattr(self.model_runner.get_model(), "hf_to_vllm_mapper", None)
        return None if mapper is None else mapper.get_rename_mapper()


def without_halves(tensors: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Drop the matrices, named as in a peft file, whose other half is not among ``tensors``."""
    names = {name for name, _ in tensors}
    halves = (".lora_A.", ".lora_B.")
    return [
        (name, tensor)
        for name, tensor in tensors
        if all(name.replace(one, other) in names for one, other in (halves, halves[::-1]))
    ]


def refused(problem: str) -> RolloutError:
    """Return the error for adapters that vLLM cannot apply."""
    return RolloutError(
        f"vLLM cannot apply the adapters of this recipe ({problem}), and merged into bfloat16 weights they would lose "
        "most of what they learned. Name other model.lora.target_modules, or set model.dtype=float32 or "
        "rollout.engine=hf"
    )


def _room(rank: int) -> int:
    """Return the smallest rank that vLLM has room for and that holds ``rank``; raises `RolloutError` above the last."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    rooms = [room for room in get_args(MaxLoRARanks) if room >= rank]
    if not rooms:
        raise refused(f"model.lora.rank = {rank} exceeds its largest, {max(get_args(MaxLoRARanks))}")
    return min(rooms)


def _same(held: tuple[Tensor, int] | None, tensor: Tensor, scale: float, name: str) -> bool:
    """Return whether vLLM holds the tensor, or its part of it, bit for bit; it multiplies B by the scale.

    Several processes divide the rows of B or the columns of A.
    """
    if held is None:
        return False
    part, shard = held
    is_second = ".lora_B" in name
    wanted = tensor.to(part.dtype)
    if is_second and scale != 1:
        wanted = wanted * scale
    divided = 0 if is_second else 1
    size, whole = part.shape[divided], wanted.shape[divided]
    if size < whole and (shard + 1) * size <= whole:
        wanted = wanted.narrow(divided, shard * size, size)
    return part.shape == wanted.shape and torch.equal(part.cpu(), wanted.cpu())


def _add_one_adapter(y: Tensor, x: Tensor, lora_a_stacked: Any, lora_b_stacked: Any, *rest: Any, **more: Any) -> None:
    """Add the only adapter's output to ``y`` by plain products.

    vLLM's own code for a CPU copies the matrices once for each token. All requests use the one adapter in slot 0.
    """
    y_NO, x_NI, start = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), 0
    for a, b in zip(lora_a_stacked, lora_b_stacked, strict=True):
        size = b.shape[2]
        y_NO[:, start : start + size] += (x_NI @ a[0, 0].T) @ b[0, 0].T
        start += size
