"""Twenty steps of GRPO on a Qwen3 of 25 million parameters and 151,936 words, in each precision, with and without LoRA.

``python -m tests.realistic.twenty_steps [float32] [lora] ...`` runs the settings whose names hold all words, on real
Ray and vLLM. It prints the largest mismatch of sampler and learner, whether a resume from step 10 ends as the
undisturbed run did, and how far the exported policy's log-probs of the run's last samples are from the learner's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlkl
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import Recipe
from rlkl.types import Probe
from tests.integration.runs import untimed
from tests.realistic.models import ModelChoice, build
from tests.realistic.test_training import recipe_of

STEPS, HALF = 20, 10
SETTINGS = {f"{dtype}{' lora' if lora else ''}": (dtype, lora) for dtype in ("float32", "bfloat16") for lora in (0, 1)}


def main(words: Sequence[str]) -> None:
    """Run the chosen settings and print their figures."""
    for name, (dtype, lora) in SETTINGS.items():
        if all(word in name.split() for word in words):
            with tempfile.TemporaryDirectory() as folder:
                print(name, *try_setting(dtype, bool(lora), Path(folder)), sep="\n  ", flush=True)


def try_setting(dtype: str, lora: bool, work: Path) -> list[str]:
    """Train, resume and compare; return lines to print."""
    model = build(ModelChoice(architecture="qwen3", dtype=dtype), work)
    tokenizer = AutoTokenizer.from_pretrained(model)
    words = [tokenizer.decode([300 + 7 * n for n in range(length)]) for length in (1, 2, 9, 30, 60, 64)]
    sections = {
        "model": {"dtype": dtype, "lora": {"rank": 16} if lora else None},
        "learner": {"lr": 1e-5 if lora else 1e-6, "schedule": "cosine"},
        "checkpoint": {"every": HALF, "keep": 2},
    }
    recipe = recipe_of(work / "run", model, words, **sections).model_copy(update={"steps": STEPS})
    rlkl.train(recipe)
    lines = untimed(work / "run")
    lengths = [int(line["rollout/length_mean"]) for line in lines]
    mismatch = max(line["rollout/mismatch_max"] for line in lines)
    gaps = compare(recipe, model, work / "run")

    shutil.rmtree(work / "run" / "policy")
    shutil.rmtree(work / "run" / "checkpoints" / f"step_{STEPS:06d}")
    rlkl.train(rlkl.load_recipe(work / "run" / "recipe.yaml"), resume_from=work / "run")
    same = untimed(work / "run") == lines
    return [
        f"{len(lines)} steps, mean lengths {min(lengths)} to {max(lengths)} tokens, all publishes verified: "
        f"{all(line['weights/verified'] == 1 for line in lines)}",
        f"sampler against learner: at most {mismatch:.2g} nats",
        *gaps,
        f"resume from step {HALF} ends as the undisturbed run: {same}",
    ]


@torch.no_grad()
def compare(recipe: Recipe, model: Path, run_dir: Path) -> list[str]:
    """Compare log-probs of the last samples (nats): exported policy against learner, transformers against itself.

    With LoRA in bfloat16 the exported policy is the adapter on its base.
    """
    rows = pq.read_table(run_dir / "samples" / f"step_{STEPS:06d}.parquet").to_pylist()
    sequences = [row["completion_ids"] for row in rows if len(row["completion_ids"]) > 1]
    learner = Learner(LearnerSpec(recipe=recipe, model_path=str(model)))
    learner.restore(run_dir / "checkpoints" / f"step_{STEPS:06d}")
    wanted = list(map(torch.tensor, learner.probe([Probe(token_ids=tuple(sequence)) for sequence in sequences])))
    policy = _load(recipe, model, run_dir / "policy")
    alone = [_logprobs(policy, [sequence])[0] for sequence in sequences]
    together = _logprobs(policy, sequences)
    return [
        f"exported policy against learner: {_gap(together, wanted)}",
        f"transformers against itself, one by one and padded: {_gap(alone, together)}",
    ]


def _load(recipe: Recipe, model: Path, policy: Path) -> torch.nn.Module:
    """Load the exported policy as a user serves it."""
    if recipe.model.publishes_adapters:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        return PeftModel.from_pretrained(base, str(policy / "adapter"), autocast_adapter_dtype=False)
    return AutoModelForCausalLM.from_pretrained(policy)


def _logprobs(policy: torch.nn.Module, sequences: list[list[int]]) -> list[torch.Tensor]:
    width = max(map(len, sequences))
    ids_BT = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    logprobs_BTV = policy(input_ids=ids_BT).logits[:, :-1].float().log_softmax(-1)
    logprobs_BT = logprobs_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
    return [row[: len(sequence) - 1] for row, sequence in zip(logprobs_BT, sequences, strict=True)]


def _gap(left: list[torch.Tensor], right: list[torch.Tensor]) -> str:
    gaps = torch.cat(left).double() - torch.cat(right).double()
    return f"at most {float(gaps.abs().max()):.2g}, root mean square {float(gaps.square().mean().sqrt()):.2g} nats"


if __name__ == "__main__":
    main(sys.argv[1:])
