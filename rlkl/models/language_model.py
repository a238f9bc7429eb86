"""A causal language model, seen as a backbone that gives hidden states and a head that gives logits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from rlkl.batch import ImageInputs
from rlkl.errors import EnvironmentProblem, RecipeError
from rlkl.functional.linear_scores import LinearHead
from rlkl.functional.logprobs import Head
from rlkl.functional.packing import Packing, shared_prefixes
from rlkl.models.attention import NAME as ATTENTION
from rlkl.models.attention import NotPackable
from rlkl.models.scattering import META, from_first, is_first, layout_of, take_layout, together

_LOGITS_TOLERANCE = 1e-4

PACKED_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that can run over packed rows."""
PACKED_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Largest difference of the hidden states of packed rows, relative to the largest state. Rounding makes some."""

_RANDOM = re.compile(r"dropout|layerdrop|_pdrop|jitter_noise")
"""Numbers of a module that make its output random while it trains."""


class LanguageModel(nn.Module):
    """Weights from ``path``, held and computed with in ``dtype``.

    With ``packed``, `hidden` and `layers` compute nothing for padding, and what rows share once, if the model's
    attention allows that (`packs`). Such a model cannot be called otherwise than by these two.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: torch.dtype,
        device: torch.device,
        packed: bool = False,
        mesh: DeviceMesh | None = None,
    ) -> None:
        """Load the weights. With the ``mesh`` of several ranks only rank 0 does: `shard` then divides its weights.

        All ranks raise the error that rank 0 finds.
        """
        super().__init__()
        self.dtype = dtype
        self.device = device
        self.model: Any
        self.packs = False
        """Whether padding costs nothing."""
        if mesh is None:
            self._load(path, packed=packed)
        else:
            self._load_on_first_rank(path, packed=packed, mesh=mesh)

    def _load(self, path: str, *, packed: bool) -> None:
        config, settings = self._settings(path)
        self.model = _without_dropout(_loaded(path, config, settings)).to(self.device)
        self._check_head()
        self.packs = packed and self._take_packed_attention()

    def _build_empty(self, path: str) -> None:
        config, settings = self._settings(path)
        with META:
            model = model_class(config).from_config(config, **settings)
        self.model = _without_dropout(model)

    def _settings(self, path: str) -> tuple[Any, dict[str, Any]]:
        """Return a model's configuration, and how transformers builds it. Code in the model's folder never runs."""
        config, attention = _config_and_attention(path)
        return config, {"dtype": self.dtype, "attn_implementation": attention, "trust_remote_code": False}

    def _load_on_first_rank(self, path: str, *, packed: bool, mesh: DeviceMesh) -> None:
        """Load on rank 0, and build the model on the meta device of the others with what rank 0 found out."""
        loads = is_first(mesh)
        together(mesh, lambda: self._load(path, packed=packed) if loads else self._build_empty(path))
        layout, packs = from_first(mesh, (layout_of(self.model), self.packs))

        def follow() -> None:
            take_layout(self.model, layout)
            if packs:
                self._switch_attention(ATTENTION)
            self.packs = packs

        together(mesh, follow if not loads else lambda: None)

    def hidden(self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None) -> Tensor:
        """Compute the last hidden states ``[B, T, H]``, after the final norm.

        Sequences are padded on the right, where causal attention cannot see, so there is no attention mask. ``packing``
        leaves out the padding; the states there are then those of some token. ``images`` replace the first placeholder
        ids of their sequences; a placeholder id that comes later is an ordinary token, as it is for the sampler that
        drew it.
        """
        return self._rows(token_ids_BT, packing, self._run(token_ids_BT, images, packing).last_hidden_state)

    def layers(self, token_ids_BT: Tensor, images: ImageInputs | None = None, packing: Packing | None = None) -> Tensor:
        """Compute the hidden states after each block ``[B, T, L, H]``, the last after the final norm."""
        output = self._run(token_ids_BT, images, packing, output_hidden_states=True)
        return self._rows(token_ids_BT, packing, torch.stack(output.hidden_states[1:], dim=2))

    def _run(self, token_ids_BT: Tensor, images: ImageInputs | None, packing: Packing | None, **wanted: bool) -> Any:
        """Run the backbone over rows, or over the packed tokens ``[1, N]``."""
        inputs = self._inputs(token_ids_BT, images)
        if self.packs:
            packing = packing or whole_rows(token_ids_BT)
            inputs = self._packed(inputs, packing)
        return self.model.base_model(**inputs, **wanted, use_cache=False)

    def _packed(self, inputs: dict[str, Tensor], packing: Packing) -> dict[str, Any]:
        """Turn the inputs of rows into those of packed tokens."""
        own: dict[str, Any] = {"packing": packing, "position_ids": packing.positions_N[None]}
        if "position_ids" in inputs:
            own["position_ids"] = inputs["position_ids"].flatten(1)[:, packing.source_N].unsqueeze(1)
        for name in ("input_ids", "inputs_embeds"):
            if name in inputs:
                own[name] = inputs[name].flatten(0, 1)[packing.source_N].unsqueeze(0)
        return own

    def _rows(self, token_ids_BT: Tensor, packing: Packing | None, output: Tensor) -> Tensor:
        """Turn outputs of packed tokens ``[1, N, ...]`` into those of rows ``[B, T, ...]``."""
        if not self.packs:
            return output
        packing = packing or whole_rows(token_ids_BT)
        return packing.padded.unpack(output[0]).view(*token_ids_BT.shape, *output.shape[2:])

    def _inputs(self, token_ids_BT: Tensor, images: ImageInputs | None) -> dict[str, Tensor]:
        """Return the token ids, or with pictures their embeddings and the positions in text and picture."""
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
        """Return the positions for a vision-language model, which otherwise may count on from an earlier call."""
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
        """Compute logits ``[N, V]`` of hidden states ``[N, H]``, scaled and soft-capped if the model does that."""
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

    @torch.no_grad()
    def _take_packed_attention(self) -> bool:
        """Switch to attention over packed rows; return False, and leave all as it is, if the model cannot have it.

        That is so if its hidden states of packed rows are not those of padded ones: it mixes tokens elsewhere than in
        attention, or does more there than `packed_attention` knows.
        """
        config = self.model.config.get_text_config()
        if set(getattr(config, "layer_types", None) or ()) - PACKED_LAYERS:
            return False
        ids_BT = torch.arange(1, 19, device=self.device).view(3, 6) % config.vocab_size
        ids_BT[1, :2] = ids_BT[0, :2]
        lengths_B = torch.tensor([6, 4, 5], device=self.device)
        groups_B = torch.tensor([0, 0, 1], device=self.device)
        padded_BTH = self.hidden(ids_BT).float()
        before = self.model.config._attn_implementation
        self._switch_attention(ATTENTION)
        self.packs = True
        try:
            packing = Packing(lengths_B, 6, shared_prefixes(ids_BT, lengths_B, groups_B))
            packed_BTH = self.hidden(ids_BT, packing=packing).float()
            real_BT = torch.arange(6, device=self.device) < lengths_B.unsqueeze(1)
            gap = (packed_BTH - padded_BTH)[real_BT].abs().max()
            if bool(gap <= PACKED_TOLERANCE[self.dtype] * padded_BTH.abs().max()):
                return True
        except torch.OutOfMemoryError:
            raise
        except (NotPackable, TypeError, RuntimeError):  # a kernel that this GPU or head width does not have
            pass
        self._switch_attention(before)
        self.packs = False
        return False

    def _switch_attention(self, name: str) -> None:
        """Give the text model this attention of transformers; a vision tower keeps its own."""
        config = self.model.config
        is_whole = config.get_text_config() is config
        self.model.set_attn_implementation(name if is_whole else {"": config._attn_implementation, "text_config": name})

    @property
    def _name(self) -> str:
        return f"model {self.model.config.name_or_path} ({type(self.model).__name__})"

    @staticmethod
    def _differs(logits_TV: Tensor, wanted_TV: Tensor) -> bool:
        return bool((logits_TV - wanted_TV).abs().max() > _LOGITS_TOLERANCE * wanted_TV.abs().max())


def _config_and_attention(path: str) -> tuple[Any, str]:
    """Return a model's configuration, and the attention of transformers for rows that are not packed."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    # torch's fused attention cannot cap its scores (Gemma 2) and would leave that out without a word.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return config, "eager" if capped else "sdpa"


def _loaded(path: str, config: Any, settings: Mapping[str, Any]) -> Any:
    """Load the weights; raise `RecipeError` if they are not all there, or not those of ``config``.

    transformers would give tensors that are missing random values, and only warn.
    """
    kind = model_class(config)
    try:
        model, found = kind.from_pretrained(path, **settings, output_loading_info=True)
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RecipeError(
            f"the weights of the model at {path!r} cannot be loaded ({str(error).strip().splitlines()[0]}). Check that "
            "config.json and weights are of one model, and copy or download them again"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise RecipeError(
            f"the weights of the model at {path!r} lack {', '.join(missing[:3])} ({len(missing)} tensors that its "
            f"config.json, a {type(model).__name__}, asks for). Copy or download the model again, or choose a model "
            "with all weights"
        )
    return model


def model_class(config: Any) -> Any:
    """Return the transformers class that loads a model of this configuration, with its output head."""
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


def whole_rows(token_ids_BT: Tensor) -> Packing:
    """Return the packing of rows without any padding."""
    rows, length = token_ids_BT.shape
    return Packing(torch.full((rows,), length, device=token_ids_BT.device), length)


def _without_dropout(model: nn.Module) -> nn.Module:
    """Switch off dropout of every kind: rollouts have none, so the importance ratio must not have it either."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in module.__dict__.items():  # functional dropout reads plain numbers
            if _RANDOM.search(name) and isinstance(value, float):
                module.__dict__[name] = 0.0
    return model.train()
