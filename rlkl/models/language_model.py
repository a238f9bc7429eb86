"""A causal language model, seen as a backbone that gives hidden states and a head that gives logits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlkl.errors import EnvironmentProblem

_LOGITS_TOLERANCE = 1e-4


class LanguageModel(nn.Module):
    """Weights from ``path``, stored in ``weights_dtype``, computing in ``dtype`` (autocast where the two differ)."""

    def __init__(self, path: str, *, dtype: torch.dtype, weights_dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype = dtype
        self.device = device
        model = AutoModelForCausalLM.from_pretrained(path, dtype=weights_dtype, attn_implementation="sdpa")
        self.model: Any = _without_dropout(model).to(device)
        self._check_head()

    def hidden(self, token_ids_BT: Tensor) -> Tensor:
        """Last hidden states ``[B, T, H]``, after the final norm.

        Sequences are padded on the right, where causal attention cannot see, so there is no attention mask.
        """
        with self._autocast():
            return self.model.base_model(input_ids=token_ids_BT, use_cache=False).last_hidden_state

    def layers(self, token_ids_BT: Tensor) -> Tensor:
        """Hidden states after each block ``[B, T, L, H]``, the last after the final norm."""
        with self._autocast():
            output = self.model.base_model(input_ids=token_ids_BT, use_cache=False, output_hidden_states=True)
        return torch.stack(output.hidden_states[1:], dim=2)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Logits ``[N, V]`` of hidden states ``[N, H]``."""
        with self._autocast():
            return self.model.get_output_embeddings()(hidden_NH)

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def layer_count(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

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


def _without_dropout(model: nn.Module) -> nn.Module:
    """Rollouts have no dropout, so the importance ratio must not either."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module.__dict__.get("attention_dropout"), float):
            module.__dict__["attention_dropout"] = 0.0
    return model.train()
