"""The policy that trains, and the frozen reference model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from rlkl.batch import ImageInputs
from rlkl.functional.linear_scores import LinearHead
from rlkl.functional.logprobs import Head
from rlkl.functional.packing import Packing
from rlkl.models.adapter import adapter_parameters, add_adapter, base_weights, merged_weights, save_adapter
from rlkl.models.language_model import LanguageModel, model_class
from rlkl.models.scattering import META
from rlkl.models.sharding import reshard, unshard, whole
from rlkl.recipe import ModelSection
from rlkl.seeds import derive_seed
from rlkl.weights.buckets import Outline

ADAPTER_FOLDER = "adapter"
"""The folder within a saved policy that holds its adapters in peft's format."""


class Reference(Protocol):
    """The interface of a frozen model."""

    def hidden(
        self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None
    ) -> Tensor: ...

    def layers(
        self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None
    ) -> Tensor: ...

    def head(self, hidden_NH: Tensor) -> Tensor: ...

    @property
    def output_head(self) -> Head: ...


class Policy(LanguageModel):
    """The model that trains: the weights that are published and exported, in ``section.dtype``.

    In bfloat16 the optimizer moves float32 copies of the trained weights (`rlkl.learner.masters`). With LoRA the base
    weights are frozen and only the adapters train.
    """

    def __init__(
        self,
        path: str,
        section: ModelSection,
        *,
        device: torch.device,
        seed: int,
        mesh: DeviceMesh | None = None,
    ) -> None:
        super().__init__(path, dtype=getattr(torch, section.dtype), device=device, packed=True, mesh=mesh)
        self.adapter: Any = None
        if section.lora is not None:
            with torch.random.fork_rng(), META if self.model.device == META else nullcontext():
                torch.manual_seed(derive_seed(seed, "lora"))
                self.adapter = add_adapter(self.model, section.lora, freeze_vision=section.freeze_vision)
            if self.is_multimodal and not section.freeze_vision:
                _want_gradients(self.model)
        self.path = path
        """The weights that it started from."""
        self._publishes_adapters = section.publishes_adapters
        if section.lora is None and section.freeze_vision and self.is_multimodal:
            self.model.base_model.visual.requires_grad_(False)
        if section.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()

    def published(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the sampler needs: the name and the tensor of every weight, in the publishing precision.

        With LoRA in bfloat16 these are the adapters alone, under their peft names: added to a bfloat16 base weight, an
        adapter's small change would be rounded away. Otherwise adapters are merged in, names are checkpoint names, and
        a tensor that several names share (tied embeddings) comes once, under its first name. Shards are gathered, so
        every rank must iterate to the end.
        """
        reshard(self)
        tensors = adapter_parameters(self.model) if self._publishes_adapters else merged_weights(self.model)
        for name, tensor in tensors:
            yield name, whole(tensor.detach()).to(self.dtype)

    def outlines(self) -> list[Outline]:
        """List what `published` yields, in its order; nothing is gathered."""
        reshard(self)
        dtype = str(self.dtype).removeprefix("torch.")
        tensors = adapter_parameters(self.model) if self._publishes_adapters else base_weights(self.model)
        return [Outline(name=name, dtype=dtype, shape=tuple(tensor.shape)) for name, tensor in tensors]

    @property
    def export_dtype(self) -> torch.dtype:
        """The precision of a saved policy: float32 if adapters are merged in, because bfloat16 would lose them."""
        return self.dtype if self.adapter is None else torch.float32

    def exported(self) -> Iterator[tuple[str, Tensor]]:
        """Yield checkpoint name and tensor of every weight of a saved policy, adapters merged in, shards gathered."""
        reshard(self)
        for name, tensor in merged_weights(self.model):
            yield name, tensor.to(self.export_dtype)

    def to_float32(self) -> None:
        """Compute in float32 from now on, with the constants of a model that was loaded in float32.

        Loaded in bfloat16, a Gemma holds the factor of its embeddings rounded.
        """
        self.model.float()
        self.dtype = torch.float32
        for module in self.model.modules():
            if hasattr(module, "scalar_embed_scale"):
                module.embed_scale.fill_(module.scalar_embed_scale)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Switch the adapter off while the block runs. If the weights are sharded, every rank must call it."""
        # peft marks the adapters as frozen until the end of the block. They must be the same tensors then.
        unshard(self)
        with self.adapter.disable_adapter():
            yield

    def stop_at(self, token_ids: tuple[int, ...]) -> None:
        """Name the tokens that end a completion in the generation settings that `save` writes."""
        if token_ids:
            self.model.generation_config.eos_token_id = list(token_ids)

    def save(self, folder: Path, *, writes: bool = True) -> None:
        """Write a Hugging Face model folder without tokenizer: adapters merged in. ``adapter/`` holds them separately.

        If the weights are sharded, every rank must call it, and one of them ``writes``.
        """
        from transformers import AutoConfig

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.exported() if writes}
        adapters = {name: whole(p.detach()).float().cpu().contiguous() for name, p in adapter_parameters(self.model)}
        if not writes:
            return
        config = AutoConfig.for_model(**self.model.config.to_dict())
        config.dtype = self.export_dtype
        with torch.device("meta"):
            shell = model_class(config).from_config(config, trust_remote_code=False)
        shell.generation_config = self.model.generation_config
        shell.save_pretrained(folder, state_dict=tensors)
        if self.adapter is not None:
            save_adapter(adapters, self.adapter, folder / ADAPTER_FOLDER, base_model=self.path)


def _want_gradients(model: Any) -> None:
    """Give the embeddings of tokens a gradient, so that a backward pass reaches the first layer's input every time.

    The embedding weights are frozen. Without this, a backward pass would go that far only for pictures, to reach the
    adapters of the vision tower. A rank without pictures would sum the gradients of the first layer after those of the
    root group and the others before, so they would wait for each other for ever (`rlkl.models.sharding`). If the vision
    tower alone has adapters, a micro-batch without pictures would have no backward pass at all, on one rank too.
    """
    model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())


class AdapterOff:
    """The reference of a LoRA policy: the policy itself with its adapters off. Costs no memory."""

    def __init__(self, policy: Policy) -> None:
        assert policy.adapter is not None
        self._policy = policy
        self._switched = policy.without_adapter

    def hidden(self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None) -> Tensor:
        with self._switched():
            return self._policy.hidden(token_ids_BT, images, packing)

    def layers(self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None) -> Tensor:
        with self._switched():
            return self._policy.layers(token_ids_BT, images, packing)

    def head(self, hidden_NH: Tensor) -> Tensor:
        with self._switched():
            return self._policy.head(hidden_NH)

    @property
    def output_head(self) -> Head:
        head = self._policy.output_head
        return head if isinstance(head, LinearHead) else self.head


def build_reference(
    policy: Policy,
    path: str,
    other: str | None = None,
    *,
    device: torch.device | None = None,
    mesh: DeviceMesh | None = None,
) -> Reference:
    """Build the policy as it was before training: adapters off under LoRA, else a copy in the policy's precision.

    ``other`` names another model to take its place; it must have the policy's vocabulary. ``device`` (by default
    the policy's) and ``mesh`` are those of `LanguageModel`.
    """
    if policy.adapter is not None and other is None:
        return AdapterOff(policy)
    model = LanguageModel(other or path, dtype=policy.dtype, device=device or policy.device, packed=True, mesh=mesh)
    return model.requires_grad_(False)
