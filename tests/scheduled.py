"""A run whose engines, rewards and learner take random times, to test schedules: no model, no Ray.

Engines are real `EngineLoop`s. What a completion says follows from its request's seed and the versions of the weights
that sampled it, so two runs with equal completions were sampled by equal versions.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlkl.data.curriculum.source import build_source
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.learner.manifest import SavedFile, list_files
from rlkl.recipe import Recipe
from rlkl.rewards import load_rewards
from rlkl.rollout.engine import Request
from rlkl.rollout.engine_loop import EngineLoop
from rlkl.tasks.characters import character_tokenizer
from rlkl.tracking.tracker import Tracker
from rlkl.training.checkpoint import Checkpoints, read_state
from rlkl.training.evaluation import load_held_out
from rlkl.training.loop import Trainer
from rlkl.types import Completion, Example, Learned, Probe, Selection, TeacherView
from rlkl.updates import build_update

TOKENIZER = character_tokenizer()
DIGITS = [TOKENIZER.encode(digit)[0] for digit in "0123456789"]


@dataclass(kw_only=True)
class Delays:
    """Seconds of the parts of a run, drawn between 0 and these."""

    seed: int = 0
    step: float = 0.0
    """Pause of an engine in each step."""
    learn: float = 0.0
    reward: float = 0.0
    longest: int = 6
    """Most tokens of a completion."""

    def pause(self, most_s: float, *of: Any) -> None:
        if most_s:
            time.sleep(random.Random(repr((self.seed, of))).random() * most_s)


NO_DELAYS = Delays()


class VersionedEngine:
    """Samples one token of each request a step."""

    def __init__(self, delays: Delays, number: int) -> None:
        self._delays, self._number = delays, number
        self.version = self.loaded = self.steps = 0
        self._running: dict[int, tuple[random.Random, int, list[int], list[tuple[int, int]]]] = {}
        self.loads_while_sampling = 0

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        for number, request in requests:
            chance = random.Random(request.seed)
            length = min(chance.randint(1, self._delays.longest), request.max_new_tokens or self._delays.longest)
            self._running[number] = (chance, length, [], [(self.version, 0)])

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def step(self) -> list[tuple[int, Completion]]:
        self.steps += 1
        self._delays.pause(self._delays.step, "engine", self._number, self.steps)
        finished = []
        for number, (chance, length, tokens, versions) in list(self._running.items()):
            tokens.append(DIGITS[(chance.randrange(10) + self.loaded) % 10])
            if len(tokens) == length:
                del self._running[number]
                finished.append((number, _completion(tokens, versions)))
        return finished

    def begin_version(self, version: int) -> None:
        self.version = version
        for _, _, tokens, versions in self._running.values():
            if versions[-1][1] == len(tokens):
                versions.pop()
            versions.append((version, len(tokens)))

    def load(self, version: int) -> None:
        self.loads_while_sampling += self.is_busy
        self.loaded = version

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise NotImplementedError

    stream = score = load_weights = readable_weights = generate


def _completion(tokens: Sequence[int], versions: Sequence[tuple[int, int]]) -> Completion:
    return Completion(
        token_ids=tuple(tokens),
        logprobs=(-1.0,) * len(tokens),
        finish_reason="stop",
        weights_version=versions[0][0],
        versions=tuple(versions) if len(versions) > 1 else (),
    )


class Sampler:
    """See `rlkl.training.hands.Sampler`."""

    def __init__(self, loops: Sequence[EngineLoop]) -> None:
        self._loops = loops
        self._left: list[set[int]] = [set() for _ in loops]
        self.threads: set[int] = set()
        self.forgotten = 0

    def submit(self, requests: Sequence[Request]) -> None:
        half = len(requests) // 2
        self._send(0, list(enumerate(requests))[:half])
        self._send(1, list(enumerate(requests))[half:])

    def submit_together(self, requests: Sequence[Request], *, first: int) -> None:
        worker = min((0, 1), key=lambda number: len(self._left[number]))
        self._send(worker, list(enumerate(requests, start=first)))

    def _send(self, worker: int, numbered: list[tuple[int, Request]]) -> None:
        self.threads.add(threading.get_ident())
        self._left[worker] |= {number for number, _ in numbered}
        self._loops[worker].submit(numbered)

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        while any(self._left):
            for left, loop in zip(self._left, self._loops, strict=True):
                if left:
                    part = loop.finished(0.002)
                    left -= {number for number, _ in part}
                    yield part

    def forget(self) -> None:
        assert not any(self._left), "engines forget while they sample"
        self.forgotten += 1

    @property
    def idle_s(self) -> float:
        return sum(loop.idle_s for loop in self._loops) / 2


@dataclass(kw_only=True)
class Hands:
    """All three hands; keeps what was trained on."""

    delays: Delays
    stop_after: int | None = None
    """Raise `Interrupted` in the step with this index, when it is not in the weights yet."""
    trained: dict[int, list[Example]] = field(default_factory=dict)
    steps_made: int = 0
    compared: list[int] = field(default_factory=list)
    """The draws of the completions that were compared with a teacher, in order."""

    def __post_init__(self) -> None:
        self.engines = [VersionedEngine(self.delays, number) for number in range(2)]
        self.loops = [_started(engine) for engine in self.engines]
        self.sampler = Sampler(self.loops)

    @property
    def learner(self) -> Hands:
        return self

    weights = learner
    wants_probes = False

    def learn(self, selection: Selection, *, step: int, probes: Sequence[Probe], samples: bool) -> Learned:
        if step == self.stop_after:
            raise RuntimeError("the learner was killed")
        self.delays.pause(self.delays.learn, "learn", step)
        self.trained[step] = list(selection.examples)
        self.steps_made = step + 1
        return Learned(metrics={"loss/total": 0.5, "optim/skipped": 0.0, "optim/grad_norm": 0.5})

    def publish(self, version: int, probes: Sequence[Probe]) -> float:
        for loop, engine in zip(self.loops, self.engines, strict=True):
            loop.update(version, lambda _, engine=engine: engine.load(version))
        return 1e-6

    def check_export(self, folder: Path, probes: Sequence[Probe]) -> None: ...

    def finished_steps(self) -> int:
        return self.steps_made

    def keeps_reference(self) -> bool:
        return True

    def reference_gaps(self, examples: Sequence[Example]) -> list[float]:
        """As if every token had moved by a tenth a step."""
        return [0.1 * self.steps_made * len(example.rollout.completion.token_ids) for example in examples]

    def teacher_views(self, examples: Sequence[Example]) -> list[TeacherView]:
        """A teacher whose token is always 7, with a KL that follows from the sampled token and the step."""
        self.compared += [example.rollout.draw for example in examples]
        seven = DIGITS[7]
        return [
            TeacherView(
                nats=tuple(0.1 * ((token + self.steps_made) % 5) for token in ids),
                token_ids=(seven,) * len(ids),
                logprobs=(-2.0,) * len(ids),
            )
            for ids in (example.rollout.completion.token_ids for example in examples)
        ]

    def save(self, folder: Path) -> dict[str, SavedFile]:
        (folder / "policy" / "weights").write_text(str(self.steps_made))
        return list_files(folder)

    def restore(self, folder: Path) -> None:
        self.steps_made = int((folder / "policy" / "weights").read_text())


def odd_digits(completion: str) -> float:
    """Count odd digits: the default reward, which depends on the versions that sampled a completion."""
    return sum(int(digit) % 2 for digit in completion if digit.isdigit())


def _started(engine: Any) -> EngineLoop:
    return EngineLoop(lambda: engine)


def build(
    run_dir: Path,
    delays: Delays,
    *,
    resume: Path | None = None,
    reward_of: Callable[[str], float] = odd_digits,
    **sections: Any,
) -> Trainer:
    """Make a run; with ``resume``, one that goes on from the newest checkpoint there."""
    values: dict[str, Any] = {
        "steps": 6,
        "model": {"path": "unused"},
        "data": {"source": "task:arithmetic"},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2},
        "tracking": {"wandb": "off", "hacking_watch": False},
        "checkpoint": {"every": 2},
        "weights": {"probe_prompts": 1},
    }
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    recipe = Recipe.model_validate(values)
    checkpoint = None if resume is None else Checkpoints(resume, keep=2).latest()
    state = None if checkpoint is None else read_state(checkpoint)

    def reward(completion: str) -> float:
        delays.pause(delays.reward, "reward", completion)
        return reward_of(completion)

    rewards, encoder = load_rewards([], [reward]), Encoder(tokenizer=TOKENIZER)
    held_out = None if recipe.eval is None else load_held_out(recipe, recipe.eval, rewards.for_evaluation(), encoder)
    run = Trainer(
        recipe=recipe,
        run_dir=run_dir,
        hands=Hands(delays=delays),
        source=build_source(recipe, load_prompts(recipe.data, encoder, seed=recipe.seed)),
        held_out=held_out,
        rewards=rewards,
        update=build_update(recipe.update),
        tracker=Tracker(run_dir, recipe, run_id=None, first_step=state.step if state else 0),
        tokenizer=TOKENIZER,
        processor=TOKENIZER,
    )
    if checkpoint is not None and state is not None:
        run.resume(checkpoint, state)
    return run


def killed_and_resumed(
    folder: Path, *, after: int, delays: Delays = NO_DELAYS, **sections: Any
) -> tuple[Trainer, Trainer]:
    """Kill a run in the step with this index, and resume it to its end without delays; return both parts."""
    first = build(folder, delays, **sections)
    hands_of(first).stop_after = after
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    second = build(folder, Delays(), resume=folder, **sections)
    second.run()
    return first, second


def hands_of(run: Trainer) -> Hands:
    assert isinstance(run.hands, Hands)
    return run.hands


def draws_by_step(run: Trainer) -> dict[int, list[int]]:
    """The draws that each step trained on, in order."""
    found = {}
    for step, examples in hands_of(run).trained.items():
        found[step] = list(dict.fromkeys(example.rollout.draw for example in examples))
    return found


def versions_by_step(run: Trainer) -> dict[int, set[int]]:
    """The versions that sampled the tokens of each step."""
    found: dict[int, set[int]] = {}
    for step, examples in hands_of(run).trained.items():
        completions = [example.rollout.completion for example in examples]
        spans = [c.versions or ((c.weights_version, 0),) for c in completions]
        found[step] = {version for versions in spans for version, _ in versions if version is not None}
    return found
