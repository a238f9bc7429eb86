"""A causal language model, seen as a backbone that gives hidden states and a head that gives logits."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from rlkl.batch import ImageInputs
from rlkl.errors import EnvironmentProblem
from rlkl.functional.linear_scores import LinearHead
from rlkl.functional.logprobs import Head

_LOGITS_TOLERANCE = 1e-4

_RANDOM = re.compile(r"dropout|layerdrop|_pdrop|jitter_noise")
"""Numbers of a module that make its output random while it trains."""


class LanguageModel(nn.Module):
    """Weights from ``path``, held and computed with in ``dtype``."""

    def __init__(self, path: str, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype = dtype
        self.device = device
        config = AutoConfig.from_pretrained(path)
        # torch's fused attention cannot cap its scores (Gemma 2) and would leave that out without a word.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        attention = "eager" if capped else "sdpa"
        model = model_class(config).from_pretrained(path, dtype=dtype, attn_implementation=attention)
        self.model: Any = _without_dropout(model).to(device)
        self._check_head()

    def hidden(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor:
        """Last hidden states ``[B, T, H]``, after the final norm.

        Sequences are padded on the right, where causal attention cannot see, so there is no attention mask. ``images``
        replace the first placeholder ids of their sequences; a placeholder id that comes later is an ordinary token,
        as it is for the sampler that drew it.
        """
        inputs = self._inputs(token_ids_BT, images)
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    def layers(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor:
        """Hidden states after each block ``[B, T, L, H]``, the last after the final norm."""
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
        if not self.is_multimodal:
            return {}
        rows, length = token_ids_BT.shape
        return {"position_ids": torch.arange(length, device=token_ids_BT.device).expand(3, rows, length)}

    @property
    def is_multimodal(self) -> bool:
        """Whether it is a vision-language model."""
        return getattr(self.model.config, "vision_config", None) is not None

    @property
    def output_head(self) -> Head:
        """The head as one matrix if it is that, so that its scores need no logits of all tokens; else `head`."""
        head = self.model.get_output_embeddings()
        if type(head) is not nn.Linear:
            return self.head
        config = self.model.config.get_text_config()
        return LinearHead(
            weight_VH=head.weight,
            bias_V=head.bias,
            scale=(getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Logits ``[N, V]`` of hidden states ``[N, H]``, scaled and soft-capped if the model does that."""
        config = self.model.config.get_text_config()
        logits_NV = self.model.get_output_embeddings()(hidden_NH)
        if (factor := getattr(config, "logit_scale", None)) is not None:
            logits_NV = logits_NV * factor
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits_NV = logits_NV / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits_NV = torch.tanh(logits_NV / cap) * cap
        return logits_NV

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def layer_count(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse models whose log-probs cannot be had from `hidden` and `head`, or are random while they train."""
        if self.model.get_output_embeddings() is None:
            raise EnvironmentProblem(
                f"{self._name} has no output head that gives logits; choose a causal language model"
            )
        ids_BT = torch.arange(1, 5, device=self.device)[None] % self.model.config.get_text_config().vocab_size
        parts_TV = self.head(self.hidden(ids_BT)[0]).float()
        if self._differs(self.head(self.hidden(ids_BT)[0]).float(), parts_TV):
            raise EnvironmentProblem(
                f"{self._name} gives other log-probs each time while it trains (a dropout that its modules do not name "
                "as one, or noise in its router), so no ratio to the sampler's would mean anything. Set that to 0 in "
                "the model's config.json, or choose another model (Qwen, Llama, Mistral, ...)"
            )
        whole_TV = self.model.eval()(input_ids=ids_BT, use_cache=False).logits[0].float()
        self.model.train()
        if self._differs(whole_TV, parts_TV):
            raise EnvironmentProblem(
                f"{self._name} does more between its hidden states and its logits than rlkl knows (output head, "
                "logit_scale, logits_scaling, final_logit_softcapping), so log-probs in chunks would be wrong. Choose "
                "another model (Qwen, Llama, Mistral, Gemma, ...)"
            )

    @property
    def _name(self) -> str:
        return f"model {self.model.config.name_or_path} ({type(self.model).__name__})"

    @staticmethod
    def _differs(logits_TV: Tensor, wanted_TV: Tensor) -> bool:
        return bool((logits_TV - wanted_TV).abs().max() > _LOGITS_TOLERANCE * wanted_TV.abs().max())


def model_class(config: Any) -> Any:
    """The transformers class that a model of this configuration is loaded by, with its output head."""
    is_multimodal = getattr(config, "vision_config", None) is not None
    return AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM


def image_places(token_ids_BT: Tensor, image_token_id: int, sizes: list[int], images: ImageInputs) -> Tensor:
    """Return the positions of the pictures, ``[B, T]`` bool: each sequence's first placeholders, as many as needed.

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
    """Switch off dropout of every kind: rollouts have none, so the importance ratio must not have it either."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in module.__dict__.items():  # functional dropout reads plain numbers
            if _RANDOM.search(name) and isinstance(value, float):
                module.__dict__[name] = 0.0
    return model.train()
