"""The policy that trains, and the frozen reference that it is held to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlkl.batch import ImageInputs
from rlkl.errors import RecipeError
from rlkl.models.language_model import LanguageModel, model_class
from rlkl.recipe import LoraSection, ModelSection
from rlkl.seeds import derive_seed


class Reference(Protocol):
    """What the learner asks of a reference model."""

    def hidden(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor: ...

    def layers(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor: ...

    def head(self, hidden_NH: Tensor) -> Tensor: ...


class Policy(LanguageModel):
    """The model that trains. Its trained weights are float32 whatever ``section.dtype``.

    ``section.dtype`` is the precision of computing and publishing: in bfloat16, matrix products run under autocast.
    With LoRA the base weights are frozen in ``section.dtype`` and only the adapters train.
    """

    def __init__(self, path: str, section: ModelSection, *, device: torch.device, seed: int) -> None:
        dtype: torch.dtype = getattr(torch, section.dtype)
        super().__init__(
            path, dtype=dtype, weights_dtype=torch.float32 if section.lora is None else dtype, device=device
        )
        self.adapter: Any = None
        if section.lora is not None:
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(seed, "lora"))
                frozen = "visual" if section.freeze_vision and self.sees else None
                self.adapter = _add_adapter(self.model, section.lora, excluded=frozen)
        elif section.freeze_vision and self.sees:
            self.model.base_model.visual.requires_grad_(False)
        if section.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()

    def published(self) -> Iterator[tuple[str, Tensor]]:
        """Checkpoint name and tensor of every weight, adapters merged in, in the publishing precision.

        A tensor that several names share (tied embeddings) comes once, under its first name.
        """
        for name, tensor in self._merged():
            yield name, tensor.to(self.dtype)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model folder (without tokenizer), adapters merged in, in the publishing precision."""
        from transformers import AutoConfig

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.published()}
        config = AutoConfig.for_model(**self.model.config.to_dict())
        config.dtype = self.dtype
        with torch.device("meta"):
            shell = model_class(config).from_config(config)
        shell.generation_config = self.model.generation_config
        shell.save_pretrained(folder, state_dict=tensors)

    @torch.no_grad()
    def _merged(self) -> Iterator[tuple[str, Tensor]]:
        """Base plus adapter, added in float32 into new tensors: the base stays as it is, bit for bit."""
        deltas = {} if self.adapter is None else _deltas(self.model)
        shared: set[int] = set()
        for full_name, tensor in self.model.state_dict().items():
            if ".lora_" in full_name or tensor.data_ptr() in shared:
                continue
            shared.add(tensor.data_ptr())
            name = _checkpoint_name(full_name)
            if name in deltas:
                yield name, tensor.float() + deltas[name].get_delta_weight("default").float()
            else:
                yield name, tensor.detach()


class AdapterOff:
    """The reference of a LoRA policy: the policy itself with its adapters off. Costs no memory."""

    def __init__(self, policy: Policy) -> None:
        assert policy.adapter is not None
        self._policy = policy

    def hidden(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor:
        with self._policy.adapter.disable_adapter():
            return self._policy.hidden(token_ids_BT, images)

    def layers(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor:
        with self._policy.adapter.disable_adapter():
            return self._policy.layers(token_ids_BT, images)

    def head(self, hidden_NH: Tensor) -> Tensor:
        with self._policy.adapter.disable_adapter():
            return self._policy.head(hidden_NH)


def build_reference(policy: Policy, path: str, other: str | None = None) -> Reference:
    """The policy as it was before training: adapters off under LoRA, else a frozen copy in the policy's precision.

    ``other`` names another model to take its place; it must have the policy's vocabulary.
    """
    if policy.adapter is not None and other is None:
        return AdapterOff(policy)
    # In the policy's own precision: a base that LoRA keeps in bfloat16 has rounded norms and hidden states as well.
    weights_dtype = torch.float32 if policy.adapter is None else policy.dtype
    copy = LanguageModel(other or path, dtype=policy.dtype, weights_dtype=weights_dtype, device=policy.device)
    for module in copy.modules():
        if isinstance(module, nn.Linear):  # as autocast rounds them each time: half the memory, the same bits
            module.weight = nn.Parameter(module.weight.detach().to(policy.dtype))
    return copy.requires_grad_(False)


def _deltas(model: nn.Module) -> dict[str, Any]:
    """The adapted layers of ``model``, each under the checkpoint name of the weight that it adapts."""
    from peft.tuners.lora import LoraLayer

    named = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
    # A layer with one weight is adapted whole; of one with several (stacked experts) each weight, by nested layers.
    return {_checkpoint_name(f"{name}.{getattr(layer, 'parameter_name', 'weight')}"): layer for name, layer in named}


def _checkpoint_name(name: str) -> str:
    """The name of a weight without the levels that adapters put into it."""
    return name.replace(".base_layer", "")


def _add_adapter(model: nn.Module, section: LoraSection, *, excluded: str | None) -> nn.Module:
    """Put adapters into ``model``, in place, but not into the module named ``excluded``.

    Raises `RecipeError` if nothing is left to adapt, or if an adapter would untie tied embeddings.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=section.target_modules,
        exclude_modules=None if excluded is None else rf"(.*\.)?{excluded}(\..*)?",
        task_type="CAUSAL_LM",
    )
    named = f"model.lora.target_modules = {section.target_modules!r}"
    but = "" if excluded is None else f" outside {excluded}, which model.freeze_vision leaves out"
    try:
        adapted = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        leaves = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if not any(module.children())}
        )
        raise RecipeError(
            f"{named}: no adapters can be put there{but} ({error}). Name modules of this model "
            f"({', '.join(leaf for leaf in leaves if not leaf.isdecimal())}), or all-linear"
        ) from error
    _check_ties(model, named)
    return adapted


def _check_ties(model: Any, named: str) -> None:
    """Refuse an adapter on tied embeddings: it would move one end of the model, and a checkpoint holds both as one."""
    from peft.tuners.lora import LoraLayer

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(isinstance(end, LoraLayer) for end in ends):
        return
    weights = [getattr(end, "base_layer", end).weight for end in ends]
    if weights[0].data_ptr() == weights[1].data_ptr():
        raise RecipeError(
            f"{named} has an adapter on the embeddings, which this model shares with its output head "
            "(tie_word_embeddings): an adapter would move one of the two, and the published model could not hold both. "
            "Leave embeddings and head out, or train all weights (without model.lora)"
        )
