"""GRPO in one file: sample, score, compare, step. No Ray, no vLLM, no recipe.

    python examples/minimal_grpo.py            # two minutes on a CPU; the reward rises from about 0.5

It uses the parts that rlkl's own trainer uses: the hf engine samples, `rlkl.functional` computes. The model is the
built-in arithmetic one, which knows the sum of two numbers and gives it half of the time.

Notation: B completions, T tokens, N response tokens, H hidden size. The policy is `model`; `engine` holds a copy that
samples, so the copy takes new weights after each step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkl.functional.advantages import group_std_advantages
from rlkl.functional.logprobs import chunked_logprobs_and_entropy
from rlkl.functional.surrogate import clipped_surrogate, token_log_ratio
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.hf_engine import HfEngine
from rlkl.seeds import derive_seed
from rlkl.tasks import base_model, task_reward, task_rows
from rlkl.types import Completion

PROMPTS, SAMPLES, MAX_NEW_TOKENS = 32, 16, 8
LEARNING_RATE, CLIP, MAX_GRAD_NORM = 5e-4, 0.2, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO on additions, in one process.")
    parser.add_argument("--steps", type=int, default=40)
    for step, reward in enumerate(train(parser.parse_args().steps), start=1):
        print(f"step {step:3d}  reward {reward:.3f}")


def train(steps: int, *, seed: int = 0) -> Iterator[float]:
    """Train and yield the mean reward of each step's completions, before the step."""
    torch.set_num_threads(1)  # the model is tiny: more threads would only wait for one another
    path = str(base_model("arithmetic"))
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    engine = HfEngine(_engine_settings(path, tokenizer))
    rows, reward_of = task_rows("arithmetic"), task_reward("arithmetic")

    for step in range(steps):
        # 1. Sample a group of completions for each prompt.
        picked = torch.randperm(len(rows), generator=_generator(seed, step))[:PROMPTS].tolist()
        batch = [rows[index] for index in picked for _ in range(SAMPLES)]
        prompts = [tuple(tokenizer.encode(row["prompt"])) for row in batch]
        requests = [
            Request(prompt_token_ids=prompt, seed=derive_seed(seed, "sample", step, number))
            for number, prompt in enumerate(prompts)
        ]
        completions = engine.generate(requests)

        # 2. Score them, and compare each with the others of its prompt.
        texts = [tokenizer.decode(c.token_ids, skip_special_tokens=True) for c in completions]
        rewards_B = torch.tensor(
            [reward_of(row["prompt"], text, row["answer"]) for text, row in zip(texts, batch, strict=True)]
        )
        group_B = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
        advantages_B = group_std_advantages(rewards_B, group_B)
        yield float(rewards_B.mean())

        # 3. Make likelier the tokens of completions that beat their group's mean.
        ids_BT, response_BT, proximal_BT = pad(prompts, completions)
        log_ratio_BT = token_log_ratio(policy_logprobs(model, ids_BT, response_BT), proximal_BT, response_BT)
        advantages_BT = advantages_B[:, None] * response_BT
        surrogate = clipped_surrogate(log_ratio_BT, advantages_BT, lower=1 - CLIP, upper=1 + CLIP)
        (surrogate.loss_BT.sum() / response_BT.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

        # 4. Give the sampler the new weights.
        engine.load_weights(model.named_parameters())


def pad(prompts: list[tuple[int, ...]], completions: list[Completion]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack prompts and completions, padded on the right: ``ids_BT``, ``response_BT`` bool, ``proximal_logprobs_BT``.

    The sampler has the policy's weights, so its log-probabilities are those of the proximal policy.
    """
    longest = max(len(p) + len(c.token_ids) for p, c in zip(prompts, completions, strict=True))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    response_BT = torch.zeros(len(prompts), longest, dtype=torch.bool)
    proximal_BT = torch.zeros(len(prompts), longest)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        assert completion.logprobs is not None
        end = len(prompt) + len(completion.token_ids)
        ids_BT[row, :end] = torch.tensor([*prompt, *completion.token_ids])
        response_BT[row, len(prompt) : end] = True
        proximal_BT[row, len(prompt) : end] = torch.tensor(completion.logprobs)
    return ids_BT, response_BT, proximal_BT


def policy_logprobs(model: Any, ids_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Return the log-prob (nats, ``[B, T]``) of each response token, zero elsewhere, with gradient."""
    hidden_BTH = model.base_model(ids_BT, use_cache=False).last_hidden_state
    hidden_NH = hidden_BTH[:, :-1][response_BT[:, 1:]]  # the state before a token predicts it
    logprobs_N, _ = chunked_logprobs_and_entropy(
        hidden_NH, model.lm_head, ids_BT[response_BT], temperature=1.0, chunk_tokens=1024, with_entropy=False
    )
    return torch.zeros(ids_BT.shape).masked_scatter(response_BT, logprobs_N)


def _engine_settings(path: str, tokenizer: Any) -> EngineSettings:
    return EngineSettings(
        model_path=path,
        dtype="float32",
        max_prompt_tokens=16,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        stop_token_ids=(tokenizer.eos_token_id,),
        memory_fraction=0.5,
        kv_cache_gib=1,
    )


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "prompts", step))


if __name__ == "__main__":
    main()
