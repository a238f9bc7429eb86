"""Twenty steps of each rule with the real learner: sampling, rewards, credit, optimizer, publishing. No Ray, no vLLM.

``python -m tests.golden.record`` records them anew; do so, and commit the files, after a deliberate change of numbers.

Every step samples from the weights that the step before published, so one number that changes anywhere changes all
that follow. The model is untrained; the reward is the share of digits among a completion's tokens, so it can rise. A
rule that corrupts pictures is recorded with a model that sees (`tests.golden.seeing`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.replay_states import compute_states
from rlkl.models.language_model import LanguageModel
from rlkl.recipe import Recipe
from rlkl.rollout.collect import Draw, build_requests, with_text
from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.hf_engine import HfEngine
from rlkl.tasks.characters import EOS_ID, character_tokenizer
from rlkl.tasks.teaching import threads
from rlkl.training.correcting import build_corrector
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup
from rlkl.updates import build_update
from rlkl.updates.filters import filter_groups
from rlkl.updates.terms.replay.states import StatesHeader, write_states
from tests.golden.seeing import SeeingEngine
from tests.hands_in_process import HandsInProcess
from tests.models import tiny_qwen2_5_vl, tiny_qwen3

RECORDED = Path(__file__).parent / "recorded"
STEPS = 20
METRICS = ("loss/total", "optim/grad_norm", "kl/policy_to_reference", "reward/mean")
RULES: dict[str, dict[str, object]] = {
    "grpo": {"rule": "grpo", "kl_coef": 0.05},
    "dapo": {"rule": "grpo", "variant": "dapo"},
    "distill": {"rule": "distill", "top_k": 5},
    "distill_jsd": {"rule": "distill", "jsd_beta": 0.3, "top_k": 5},
    "distill_stored": {"rule": "distill", "kept_mass": 0.8, "on_policy_fraction": 0.5, "answer_column": "answer"},
    "distill_gate": {"rule": "distill", "kept_mass": 0.6, "gate_tokens": 4, "gate_temperature": 0.2},
    "distill_span": {"rule": "distill", "top_k": 5, "terms": [{"term": "span", "to": "teacher", "coef": 5.0}]},
    "distill_corrected": {"rule": "distill", "corrections": 2, "direction": "model_to_policy"},
    "distill_reward": {"rule": "distill", "placement": "reward", "reward_coef": 0.2},
    "ppo": {"rule": "ppo", "kl_target": 0.5, "kl_horizon": 200},
    "superhf": {"rule": "superhf"},
    "superhf_masked_kl": {
        "rule": "superhf",
        "kl_coef": 0.0,
        "terms": [{"term": "masked_kl", "coef": 0.8, "token_ids": [3, 4], "vocabulary_ids": [5, 6], "top_k": 6}],
    },
    "sparsepo": {"rule": "sparsepo", "mask": "sparse_common", "l1_reward": 0.01, "l1_kl": 0.01},
    "listwise": {"rule": "listwise", "beta": 0.5},
    "listwise_mean": {"rule": "listwise", "over_tokens": "mean", "tau": 0.5, "tau_unit": "reward"},
    "grpo_lagged": {"rule": "grpo", "terms": [{"term": "kl", "to": "lagged", "coef": 0.5, "lag": 3}]},
    "grpo_average": {"rule": "grpo", "terms": [{"term": "kl", "to": "average", "coef": 0.5}]},
    "grpo_rewording": {"rule": "grpo", "terms": [{"term": "rewording", "column": "other", "coef": 0.5}]},
    "grpo_consistency": {"rule": "grpo", "terms": [{"term": "consistency", "noise_std": 0.3, "coef": 1.0}]},
    "papo": {"rule": "papo", "perception_coef": 0.1, "entropy_coef": 0.02, "anneal_to": 0.05},
    "papo_recompute": {"rule": "papo", "perception_coef": 0.2, "corrupted_entropy_coef": 0.02, "recompute": True},
    "replay": {
        "rule": "grpo",
        "terms": [{"term": "replay", "states": "made here", "sequences": 4, "coef": 0.1, "cross_entropy_coef": 0.1}],
    },
}
"""Name of the recorded file -> the recipe's ``update`` section."""


def build() -> dict[str, object]:
    """What two machines must share for the same floating-point sums, and so for the same trajectory bit for bit."""
    # Core counts may differ: one thread adds.
    cpu = {name: value for name, value in torch.cpu.get_capabilities().items() if not name.startswith("num_")}
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": " ".join(name if value is True else f"{name}={value}" for name, value in sorted(cpu.items()) if value),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "sampler": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": 1,
    }


def trajectory(name: str) -> list[dict[str, float]]:
    """`METRICS` of each step of ``RULES[name]``, on one thread."""
    with TemporaryDirectory() as folder, threads(1):
        is_multimodal = bool(build_update(_recipe("", RULES[name]).update).views)
        path = Path(folder) / "model"
        model_path = str(tiny_qwen2_5_vl(path, seed=0) if is_multimodal else tiny_qwen3(path, tied=False, seed=0))
        recipe = _recipe(model_path, RULES[name])
        recipe = _with_states(recipe, Path(folder))
        frozen = {name: str(tiny_qwen3(Path(folder) / name, tied=False, seed=1)) for name in recipe.models}
        learner = Learner(LearnerSpec(recipe=recipe, model_path=model_path, frozen_paths=frozen))
        engine = (SeeingEngine if is_multimodal else HfEngine)(_engine_settings(recipe))
        return [_step(recipe, learner, engine, step) for step in range(STEPS)]


def _with_states(recipe: Recipe, folder: Path) -> Recipe:
    """Write the states that the recipe's terms replay, of twelve sums, and name their folder."""
    if not any(term.term == "replay" for term in recipe.update.terms):
        return recipe
    model = LanguageModel(recipe.model.path, dtype=torch.float32, device=torch.device("cpu"), packed=True)
    samples = [character_tokenizer().encode(f"{a}+{a + 1}={2 * a + 1}") for a in range(12)]
    states = compute_states(model, samples, micro_batch_tokens=64)
    header = StatesHeader(
        model="", model_fingerprint="", tokenizer_fingerprint="", dtype="", hidden_size=0, data="", samples=0, tokens=0
    )
    write_states(folder / "states", states, header)
    terms = [term.model_copy(update={"states": str(folder / "states")}) for term in recipe.update.terms]
    return recipe.model_copy(update={"update": recipe.update.model_copy(update={"terms": terms})})


def _engine_settings(recipe: Recipe) -> EngineSettings:
    return EngineSettings(
        model_path=recipe.model.path,
        dtype=recipe.model.dtype,
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
        stop_token_ids=(EOS_ID,),
        memory_fraction=0.5,
        kv_cache_gib=recipe.rollout.vllm.kv_cache_gib,
    )


def _recipe(model_path: str, update: dict[str, object]) -> Recipe:
    return Recipe.model_validate(
        {
            "steps": STEPS,
            "model": {"path": model_path},
            "models": {"teacher": {"path": "unused"}} if update["rule"] == "distill" else {},
            "data": {"source": "unused.jsonl", "max_prompt_tokens": 4},
            "rollout": {"engine": "hf", "prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 6},
            "update": update,
            "learner": {"device": "cpu", "threads": 1, "lr": 1e-3, "minibatches": 2, "track_reference_kl": True},
        }
    )


def _step(recipe: Recipe, learner: Learner, engine: HfEngine | SeeingEngine, step: int) -> dict[str, float]:
    groups = _sample(recipe, learner, engine, step)
    examples = build_update(recipe.update).select(filter_groups(groups, recipe.update.filter))
    rewards = [rollout.reward for group in groups for rollout in group.rollouts]
    record = learner.prepare(examples, step=step) | learner.step(step) | {"reward/mean": sum(rewards) / len(rewards)}
    assert not engine.load_weights(learner.policy.published())
    return {metric: record[metric] for metric in METRICS}


def _sample(recipe: Recipe, learner: Learner, engine: HfEngine | SeeingEngine, step: int) -> list[RolloutGroup]:
    tokenizer, samples = character_tokenizer(), recipe.rollout.samples_per_prompt
    numbers = range(recipe.rollout.prompts_per_step)
    if isinstance(engine, SeeingEngine):
        prompts = [engine.prompt(step, number) for number in numbers]
    else:
        texts = [f"{step % 10}+{number}=" for number in numbers]
        stored = (*tokenizer.encode("17"), EOS_ID)
        prompts = [
            Prompt(
                id=text,
                text=text,
                token_ids=tuple(tokenizer.encode(text)),
                answers=(stored,),
                wordings={"other": tuple(tokenizer.encode("".join(reversed(text[:-1])) + "="))},
            )
            for text in texts
        ]
    draws = [Draw(prompt=prompt, position=len(prompts) * step + n) for n, prompt in enumerate(prompts)]
    requests = build_requests(draws, samples=samples, seed=recipe.seed)
    corrector = build_corrector(recipe, build_update(recipe.update), HandsInProcess(learner, engine), None, (EOS_ID,))
    completions = engine.generate(requests) if corrector is None else corrector.sample(requests, draws)
    completions = with_text(completions, partial(tokenizer.batch_decode, skip_special_tokens=True))
    return [
        RolloutGroup(prompt=prompt, rollouts=tuple(_scored(completions[n * samples : (n + 1) * samples], step)))
        for n, prompt in enumerate(prompts)
    ]


def _scored(completions: Sequence[Completion], step: int) -> Iterator[Rollout]:
    for sample, completion in enumerate(completions):
        reward = sum(character.isdigit() for character in completion.text) / len(completion.token_ids)
        yield Rollout(sample_index=sample, completion=completion, reward=reward, components={}, weights_version=step)


def main() -> None:
    RECORDED.mkdir(exist_ok=True)
    for name in RULES:
        steps = ",\n    ".join(json.dumps(step) for step in trajectory(name))
        head = json.dumps(build(), indent=4).replace("\n}", "\n  }")
        (RECORDED / f"{name}.json").write_text(f'{{\n  "build": {head},\n  "steps": [\n    {steps}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
