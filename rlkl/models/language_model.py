"""A causal language model, seen as a backbone that gives hidden states and a head that gives logits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from rlkl.batch import ImageInputs
from rlkl.errors import EnvironmentProblem

_LOGITS_TOLERANCE = 1e-4


class LanguageModel(nn.Module):
    """Weights from ``path``, stored in ``weights_dtype``, computing in ``dtype`` (autocast where the two differ)."""

    def __init__(self, path: str, *, dtype: torch.dtype, weights_dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype = dtype
        self.device = device
        loader = model_class(AutoConfig.from_pretrained(path))
        model = loader.from_pretrained(path, dtype=weights_dtype, attn_implementation="sdpa")
        self.model: Any = _without_dropout(model).to(device)
        self._check_head()

    def hidden(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor:
        """Last hidden states ``[B, T, H]``, after the final norm.

        Sequences are padded on the right, where causal attention cannot see, so there is no attention mask. ``images``
        stand at the first placeholder ids of their sequences; a placeholder id that comes later is an ordinary token,
        as it is for the sampler that drew it.
        """
        with self._autocast():
            inputs = self._inputs(token_ids_BT, images)
            return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    def layers(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor:
        """Hidden states after each block ``[B, T, L, H]``, the last after the final norm."""
        with self._autocast():
            inputs = self._inputs(token_ids_BT, images)
            output = self.model.base_model(**inputs, use_cache=False, output_hidden_states=True)
        return torch.stack(output.hidden_states[1:], dim=2)

    def _inputs(self, token_ids_BT: Tensor, images: ImageInputs | None) -> dict[str, Tensor]:
        """Token ids; with pictures the embeddings that these become, and each place's position in text and picture."""
        if images is None:
            return {"input_ids": token_ids_BT} | self._text_positions(token_ids_BT)
        body = self.model.base_model
        features = body.get_image_features(images.patches_PD, images.grids_I3, return_dict=True).pooler_output
        places = image_places(token_ids_BT, self.model.config.image_token_id, [len(f) for f in features], images)
        order = [image for of_sequence in images.images_B for image in of_sequence]
        embedded_BTH = body.get_input_embeddings()(token_ids_BT)
        seen_NH = torch.cat([features[image] for image in order]).to(embedded_BTH.dtype)
        positions_3BT, _ = body.get_rope_index(
            token_ids_BT, mm_token_type_ids=places.int(), image_grid_thw=images.grids_I3[order]
        )
        return {
            "inputs_embeds": embedded_BTH.masked_scatter(places.unsqueeze(-1), seen_NH),
            "position_ids": positions_3BT,
        }

    def _text_positions(self, token_ids_BT: Tensor) -> dict[str, Tensor]:
        """Named outright for a vision-language model, which otherwise may go on counting from an earlier call."""
        if not self.sees:
            return {}
        rows, length = token_ids_BT.shape
        return {"position_ids": torch.arange(length, device=token_ids_BT.device).expand(3, rows, length)}

    @property
    def sees(self) -> bool:
        """Whether it is a vision-language model."""
        return getattr(self.model.config, "vision_config", None) is not None

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


def model_class(config: Any) -> Any:
    """The transformers class that a model of this configuration is loaded by, with its output head."""
    sees = getattr(config, "vision_config", None) is not None
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def image_places(token_ids_BT: Tensor, image_token_id: int, sizes: list[int], images: ImageInputs) -> Tensor:
    """Where pictures stand, ``[B, T]`` bool: of each sequence's placeholders the first ones, as many as it needs.

    ``sizes``: tokens of each picture.
    """
    placeholder_BT = token_ids_BT == image_token_id
    needed_B1 = torch.tensor(
        [[sum(sizes[image] for image in of_sequence)] for of_sequence in images.images_B], device=token_ids_BT.device
    )
    places_BT = placeholder_BT & (placeholder_BT.cumsum(dim=1) <= needed_B1)
    assert torch.equal(places_BT.sum(dim=1, keepdim=True), needed_B1), "counted when the prompts were read"
    return places_BT


def _without_dropout(model: nn.Module) -> nn.Module:
    """Rollouts have no dropout, so the importance ratio must not either."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module.__dict__.get("attention_dropout"), float):
            module.__dict__["attention_dropout"] = 0.0
    return model.train()
