"""Collecting groups of `timed_engine` completions, and what every collector must give back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from rlkl.recipe import Recipe
from rlkl.rewards import load_rewards
from rlkl.rollout.collect import Draw, build_requests
from rlkl.tasks.characters import character_tokenizer
from rlkl.training.clock import Clock
from rlkl.training.collect import build_collector
from rlkl.training.hands import Sampler
from rlkl.types import Prompt, RolloutGroup
from tests.integration.timed_engine import answer

TOKENIZER = character_tokenizer()


def right(completion_ids: Sequence[int], completion: str, row: int) -> float:
    """A number that no other completion of another prompt has, and that the text enters too."""
    return float(1000 * row + 10 * sum(completion_ids) + len(completion))


def recipe_of(*, samples: int, seed: int) -> Recipe:
    return Recipe.model_validate(
        {
            "seed": seed,
            "model": {"path": "task:arithmetic"},
            "data": {"source": "task:arithmetic"},
            "rollout": {"samples_per_prompt": samples},
            "rewards": [{"function": "tests.integration.collecting:right", "mode": "thread"}],
        }
    )


def collect(sampler: Sampler, *, case: int, prompts: int, samples: int) -> tuple[list[RolloutGroup], list[Draw]]:
    """One step's groups from ``sampler``, and the draws that they are for."""
    recipe = recipe_of(samples=samples, seed=case)
    draws = [
        Draw(prompt=Prompt(id=f"p{n}", text="", token_ids=(case, n), columns={"row": n}), position=7 + n)
        for n in range(prompts)
    ]
    with closing(load_rewards(recipe.rewards)) as rewards:
        rewards.start(timeout_s=60)
        collector = build_collector(recipe, sampler, rewards, TOKENIZER, prompts=prompts)
        return collector.groups(draws, step=0, clock=Clock()), draws


def check(groups: Sequence[RolloutGroup], draws: Sequence[Draw], *, case: int, samples: int) -> None:
    """Every completion is there once, in order, with its text and the reward of its own prompt and text."""
    wanted = [answer(request) for request in build_requests(draws, samples=samples, seed=case)]
    found = [rollout for group in groups for rollout in group.rollouts]
    assert [group.prompt for group in groups] == [draw.prompt for draw in draws]
    assert [rollout.sample_index for rollout in found] == [n % samples for n in range(len(wanted))]
    assert [rollout.draw for rollout in found] == [draw.position for draw in draws for _ in range(samples)]
    assert [rollout.completion.token_ids for rollout in found] == [completion.token_ids for completion in wanted]
    texts = TOKENIZER.batch_decode([list(completion.token_ids) for completion in wanted], skip_special_tokens=True)
    assert [rollout.completion.text for rollout in found] == texts
    assert [rollout.reward for rollout in found] == [
        right(completion.token_ids, text, n // samples)
        for n, (completion, text) in enumerate(zip(wanted, texts, strict=True))
    ]
