"""An error at any point of a step loses no finished step. Real learner, rule, engine and files; no Ray.

A fault is injected into the third of four steps. The run must end with that very error, with a checkpoint of the last
step that is in the learner's weights, and with a note on how to go on; a resume must then end where an undisturbed run
ends, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlkl.actors.shells import LearnerWorker, RolloutWorker
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.errors import ActorDiedError, DeadlineError, LearnerError, RewardError, WeightSyncError
from rlkl.learner.learner import LearnerSpec
from rlkl.learner.manifest import SavedFile
from rlkl.recipe import Recipe
from rlkl.rewards import load_rewards
from rlkl.rollout.engine import EngineSettings
from rlkl.tasks.characters import EOS_ID, character_tokenizer
from rlkl.tracking import tracker as tracker_module
from rlkl.tracking.metrics.registry import without_timings
from rlkl.tracking.records.reading import read_metrics
from rlkl.tracking.tracker import Tracker
from rlkl.training.checkpoint import Checkpoints, read_state
from rlkl.training.loop import Trainer
from rlkl.training.schedules import Alternate
from rlkl.types import Example, Learned, Probe, Selection, TeacherView
from rlkl.updates import build_update
from rlkl.weights import Probes
from tests.models import tiny_qwen3
from tests.samplers import LocalSampler

STEPS = 4
FAILS_AT = 2
"""Index of the step in which the fault is."""


class LocalHands:
    """A learner and one rollout worker in this process."""

    def __init__(self, recipe: Recipe) -> None:
        self.shell, self.worker = LearnerWorker(), RolloutWorker()
        self.shell.start(LearnerSpec(recipe=recipe, model_path=recipe.model.path))
        settings = EngineSettings(
            model_path=recipe.model.path,
            dtype=recipe.model.dtype,
            max_prompt_tokens=recipe.data.max_prompt_tokens,
            max_new_tokens=recipe.rollout.max_new_tokens,
            temperature=recipe.rollout.temperature,
            stop_token_ids=(EOS_ID,),
            memory_fraction=0.5,
            kv_cache_gib=recipe.rollout.vllm.kv_cache_gib,
        )
        self.worker.start("hf", settings)

        self.sampler = LocalSampler(self.worker)

    @property
    def learner(self) -> LocalHands:
        return self

    weights = learner
    wants_probes = False

    def learn(self, selection: Selection, *, step: int, probes: Sequence[Probe], samples: bool) -> Learned:
        return self.shell.learn(selection.examples, selection.left_out, probes, (step, samples))

    def publish(self, version: int, probes: Sequence[Probe]) -> float:
        self.worker.receive(self.shell.pack(version), Probes(current=probes))
        return 0.0

    def check_export(self, folder: Path, probes: Sequence[Probe]) -> None:
        assert self.shell.compare_export(str(folder), probes).problem is None

    def finished_steps(self) -> int:
        return self.shell.finished_steps()

    def keeps_reference(self) -> bool:
        return self.shell.keeps_reference()

    def reference_gaps(self, examples: Sequence[Example]) -> list[float]:
        return self.shell.reference_gaps(examples)

    def teacher_views(self, examples: Sequence[Example]) -> list[TeacherView]:
        return self.shell.teacher_views(examples)

    def save(self, folder: Path) -> dict[str, SavedFile]:
        return self.shell.save(str(folder))

    def restore(self, folder: Path) -> None:
        self.shell.restore(str(folder))

    def close(self) -> None: ...


def digits(completion: str) -> float:
    return sum(character.isdigit() for character in completion) / 4


def recipe_for(model_path: Path, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "steps": STEPS,
        "model": {"path": str(model_path)},
        "data": {"source": "task:arithmetic"},
        "rollout": {"engine": "hf", "prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 4},
        "learner": {"lr": 1e-2, "minibatches": 2, "device": "cpu", "threads": 1},
        "tracking": {"wandb": "off", "samples_every": 1},
        "checkpoint": {"every": 50},
        "weights": {"probe_prompts": 1},
    }
    return Recipe.model_validate(values | sections)


def build(run_dir: Path, recipe: Recipe, *, reward: Callable[..., Any] = digits, first_step: int = 0) -> Trainer:
    tokenizer = character_tokenizer()
    return Trainer(
        recipe=recipe,
        run_dir=run_dir,
        hands=LocalHands(recipe),
        source=load_prompts(recipe.data, Encoder(tokenizer=tokenizer), seed=recipe.seed),
        rewards=load_rewards(recipe.rewards, [reward]),
        update=build_update(recipe.update),
        tracker=Tracker(run_dir, recipe, run_id=None, first_step=first_step),
        tokenizer=tokenizer,
        processor=tokenizer,
    )


def resumed(run_dir: Path, recipe: Recipe) -> Trainer:
    checkpoint = Checkpoints(run_dir, keep=2).latest()
    state = read_state(checkpoint)
    run = build(run_dir, recipe, first_step=state.step)
    run.resume(checkpoint, state)
    return run


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "policy" / "model.safetensors")


def records(run_dir: Path) -> dict[int, Mapping[str, float]]:
    found = [without_timings(record) for record in read_metrics(run_dir / "metrics.jsonl")]
    steps = [int(record["step"]) for record in found]
    assert steps == sorted(set(steps)), "each step at most once, in order"
    return dict(zip(steps, found, strict=True))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0)


@pytest.fixture(scope="module")
def undisturbed(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    build(run_dir, recipe_for(model_path)).run()
    return run_dir


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Makes one call of ``method`` of the object that ``at`` finds raise ``error``, before it does anything."""

    at: Callable[[Trainer], Any]
    method: str
    error: BaseException
    saved: int
    """Finished steps in the checkpoint that must be there afterwards."""
    call: int = FAILS_AT + 1
    """Which call fails, from 1."""
    recorded: int | None = None
    """The last step in ``metrics.jsonl`` when the run has ended; ``saved`` where left out."""
    unpublished: bool = False
    """The last record has no metrics of the publish."""

    def inject(self, run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        target, calls = self.at(run), []
        original = getattr(target, self.method)

        def faulty(*arguments: Any, **named: Any) -> Any:
            calls.append(self.method)
            return (
                self.fail(original, *arguments, **named) if len(calls) == self.call else original(*arguments, **named)
            )

        owner = target if isinstance(target, type(os)) or not hasattr(type(target), "__slots__") else type(target)
        monkeypatch.setattr(owner, self.method, faulty if owner is target else lambda _, *a, **n: faulty(*a, **n))

    def fail(self, original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        raise self.error


class LostAnswer(Fault):
    """The call does all its work; only its answer does not arrive."""

    def fail(self, original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        original(*arguments, **named)
        raise self.error


class BrokenStream(Fault):
    """The call yields half of what it would yield, in parts of one, and then raises."""

    def fail(self, original: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        values = [value for part in original(*arguments, **named) for value in part]
        assert len(values) > 1
        yield from ([value] for value in values[: len(values) // 2])
        raise self.error


def alternate_of(run: Trainer) -> Alternate:
    assert isinstance(run.schedule, Alternate)
    return run.schedule


def learner_of(run: Trainer) -> Any:
    assert isinstance(run.hands, LocalHands)
    return run.hands.shell._learner


FAULTS = {
    "selection": Fault(at=lambda run: run.update, method="select", error=TypeError("odd"), saved=2),
    "a rule that exits": Fault(at=lambda run: run.update, method="select", error=SystemExit(3), saved=2),
    "metrics of the rollouts": Fault(
        at=lambda run: alternate_of(run).selector.collector, method="metrics", error=KeyError("x"), saved=2
    ),
    "sampling": Fault(at=lambda run: run.hands.sampler, method="submit", error=ValueError("odd"), saved=2),
    "the middle of the stream of completions": BrokenStream(
        at=lambda run: run.hands.sampler, method="finished", error=ActorDiedError("the rollout worker ended"), saved=2
    ),
    "the answer of a step that the learner has done": LostAnswer(
        at=lambda run: run.hands, method="learn", error=DeadlineError("no answer"), saved=3, recorded=2
    ),
    "preparing": Fault(at=lambda run: learner_of(run), method="prepare", error=RuntimeError("out of memory"), saved=2),
    "credit": Fault(at=lambda run: learner_of(run)._update, method="credit", error=ValueError("odd"), saved=2),
    "token columns": Fault(
        at=lambda run: learner_of(run), method="token_columns", error=TypeError("odd"), saved=3, recorded=2
    ),
    "pictures": Fault(
        at=lambda run: learner_of(run), method="changed_pictures", error=OSError("odd"), saved=3, recorded=2
    ),
    "the first optimizer step's loss": Fault(
        at=lambda run: learner_of(run)._update, method="loss", error=ValueError("odd"), call=5, saved=2
    ),
    "the second optimizer step's loss": Fault(
        at=lambda run: learner_of(run)._update, method="loss", error=ValueError("odd"), call=6, saved=2
    ),
    "inside the second optimizer step": Fault(
        at=lambda run: learner_of(run)._optimization.optimizer, method="step", error=MemoryError(), call=6, saved=2
    ),
    "the rule's notes": Fault(at=lambda run: learner_of(run)._update, method="observe", error=KeyError("x"), saved=2),
    "publishing": Fault(
        at=lambda run: run.hands, method="publish", error=WeightSyncError("stale"), call=4, saved=3, unpublished=True
    ),
    "waiting for the engines": Fault(
        at=lambda run: run.schedule, method="before_publish", error=KeyError("x"), saved=3, unpublished=True
    ),
    "alarms": Fault(at=lambda run: run.update, method="alarms", error=ZeroDivisionError(), saved=3, recorded=2),
    "the record": Fault(
        at=lambda run: run.tracker._metrics, method="append", error=OSError("no space left"), saved=3, recorded=2
    ),
    "the hacking watch": Fault(
        at=lambda run: run.tracker._watch, method="look", error=TypeError("odd"), saved=3, recorded=2
    ),
    "the console": Fault(at=lambda run: run.tracker._console, method="step", error=BrokenPipeError(), saved=3),
    # A thread writes the samples: the error comes out when those of the fourth step are handed over.
    "a sample file": Fault(at=lambda _: tracker_module, method="write_samples", error=OSError("no space"), saved=4),
    "the export": Fault(at=lambda run: run.saver, method="export", error=OSError("no space left"), call=1, saved=4),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_failing_step_loses_nothing_and_a_resume_ends_where_an_undisturbed_run_ends(
    fault: Fault, model_path: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = recipe_for(model_path)
    run = build(tmp_path, recipe)
    with monkeypatch.context() as injected:
        fault.inject(run, injected)
        with pytest.raises(type(fault.error)) as caught:
            run.run()
    run.tracker.fail(caught.value)

    assert caught.value is fault.error
    assert read_state(Checkpoints(tmp_path, keep=2).latest()).step == fault.saved
    (note,) = caught.value.__notes__
    assert f"All {fault.saved} finished steps are saved." in note
    assert f"rlkl train --resume {tmp_path}" in note
    kept = fault.saved if fault.recorded is None else fault.recorded
    assert list(records(tmp_path)) == list(range(1, kept + 1))

    resumed(tmp_path, recipe).run()
    whole, joined = records(undisturbed), records(tmp_path)
    unrecorded = set(range(kept + 1, fault.saved + 1))
    assert set(joined) == set(whole) - unrecorded
    unpublished = {fault.saved} if fault.unpublished else set()
    assert all(joined[step] == whole[step] for step in joined if step not in unpublished)
    for step in unpublished:
        missing = {key for key in whole[step] if joined[step].get(key) != whole[step][key]}
        assert missing == {"weights/verified", "weights/probe_max", "weights/version"}
        assert (tmp_path / "samples" / f"step_{step:06d}.parquet").is_file()
    assert weights(tmp_path).keys() == weights(undisturbed).keys()
    assert all(torch.equal(tensor, weights(undisturbed)[name]) for name, tensor in weights(tmp_path).items())


def test_a_record_that_fails_after_a_failed_publish_hides_no_error_and_loses_no_step(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run = build(tmp_path, recipe_for(model_path))
    for name in ("publishing", "alarms"):
        FAULTS[name].inject(run, monkeypatch)

    with pytest.raises(WeightSyncError, match="stale"):
        run.run()
    assert read_state(Checkpoints(tmp_path, keep=2).latest()).step == 3
    assert list(records(tmp_path)) == [1, 2]
    assert "step 3 is saved, but its record is not complete" in caplog.text


def test_a_single_optimizer_step_that_breaks_off_is_not_saved(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without a copy of the weights nobody knows how far it got; the checkpoint before stays the last one."""
    recipe = recipe_for(model_path, learner={"lr": 1e-2, "device": "cpu", "threads": 1}, checkpoint={"every": 1})
    run = build(tmp_path, recipe)
    Fault(at=lambda run: learner_of(run)._optimization.optimizer, method="step", error=MemoryError(), saved=2).inject(
        run, monkeypatch
    )
    monkeypatch.setattr(Checkpoints, "has", lambda *_: False)  # as with a checkpoint.every that has not come round

    with pytest.raises(MemoryError) as caught:
        run.run()
    (note,) = caught.value.__notes__
    assert "could not be saved (the learner's optimizer step ended with an error half-way" in note
    assert read_state(Checkpoints(tmp_path, keep=2).latest()).step == 2


def test_a_save_that_fails_once_is_made_up_for(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = build(tmp_path, recipe_for(model_path, checkpoint={"every": 3}))
    Fault(at=lambda run: run.hands, method="save", error=OSError("no space left"), call=1, saved=3).inject(
        run, monkeypatch
    )

    with pytest.raises(OSError, match="no space left"):
        run.run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000003"]


def test_a_disk_that_is_full_leaves_no_half_checkpoint_and_the_note_says_so(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = recipe_for(model_path, checkpoint={"every": 3})
    run = build(tmp_path, recipe)

    def full(folder: Path) -> None:
        (folder / "policy" / "half").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(run.hands, "save", full)
    with pytest.raises(OSError, match="no space left") as caught:
        run.run()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    (note,) = caught.value.__notes__
    assert note.startswith("The steps since the last checkpoint could not be saved (the checkpoint ")
    assert (
        f"{tmp_path / 'checkpoints' / 'step_000003'} cannot be written (no space left). Free room on that disk" in note
    )


def test_a_learner_that_dies_after_the_last_checkpoint_has_lost_nothing(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = build(tmp_path, recipe_for(model_path, steps=1))
    died = ActorDiedError("the learner ended")
    for method in ("check_export", "finished_steps"):
        Fault(at=lambda run: run.hands, method=method, error=died, call=1, saved=1).inject(run, monkeypatch)
    with pytest.raises(ActorDiedError) as caught:
        run.run()
    (note,) = caught.value.__notes__
    assert note.startswith("All 1 recorded steps are saved; the learner does not answer")
    assert f"rlkl train --resume {tmp_path}" in note


@pytest.mark.parametrize("value", [1e39, -1e39])
def test_a_reward_beyond_float32_is_the_samples_error(value: float, model_path: Path, tmp_path: Path):
    seen: list[str] = []

    def grows(completion: str) -> float:
        seen.append(completion)
        return value if len(seen) == 2 * 16 + 5 else digits(completion)

    run = build(tmp_path, recipe_for(model_path), reward=grows)
    with pytest.raises(RewardError, match=r"reward 'grows' returned -?1e\+39 .*too large for float32"):
        run.run()
    assert read_state(Checkpoints(tmp_path, keep=2).latest()).step == 2


def test_a_gradient_that_is_not_finite_in_the_second_optimizer_step_leaves_the_weights_of_the_step_before(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = build(tmp_path, recipe_for(model_path))
    update, calls = learner_of(run)._update, []
    original = update.loss

    def explodes(*arguments: Any) -> Any:
        calls.append("loss")
        output = original(*arguments)
        return type(output)(loss=output.loss * (float("inf") if len(calls) == 6 else 1), terms={}, metrics={})

    monkeypatch.setattr(update, "loss", explodes)
    with pytest.raises(LearnerError, match="gradient is not finite"):
        run.run()
    assert read_state(Checkpoints(tmp_path, keep=2).latest()).step == 2
    before = learner_of(resumed(tmp_path, recipe_for(model_path)))
    now = dict(learner_of(run).policy.published())
    assert all(torch.equal(now[name], tensor) for name, tensor in before.policy.published())


def fails_late(path: Path, *, after: int) -> dict[str, Any]:
    """Write a reward that fails once it has scored ``after`` samples; return its section."""
    path.write_text(
        f"seen = []\ndef fails(completion):\n    seen.append(completion)\n    return 1 / (len(seen) <= {after})\n"
    )
    return {"function": f"{path}:fails", "mode": "inline"}


def test_after_a_failing_reward_the_note_names_the_ways_that_work(model_path: Path, tmp_path: Path):
    recipe = recipe_for(model_path, rewards=[fails_late(tmp_path / "my.py", after=2 * 16)])
    run = build(tmp_path / "run", recipe)
    with pytest.raises(RewardError) as caught:
        run.run()
    (note,) = caught.value.__notes__
    assert f"go on with: rlkl train --resume {tmp_path / 'run'}\n" in note
    assert "Add 'rewards[0].on_error=drop_sample' to go on although the reward fails" in note
    assert "--allow-changed-rewards" in note


def test_a_run_that_fails_in_its_first_step_has_nothing_to_resume(model_path: Path, tmp_path: Path):
    run = build(tmp_path / "run", recipe_for(model_path, rewards=[fails_late(tmp_path / "my.py", after=0)]))
    with pytest.raises(RewardError) as caught:
        run.run()
    (note,) = caught.value.__notes__
    assert "--resume" not in note
    assert f"start the run anew: rlkl train {tmp_path / 'run' / 'recipe.yaml'} run.dir=NEW_FOLDER" in note
