"""The policy: a causal language model, seen as a backbone that gives hidden states and a head that gives logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkl.compat import ensure_torch_extras
from rlkl.errors import EnvironmentProblem
from rlkl.recipe import LoraSection, ModelSection

ensure_torch_extras()

from transformers import AutoModelForCausalLM  # noqa: E402

_LOGITS_TOLERANCE = 1e-4


class Policy(nn.Module):
    """A causal language model whose trained weights are float32.

    ``section.dtype`` is the precision of computing and publishing: in bfloat16, matrix products run under autocast.
    With LoRA the base weights are frozen in ``section.dtype`` and only the adapters train.
    """

    def __init__(self, path: str, section: ModelSection, device: torch.device) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, section.dtype)
        self.device = device
        weights_dtype = self.dtype if section.lora is not None else torch.float32
        self.model: Any = _load(path, weights_dtype).to(device)
        self.adapter: Any = _add_adapter(self.model, section.lora) if section.lora is not None else None
        if section.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()
        self._check_head()

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    def hidden(self, token_ids_BT: Tensor) -> Tensor:
        """Last hidden states ``[B, T, H]``, after the final norm.

        Sequences are padded on the right, where causal attention cannot see, so there is no attention mask.
        """
        with self._autocast():
            return self.model.base_model(input_ids=token_ids_BT, use_cache=False).last_hidden_state

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Logits ``[N, V]`` of hidden states ``[N, H]``."""
        with self._autocast():
            return self.model.get_output_embeddings()(hidden_NH)

    def without_adapter(self) -> AbstractContextManager[Any]:
        """Inside, a LoRA policy is its own reference."""
        assert self.adapter is not None
        return self.adapter.disable_adapter()

    def published(self) -> Iterator[tuple[str, Tensor]]:
        """Checkpoint name and tensor of every weight, adapters merged in, in the publishing precision.

        A tensor that several names share (tied embeddings) comes once.
        """
        seen: set[int] = set()
        for name, tensor in self._merged():
            if tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            yield name, tensor.to(self.dtype)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model folder (without tokenizer), adapters merged in, in the publishing precision."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.published()}
        config = self.model.config
        saved_dtype, config.dtype = config.dtype, self.dtype
        try:
            self.model.save_pretrained(folder, state_dict=tensors)
        finally:
            config.dtype = saved_dtype

    @torch.no_grad()
    def _merged(self) -> Iterator[tuple[str, Tensor]]:
        if self.adapter is None:
            for name, tensor in self.model.state_dict().items():
                yield name, tensor.detach()
            return
        from peft.tuners.lora import LoraLayer

        for module_name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                base: Any = module.get_base_layer()
                delta = module.get_delta_weight("default")
                yield f"{module_name}.weight", (base.weight.float() + delta.float()).detach()
                if base.bias is not None:
                    yield f"{module_name}.bias", base.bias.detach()
        for name, tensor in self.model.state_dict().items():
            if ".lora_" not in name and ".base_layer." not in name:
                yield name, tensor.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse models that change their logits after the head (soft-capping, scaling): log-probs would be wrong."""
        ids_BT = torch.arange(1, 5, device=self.device)[None] % self.model.config.get_text_config().vocab_size
        with self._autocast():
            whole_TV = self.model(input_ids=ids_BT, use_cache=False).logits[0].float()
        parts_TV = self.head(self.hidden(ids_BT)[0]).float()
        if (whole_TV - parts_TV).abs().max() > _LOGITS_TOLERANCE * whole_TV.abs().max():
            raise EnvironmentProblem(
                f"{type(self.model).__name__} changes its logits after the output head (soft-capping or scaling), so "
                "chunked log-probs would be wrong. Choose a model without it (Qwen, Llama, Mistral, ...)."
            )


def _load(path: str, dtype: torch.dtype) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    return model.eval()  # no dropout: rollouts have none, so the ratio must not either


def _add_adapter(model: nn.Module, section: LoraSection) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config).eval()  # pyright: ignore[reportArgumentType]
