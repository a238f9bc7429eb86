"""TRL's side of the comparison: `GRPOTrainer`, with given completions in place of its generation.

In a whole step it generates with transformers, its default. A step is measured from the trainer's ``on_step_begin`` to
its ``on_step_end``. Between them are generation, the reference pass, the forward and backward passes, clipping and the
optimizer, as in rlkl's step.
"""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.against.measured import CLIP, LR, MAX_GRAD_NORM, Measured, peak_mib
from benchmarks.against.workload import Case, Workload
from rlkl.system.compat import ensure_torch_extras

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
ensure_torch_extras()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl.trainer.grpo_config import GRPOConfig  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402


def run(workload: Workload, *, steps: int) -> Measured:
    """Train for a first step and ``steps`` measured ones."""
    imports_mib = peak_mib()
    clock = _Clock()
    trainer = build_trainer(workload, steps=1 + steps, clock=clock)
    trainer.train()
    lengths = [record["completions/mean_length"] for record in clock.logs[1 : 1 + steps]]
    return Measured(
        seconds=clock.seconds[1:],
        tokens=workload.case.rows * sum(lengths) / len(lengths),
        peak_mib=peak_mib(),
        imports_mib=imports_mib,
        loss=clock.logs[0]["loss"],
        grad_norm=clock.logs[0]["grad_norm"],
    )


def micro_batch_rows(workload: Workload) -> int:
    """Return the rows of a micro-batch: as many of the longest as fit, in equal parts of the batch."""
    case = workload.case
    width = case.prompt_tokens + max(map(len, workload.completions))
    fitting = max(case.micro_batch_tokens // width, 1)
    return max(rows for rows in range(1, case.rows + 1) if case.rows % rows == 0 and rows <= fitting)


def build_trainer(workload: Workload, *, steps: int, clock: TrainerCallback) -> Any:
    """Return the trainer. The weights are float32; in bfloat16 TRL computes under autocast, as it does by default."""
    case: Case = workload.case
    rows = micro_batch_rows(workload)
    model = AutoModelForCausalLM.from_pretrained(workload.policy, dtype=torch.float32)
    model.config._name_or_path = workload.reference  # the trainer loads its reference from there
    return GRPOTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(workload.policy, padding_side="left"),
        reward_funcs=_length if case.whole else _given_reward,
        rollout_func=None if case.whole else lambda prompts, _: _given(workload, prompts),
        train_dataset=Dataset.from_dict({"prompt": workload.texts * steps}),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=str(workload.folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=case.rows // rows,
            num_generations=case.samples,
            max_completion_length=case.answer_tokens,
            beta=case.kl_coef,
            use_bias_correction_kl=False,
            epsilon=CLIP,
            loss_type="grpo",
            temperature=1.0,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=MAX_GRAD_NORM,
            gradient_checkpointing=False,
            bf16=case.dtype == "bfloat16",
            use_cpu=True,
            shuffle_dataset=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )


def _given(workload: Workload, prompts: list[str]) -> dict[str, Any]:
    """Return the completions of the batch, whose prompts come in order, each as often as it has samples."""
    assert prompts == [text for text in workload.texts for _ in range(workload.case.samples)]
    return {
        "prompt_ids": [list(prompt) for prompt in workload.prompts for _ in range(workload.case.samples)],
        "completion_ids": [list(completion) for completion in workload.completions],
        "logprobs": None,
        "given_reward": list(workload.rewards),
    }


def _given_reward(given_reward: list[float], **_: Any) -> list[float | None]:
    return list(given_reward)


def _length(completions: list[str], **_: Any) -> list[float | None]:
    return [float(len(completion) % 7) for completion in completions]


class _Clock(TrainerCallback):
    """Keeps the seconds of each step, and each log record."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.logs: list[dict[str, float]] = []
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs.append(dict(logs))
