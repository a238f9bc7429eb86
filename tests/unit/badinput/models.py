"""Cases: folders of models."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlkl.models.language_model import LanguageModel
from tests.unit.badinput.case import HERE, Case, Place

WEIGHTS = "base/model.safetensors"


def _without_tokenizer(place: Place) -> None:
    place.remove("base/tokenizer.json", "base/tokenizer_config.json")


def _with_tokenizer_of_another(place: Place) -> None:
    tokenizer = json.loads((place.here / "base/tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"word{number}": 99 + number for number in range(50)}
    place.write("base/tokenizer.json", json.dumps(tokenizer))


def _in_half_precision(place: Place) -> None:
    tensors = load_file(place.here / WEIGHTS)
    place.remove(WEIGHTS)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, place.here / "base/model.fp16.safetensors")


def _without_a_shard(place: Place) -> None:
    model = AutoModelForCausalLM.from_pretrained(place.here / "base")
    place.remove(WEIGHTS)
    model.save_pretrained(place.here / "base", max_shard_size="200KB")
    shards = sorted((place.here / "base").glob("model-*.safetensors"))
    assert len(shards) == 4
    shards[1].unlink()


def _without_a_tensor(place: Place) -> None:
    tensors = load_file(place.here / WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, place.here / WEIGHTS, metadata={"format": "pt"})


def _cut_off(place: Place) -> None:
    whole = (place.here / WEIGHTS).read_bytes()
    place.write(WEIGHTS, whole[: len(whole) // 2])


def _adapters(place: Place) -> None:
    place.remove("base/config.json", WEIGHTS)
    place.write("base/adapter_config.json", json.dumps({"base_model_name_or_path": "Qwen/Qwen3-0.6B", "r": 8}))
    place.write("base/adapter_model.safetensors", b"")


def _load(place: Place) -> None:
    """Load the model as learner and engine do when a run has started."""
    LanguageModel(str(place.here / "base"), dtype=torch.float32, device=torch.device("cpu"))


CASES = [
    Case(
        wrong="The model's folder does not exist",
        run="train r.yaml model.path=./bse",
        names="model.path = './bse': there is no such folder",
        way="did you mean 'base'?",
    ),
    Case(
        wrong="The model's folder does not exist, nor the one above it",
        run="plan r.yaml model.path=models/small/base",
        names="model.path = 'models/small/base': there is no such folder",
        way="Expected a folder with a Hugging Face model",
    ),
    Case(
        wrong="A name of the hub that is not here, offline",
        run="train r.yaml model.path=Qwen/Qwen3-0.6B",
        names="model.path = 'Qwen/Qwen3-0.6B'",
        way="HF_HUB_OFFLINE forbids to download it",
    ),
    Case(
        wrong="The model is a file, such as GGUF",
        run="plan r.yaml model.path=m.gguf",
        make=lambda place: place.write("m.gguf", "GGUF"),
        names="model.path = 'm.gguf' is a file",
        way="Expected a folder with a Hugging Face model",
    ),
    Case(
        wrong="The folder is empty",
        run="plan r.yaml model.path=empty",
        make=lambda place: (place.here / "empty").mkdir(),
        names="model.path = 'empty': the folder holds no config.json",
        way="Expected a folder with a Hugging Face model",
    ),
    Case(
        wrong="config.json is cut off",
        run="plan r.yaml",
        make=lambda place: place.write("base/config.json", '{"model_type": "qwen3"'),
        names="model.path = 'base': its config.json cannot be read",
        way="Expected a folder with a Hugging Face model",
    ),
    Case(
        wrong="A value of config.json has the wrong type",
        run="train r.yaml",
        make=lambda place: place.json("base/config.json", hidden_size="big"),
        names="model.path = 'base': its config.json cannot be read (Validation error for field 'hidden_size'",
        way="Expected a folder with a Hugging Face model",
    ),
    Case(
        wrong="An architecture that transformers does not know",
        run="train r.yaml",
        make=lambda place: place.json("base/config.json", model_type="qwen99"),
        names="model.path = 'base': its config.json cannot be read",
        way="your version of Transformers is out of date",
    ),
    Case(
        wrong="The wrong architecture: an encoder, such as BERT",
        run="plan r.yaml",
        make=lambda place: place.json("base/config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        names="model.path = 'base' is a BertForMaskedLM, which has no head that writes text",
        way="Choose a causal language model",
    ),
    Case(
        wrong="The wrong architecture: an encoder and a decoder, such as T5",
        run="train r.yaml",
        make=lambda place: place.json("base/config.json", model_type="t5", is_encoder_decoder=True),
        names="model.path = 'base' is an encoder-decoder model",
        way="Choose a causal language model",
    ),
    Case(
        wrong="A reward model in place of the policy",
        run="plan r.yaml",
        make=lambda place: place.json("base/config.json", architectures=["Qwen3ForSequenceClassification"]),
        names="model.path = 'base' is a Qwen3ForSequenceClassification",
        way="Choose a causal language model",
    ),
    Case(
        wrong="config.json is that of another model",
        run="plan r.yaml",
        make=lambda place: place.json("base/config.json", hidden_size=128),
        names="model.path = 'base': its weights embed 99 token ids in 64 numbers each",
        way="copy both from one source",
    ),
    Case(
        wrong="No weights",
        run="plan r.yaml",
        make=lambda place: place.remove(WEIGHTS),
        names="model.path = 'base': the folder holds no weights",
        way="(model.safetensors or pytorch_model.bin",
    ),
    Case(
        wrong="Only `model.fp16.safetensors`",
        run="train r.yaml",
        make=_in_half_precision,
        names="model.path = 'base': the folder holds model.fp16.safetensors, but no model.safetensors",
        way="rename the file, or save the model again",
    ),
    Case(
        wrong="One shard of the weights is missing",
        run="train r.yaml",
        make=_without_a_shard,
        names="model-00002-of-00004.safetensors is missing: model.safetensors.index.json names 4 shards",
        way="download the model again",
    ),
    Case(
        wrong="The index of the shards is damaged",
        run="plan r.yaml",
        make=lambda place: (
            (place.remove(WEIGHTS), place.write(f"{WEIGHTS}.index.json", "{"))
            and place.write("base/model-00001-of-00002.safetensors", b"")
        ),
        names="model.path = 'base': model.safetensors.index.json cannot be read",
        way="Copy or download it again",
    ),
    Case(
        wrong="The weights are cut off",
        run="plan r.yaml",
        make=_cut_off,
        names="model.path = 'base': model.safetensors is cut off: it has",
        way="Copy or download it again",
    ),
    Case(
        wrong="The weights are a pointer of Git LFS",
        run="train r.yaml",
        make=lambda place: place.write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:abc\n"),
        names="model.path = 'base': model.safetensors is a pointer of Git LFS",
        way="fetch them with git lfs pull",
    ),
    Case(
        wrong="A tensor is missing, which shows when the model is loaded",
        run=_load,
        make=_without_a_tensor,
        names=f"the weights of the model at '{HERE}/base' lack model.layers.0.mlp.up_proj.weight",
        way="Copy or download the model again",
    ),
    Case(
        wrong="The weights of another size, which shows when the model is loaded",
        run=_load,
        make=lambda place: place.json("base/config.json", intermediate_size=96),
        names=f"the weights of the model at '{HERE}/base' cannot be loaded",
        way="Check that config.json and weights are of one model",
    ),
    Case(
        wrong="Adapters (LoRA) without their base model",
        run="plan r.yaml",
        make=_adapters,
        names="model.path = 'base': the folder holds adapters of 'Qwen/Qwen3-0.6B', and no whole model",
        way="merge them with peft's merge_and_unload()",
    ),
    Case(
        wrong="No tokenizer",
        run="train r.yaml",
        make=_without_tokenizer,
        names=f"model.path = '{HERE}/base': no tokenizer can be loaded from it",
        way="as if tokenizer.json were missing",
    ),
    Case(
        wrong="The tokenizer is damaged",
        run="train r.yaml",
        make=lambda place: place.write("base/tokenizer.json", "{"),
        names=f"model.path = '{HERE}/base': no tokenizer can be loaded from it",
        way="Expected a folder with a Hugging Face model and its tokenizer",
    ),
    Case(
        wrong="No end-of-sequence token",
        run="train r.yaml",
        make=lambda place: place.json("base/tokenizer_config.json", eos_token=None),
        names=f"model.path = '{HERE}/base': its tokenizer names no end-of-sequence token",
        way="set eos_token in it",
    ),
    Case(
        wrong="The wrong vocabulary: the tokenizer of another model",
        run="train r.yaml",
        make=_with_tokenizer_of_another,
        names="its tokenizer has token ids up to 148, but its config.json says vocab_size 99",
        way="copy model and tokenizer from one source",
    ),
    Case(
        wrong="No chat template, and data.as_chat",
        run="train r.yaml data.as_chat=true",
        names=f"the tokenizer '{HERE}/base' has no chat template",
        way="use an instruct model",
    ),
    Case(
        wrong="The generation settings are damaged",
        run="train r.yaml",
        make=lambda place: place.write("base/generation_config.json", "{"),
        names=f"model.path = '{HERE}/base': its generation_config.json cannot be read",
        way="Copy it again, or remove it",
    ),
    Case(
        wrong="The reference has another vocabulary",
        run="train r.yaml model.reference=wide",
        make=lambda place: place.model("wide"),
        names="model.reference = 'wide' has 120 token ids, the policy at model.path = 'base' has 99",
        way="name a model of the same family",
    ),
    Case(
        wrong="PAPO, which changes pictures, with a model that reads text alone",
        run="train r.yaml update.rule=papo",
        names="papo",
        way="vision-language model",
    ),
    Case(
        wrong="`rlkl sft` of a model whose weights are no safetensors file",
        run="sft s.yaml",
        make=lambda place: (
            place.write("s.yaml", "model: {path: base}\ndata: {source: rows.jsonl, completion_column: answer}\n"),
            place.write(WEIGHTS, "weights"),
        ),
        names="model.path = 'base': model.safetensors is no safetensors file (7 bytes)",
        way="Copy or download it again",
    ),
]
