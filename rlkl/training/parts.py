"""The parts of a run, built from what set-up has made ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkl.data.prompts import PromptSource
from rlkl.recipe import Recipe
from rlkl.rewards import RewardSet
from rlkl.tracking.tracker import Tracker
from rlkl.training.best import Best
from rlkl.training.collect import build_collector
from rlkl.training.correcting import build_corrector
from rlkl.training.evaluation import Evaluator, HeldOut
from rlkl.training.faults import Faults
from rlkl.training.hands import Hands
from rlkl.training.publish import Publisher
from rlkl.training.saving import Saver
from rlkl.training.schedules import Schedule, build_schedule
from rlkl.training.selection import Selector
from rlkl.training.waiting import Waiting
from rlkl.training.watch import Watch
from rlkl.updates.base import PolicyUpdate


@dataclass(slots=True, kw_only=True)
class Parts:
    """All that a loop works with."""

    recipe: Recipe
    run_dir: Path
    hands: Hands
    source: PromptSource
    rewards: RewardSet
    update: PolicyUpdate
    tracker: Tracker
    tokenizer: Any
    processor: Any
    """For `processor`, `recipe_values` and `fingerprints`, see `Saver`."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion; read only if samples are corrected."""
    held_out: HeldOut | None = None
    """None: the run is not evaluated."""
    recipe_values: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    schedule: Schedule = field(init=False)
    publisher: Publisher = field(init=False)
    saver: Saver = field(init=False)
    best: Best = field(init=False)
    evaluator: Evaluator = field(init=False)
    watch: Watch = field(init=False)
    waiting: Waiting = field(init=False)
    faults: Faults = field(init=False)

    def __post_init__(self) -> None:
        recipe, source, hands = self.recipe, self.source, self.hands
        corrector = build_corrector(recipe, self.update, hands, self.tokenizer, self.stop_token_ids)
        collector = build_collector(
            recipe, hands.sampler, self.rewards, self.tokenizer, prompts=len(source), corrector=corrector
        )
        self.schedule = build_schedule(Selector(recipe=recipe, source=source, collector=collector, update=self.update))
        self.publisher = Publisher(recipe=recipe, weights=hands.weights, source=source, tokenizer=self.tokenizer)
        self.watch = Watch(samples=self.run_dir / "samples")
        self.faults = Faults(run_dir=self.run_dir, on_fault=recipe.learner.on_fault, hands=hands)
        self.waiting = Waiting(note=self.tracker.note)
        self.saver = Saver(
            run_dir=self.run_dir,
            keep=recipe.checkpoint.keep,
            hands=hands,
            publisher=self.publisher,
            source=source,
            rewards=self.rewards,
            tracker=self.tracker,
            processor=self.processor,
            recipe_values=self.recipe_values,
            fingerprints=self.fingerprints,
        )
        self.best = Best(metric=recipe.checkpoint.best, saver=self.saver, every=recipe.checkpoint.every)
        self.evaluator = Evaluator(
            recipe=recipe,
            held_out=self.held_out,
            hands=hands,
            schedule=self.schedule,
            tracker=self.tracker,
            best=self.best,
        )
