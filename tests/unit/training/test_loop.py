"""The loop with scripted hands: what is drawn, selected, recorded and saved."""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlkl.data.prompts import Encoder, PromptSource, load_prompts
from rlkl.errors import ExportError, RewardError
from rlkl.learner.manifest import SavedFile, list_files
from rlkl.recipe import Recipe, RewardSection
from rlkl.rewards import load_rewards
from rlkl.rollout.engine import Request
from rlkl.system.interrupt import Terminated
from rlkl.tasks.characters import character_tokenizer
from rlkl.tracking.records.reading import read_metrics
from rlkl.tracking.tracker import Tracker
from rlkl.training.checkpoint import Checkpoints, read_state
from rlkl.training.loop import Trainer
from rlkl.training.watch import STEPS_WITHOUT_GRADIENT
from rlkl.types import Completion, Example, Learned, Probe, Selection, TeacherView
from rlkl.updates import RULES, build_update


class ScriptedHands:
    """Answers every prompt with "7", every second sample of each second prompt with "8"; keeps what it was asked."""

    def __init__(self, tokenizer, *, uniform: bool = False) -> None:
        self._answers = [(*tokenizer.encode(text), tokenizer.eos_token_id) for text in ("7", "8")]
        self._uniform = uniform
        self.requests: list[list[Request]] = []
        self.trained: list[list[Example]] = []
        self.left_out: list[list[Example]] = []
        self.published: list[tuple[int, int]] = []
        self.exported: list[str] = []
        self.export_problem: str | None = None
        self.stop_at_step: int | None = None
        self.stop_at_version: int | None = None
        self.gradient = 0.5
        self.steps_made = 0

    @property
    def sampler(self) -> "ScriptedHands":
        return self

    learner = weights = sampler
    wants_probes = False
    idle_s = 0.0

    def submit(self, requests: Sequence[Request]) -> None:
        self._submitted = requests

    def submit_together(self, requests: Sequence[Request], *, first: int) -> None:
        raise NotImplementedError

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        """In two parts, the last completions first."""
        completions = list(enumerate(self._answer(self._submitted)))
        yield completions[5:]
        yield completions[:5]

    def _answer(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests.append(list(requests))
        picked = [0 if self._uniform or (n // 4) % 2 == 0 else n % 2 for n in range(len(requests))]
        return [
            Completion(
                token_ids=self._answers[pick],
                logprobs=(-1.0, -1.0),
                finish_reason="stop",
                weights_version=self.published[-1][0] if self.published else 0,
            )
            for pick in picked
        ]

    def learn(self, selection: Selection, *, step: int, probes: Sequence[Probe], samples: bool) -> Learned:
        """Return as token column the reward of each example's rollout at each token."""
        self.trained.append(list(selection.examples))
        self.left_out.append(list(selection.left_out))
        if step == self.stop_at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        skipped = float(not self.trained[-1])
        self.steps_made = step + 1
        rewards = [(e.rollout.reward,) * len(e.rollout.completion.token_ids) for e in self.trained[-1]]
        return Learned(
            metrics={"loss/total": 0.5, "optim/skipped": skipped, "optim/grad_norm": self.gradient * (1 - skipped)},
            token_columns={"reward_mask": rewards} if samples else {},
        )

    def publish(self, version: int, probes: Sequence[Probe]) -> float:
        self.published.append((version, len(probes)))
        if version == self.stop_at_version:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1e-6

    def check_export(self, folder: Path, probes: Sequence[Probe]) -> None:
        assert probes
        self.exported.append((folder / "weights").read_text())
        if self.export_problem is not None:
            raise ExportError(self.export_problem)

    def finished_steps(self) -> int:
        return self.steps_made

    def save(self, folder: Path) -> dict[str, SavedFile]:
        (folder / "policy" / "weights").write_text(str(self.steps_made))
        return list_files(folder)

    def restore(self, folder: Path) -> None:
        self.steps_made = int((folder / "policy" / "weights").read_text())

    def close(self) -> None: ...

    def forget(self) -> None: ...

    def keeps_reference(self) -> bool:
        return False

    def reference_gaps(self, examples: Sequence[Example]) -> list[float]:
        raise NotImplementedError

    def teacher_views(self, examples: Sequence[Example]) -> list[TeacherView]:
        raise NotImplementedError


def is_seven(completion: str) -> float:
    return float(completion == "7")


def is_empty(completion: str) -> float:
    return float(completion == "")


def trainer(
    run_dir: Path, *, uniform: bool = False, first_step: int = 0, rewards: Sequence | None = (), **sections: dict | int
) -> Trainer:
    values: dict = {
        "steps": 3,
        "model": {"path": "unused"},
        "data": {"source": "task:arithmetic"},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4},
        "tracking": {"wandb": "off"},
        "checkpoint": {"every": 2},
        "weights": {"probe_prompts": 3},
    }
    recipe = Recipe.model_validate(values | sections)
    tokenizer = character_tokenizer()
    source: PromptSource = load_prompts(recipe.data, Encoder(tokenizer=tokenizer), seed=0)
    return Trainer(
        recipe=recipe,
        run_dir=run_dir,
        hands=ScriptedHands(tokenizer, uniform=uniform),
        source=source,
        rewards=load_rewards([], rewards or [is_seven]) if rewards is not None else load_rewards([], optional=True),
        update=build_update(recipe.update),
        tracker=Tracker(run_dir, recipe, run_id=None, first_step=first_step),
        tokenizer=tokenizer,
        processor=tokenizer,
        recipe_values={"seed": 0},
        fingerprints={"model": "f00d"},
    )


def hands_of(trained: Trainer) -> ScriptedHands:
    assert isinstance(trained.hands, ScriptedHands)
    return trained.hands


def test_a_run_publishes_records_and_saves_every_step_it_should(tmp_path: Path):
    run = trainer(tmp_path)

    result = run.run()

    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert (result.status, result.exit_code) == ("done", 0)
    assert hands_of(run).published == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [line["reward/mean"] for line in lines] == [0.75] * 3  # two of four groups half right
    assert [line["data/epoch"] * len(run.source) for line in lines] == pytest.approx([4, 8, 12])
    assert Checkpoints(tmp_path, keep=2).has(2)
    state = read_state(Checkpoints(tmp_path, keep=2).latest())
    assert (state.position, state.recipe, state.fingerprints) == (12, {"seed": 0}, {"model": "f00d"})
    assert (tmp_path / "policy" / "weights").read_text() == "3"


def test_rollouts_reach_the_learner_as_they_were_sampled(tmp_path: Path):
    run = trainer(tmp_path)
    run.run()

    asked, trained = hands_of(run).requests[1], hands_of(run).trained[1]
    assert [example.prompt.token_ids for example in trained] == [request.prompt_token_ids for request in asked]
    assert [example.group for example in trained] == [n // 4 for n in range(16)]
    assert {example.rollout.weights_version for example in trained} == {1}
    assert trained[5].rollout.completion.text == "8"
    assert trained[5].rollout.reward == 0.0


def test_rewards_see_the_text_before_a_stop_text_and_the_learner_all_tokens(tmp_path: Path):
    sections = {"prompts_per_step": 4, "samples_per_prompt": 4, "stop": ["8"]}
    run = trainer(tmp_path, rollout=sections, steps=1, rewards=[is_empty])
    run.run()

    example = hands_of(run).trained[0][5]
    assert (example.rollout.completion.text, example.rollout.reward) == ("", 1.0)
    assert example.rollout.completion.token_ids == (*run.tokenizer.encode("8"), run.tokenizer.eos_token_id)


def test_dropped_groups_are_refilled_up_to_a_full_step(tmp_path: Path):
    sections = {"prompts_per_step": 4, "samples_per_prompt": 4, "max_rounds": 5}
    run = trainer(tmp_path, update={"variant": "dapo"}, rollout=sections, steps=1)
    run.run()

    trained = hands_of(run).trained[0]
    assert len(hands_of(run).requests) == 2  # each round keeps two groups of four
    assert len({example.group for example in trained}) == 4
    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert line["rollout/rounds"] == 2
    assert line["update/selected_fraction"] == 0.5
    assert run.schedule.pending().position == 8


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("sparsepo", "listwise")])
@pytest.mark.parametrize(
    ("keep", "value", "kept", "right"), [("top_k", 2, 8, 8), ("top_fraction", 0.75, 12, 10), ("threshold", 1, 12, 12)]
)
def test_a_filter_may_stand_in_front_of_any_rule(
    tmp_path: Path, rule: str, keep: str, value: float, kept: int, right: int
):
    """Of four groups of four, two are right and two half right."""
    models = {"teacher": {"path": "unused"}} if rule == "distill" else {}
    run = trainer(tmp_path, update={"rule": rule, "filter": {"keep": keep, "value": value}}, models=models, steps=1)
    run.run()

    trained, left_out = hands_of(run).trained[0], hands_of(run).left_out[0]
    assert (len(trained), len(left_out)) == (kept, 16 - kept)
    assert {example.group for example in trained} == {0, 1, 2, 3}
    assert sum(example.rollout.reward for example in trained) == right


def test_a_rule_that_needs_no_reward_trains_on_all_samples(tmp_path: Path):
    models = {"teacher": {"path": "unused"}}
    run = trainer(tmp_path, update={"rule": "distill"}, models=models, rewards=None, steps=1)
    run.run()

    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert len(hands_of(run).trained[0]) == 16
    assert line["reward/dropped"] == 0.0
    assert not line.keys() & {"reward/mean", "reward/std", "rollout/equal_fraction"}


def test_without_any_spread_the_step_trains_on_nothing_and_says_so(tmp_path: Path):
    run = trainer(tmp_path, uniform=True, update={"variant": "dapo"}, steps=1)
    run.run()

    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert hands_of(run).trained == [[]]
    assert (line["optim/skipped"], line["update/selected_fraction"]) == (1.0, 0.0)


def test_best_and_worst_train_and_the_rest_has_no_token_columns(tmp_path: Path):
    run = trainer(tmp_path, update={"rule": "sparsepo"}, steps=1)
    run.run()

    assert [(e.list, e.rank, e.rollout.reward) for e in hands_of(run).trained[0]] == [
        (0, 0, 1.0),
        (0, 1, 0.0),
        (1, 0, 1.0),
        (1, 1, 0.0),
    ]
    taken, left_out = (
        {(e.group, e.rollout.sample_index) for e in found[0]}
        for found in (hands_of(run).trained, hands_of(run).left_out)
    )
    assert not taken & left_out
    assert len(taken | left_out) == 16
    masks = pq.read_table(tmp_path / "samples" / "step_000001.parquet")["reward_mask"].to_pylist()
    assert sorted(mask for mask in masks if mask is not None) == [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    assert masks.count(None) == 12


def pairs_file(folder: Path, count: int = 6) -> str:
    path = folder / "pairs.jsonl"
    rows = [{"prompt": f"{n}+0=", "chosen": str(n), "rejected": "no"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def paired(tmp_path: Path, name: str, *, steps: int = 3, first_step: int = 0) -> Trainer:
    data = {"source": pairs_file(tmp_path), "chosen_column": "chosen", "rejected_column": "rejected"}
    rollout = {"workers": 0, "prompts_per_step": 4}
    sections = {"data": data, "rollout": rollout, "update": {"rule": "sparsepo"}}
    return trainer(tmp_path / name, first_step=first_step, steps=steps, **sections)


def test_stored_pairs_train_without_anything_sampled_or_published(tmp_path: Path):
    run = paired(tmp_path, "run", steps=2)
    run.run()

    backend = hands_of(run)
    assert backend.requests == []
    assert backend.published == [(1, 0), (2, 0)]  # without a probe: there is nobody to answer it
    assert [(e.group, e.list, e.rank) for e in backend.trained[0]] == [
        (pair, pair, rank) for pair in range(4) for rank in (0, 1)
    ]
    one, other = backend.trained[0][:2]
    assert one.prompt.text == f"{one.rollout.completion.text}+0="
    assert other.rollout.completion.text == "no"
    assert one.rollout.completion.token_ids[-1] == run.tokenizer.eos_token_id
    assert one.rollout.completion.logprobs is None

    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[1]
    assert line["data/epoch"] == pytest.approx(8 / 6)
    assert line["update/selected_fraction"] == 1
    assert not [key for key in line if key.startswith(("weights/", "reward/", "rollout/tokens", "rollout/mismatch"))]
    assert "logprobs" in pq.read_table(tmp_path / "run" / "samples" / "step_000001.parquet").column_names


def test_a_resumed_run_on_pairs_draws_what_the_whole_one_draws(tmp_path: Path):
    whole = paired(tmp_path, "whole")
    whole.run()
    first = paired(tmp_path, "cut", steps=2)
    first.run()
    second = paired(tmp_path, "rest", first_step=2)
    checkpoint = Checkpoints(tmp_path / "cut", keep=2).latest()
    second.resume(checkpoint, read_state(checkpoint))
    second.run()

    assert hands_of(second).trained == hands_of(whole).trained[2:]


def test_a_stop_finishes_the_step_and_saves_it(tmp_path: Path):
    run = trainer(tmp_path, steps=9, checkpoint={"every": 9})
    hands_of(run).stop_at_step = 1

    result = run.run()

    assert (result.status, result.exit_code) == ("interrupted", 128 + signal.SIGTERM)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert read_state(Checkpoints(tmp_path, keep=2).latest()).step == 2
    assert not (tmp_path / "policy").exists()


def test_a_stop_before_the_first_step_ends_at_once(tmp_path: Path):
    run = trainer(tmp_path, steps=9)
    hands_of(run).stop_at_version = 0

    with pytest.raises(Terminated):
        run.run()
    assert (hands_of(run).requests, hands_of(run).trained) == ([], [])
    assert run.stop.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_failing_reward_keeps_every_finished_step(tmp_path: Path):
    seen = []

    def breaks_in_the_third_step(completion: str) -> float:
        seen.append(completion)
        return 1 / 0 if len(seen) > 2 * 16 else float(len(seen) % 2)

    run = trainer(tmp_path, rewards=[breaks_in_the_third_step], steps=9, checkpoint={"every": 9})

    with pytest.raises(RewardError, match=r"breaks_in_the_third_step.*ZeroDivisionError"):
        run.run()
    saved = read_state(Checkpoints(tmp_path, keep=2).latest())
    assert (saved.step, saved.position) == (2, 8)  # the third step's prompts will be drawn again


def test_the_first_step_names_what_it_waits_for_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer(tmp_path, steps=3).run()
    lines = capsys.readouterr().out.splitlines()
    notes = (
        "publishing the policy to the rollout workers",
        "sampling the first completions; an engine may compile before that",
        "waiting for the scores of the first completions",
        "training: the first step of the learner",
        "publishing the first trained weights",
    )
    assert [line for line in lines if line in notes] == list(notes), "each once, in order"
    assert lines.index(notes[-1]) < next(number for number, line in enumerate(lines) if line.startswith("step 1/3"))


def test_stored_pairs_publish_nothing_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paired(tmp_path, "run", steps=2).run()
    assert "publishing the policy" not in capsys.readouterr().out


def no_gradient_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "had no gradient" in record.message]


def test_a_run_without_gradient_goes_on_and_warns_at_each_doubling(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A sparse reward may succeed for the first time in step 45."""
    run = trainer(tmp_path, steps=45)
    hands_of(run).gradient = 0.0

    assert run.run().status == "done"
    warnings = no_gradient_warnings(caplog)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 45
    assert [int(warning.split()[2]) for warning in warnings] == [n * STEPS_WITHOUT_GRADIENT for n in (1, 2, 4)]
    assert "(reward/std is 0.25)" in warnings[0]
    assert str(tmp_path / "samples") in warnings[0]


def test_pairs_that_teach_nothing_are_warned_of_too(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = paired(tmp_path, "run", steps=12)
    hands_of(run).gradient = 0.0

    assert run.run().status == "done"
    (warning,) = no_gradient_warnings(caplog)
    assert "reward/std" not in warning


def test_a_run_that_has_learned_all_it_can_goes_on_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = trainer(tmp_path, steps=14)
    run._train_step()
    hands_of(run).gradient = 0.0

    assert run.run().status == "done"
    assert len(no_gradient_warnings(caplog)) == 1


def test_a_rules_alarms_are_counted_and_told_each_time_they_set_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    run = trainer(tmp_path, steps=5)
    seen: list[int] = []

    def alarms(records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        seen.append(len(records))
        return {"odd": "something is odd"} if len(records) in (2, 3, 5) else {}

    monkeypatch.setattr(run.update, "alarms", alarms)
    run.run()

    assert seen == [1, 2, 3, 4, 5], "all records so far, this step's last"
    assert [r.message for r in caplog.records].count("something is odd") == 2
    assert [r["update/alarms"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 1, 0, 1]


def test_a_policy_that_was_not_exported_is_made_up_for(tmp_path: Path):
    run = trainer(tmp_path)
    run.run()
    shutil.rmtree(tmp_path / "policy")

    again = trainer(tmp_path, first_step=3)
    checkpoint = Checkpoints(tmp_path, keep=2).latest()
    again.resume(checkpoint, read_state(checkpoint))

    assert again.run().status == "done"
    assert (tmp_path / "policy" / "weights").read_text() == "3"


def test_a_wrong_export_fails_the_run_and_the_checkpoint_stays(tmp_path: Path):
    run = trainer(tmp_path)
    hands_of(run).export_problem = "it has gone 71% of the way"

    with pytest.raises(ExportError, match=r"not what the learner holds, so .*policy was not written: it has gone 71%"):
        run.run()
    assert hands_of(run).exported == ["3"]
    assert not (tmp_path / "policy").exists()
    assert read_state(Checkpoints(tmp_path, keep=2).latest()).step == 3


def test_a_resumed_run_draws_what_the_whole_one_draws(tmp_path: Path):
    whole = trainer(tmp_path / "whole")
    whole.run()
    first = trainer(tmp_path / "cut", steps=2)
    first.run()

    second = trainer(tmp_path / "rest", first_step=2)
    checkpoint = Checkpoints(tmp_path / "cut", keep=2).latest()
    second.resume(checkpoint, read_state(checkpoint))

    assert (second.step, second.schedule.pending().position) == (2, 8)
    second.run()
    assert hands_of(second).requests == hands_of(whole).requests[2:]


def test_similarity_between_prompts_is_logged_where_it_is_asked_for(tmp_path: Path):
    tracking = {"wandb": "off", "similarity_pairs": 8}
    trainer(tmp_path / "asked", uniform=True, steps=1, tracking=tracking).run()
    trainer(tmp_path / "not", uniform=True, steps=1).run()

    # Every completion is the one word "7": METEOR 0.5, exact match, one chunk of one word.
    assert read_metrics(tmp_path / "asked" / "metrics.jsonl")[0]["similarity/meteor"] == 0.5
    assert "similarity/meteor" not in read_metrics(tmp_path / "not" / "metrics.jsonl")[0]


def test_what_has_no_reward_is_recorded_and_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "own.py").write_text(
        "def fails_on_eights(completion):\n    return 1 / (8 - int(completion))\n"
        "def length(completion):\n    return {'characters': len(completion)}\n"
    )
    sections = [
        {"function": f"{tmp_path}/own.py:fails_on_eights", "on_error": "drop_sample", "max_failed_fraction": 0.5},
        {"function": f"{tmp_path}/own.py:length", "role": "monitor"},
    ]
    run = trainer(tmp_path / "run", steps=1)
    run = replace(run, rewards=load_rewards([RewardSection.model_validate(section) for section in sections]))
    run.rewards.open_folder(tmp_path / "run", first_step=0)
    run.run()

    trained = hands_of(run).trained[0]
    assert len(trained) == 12
    assert all(example.rollout.completion.text == "7" for example in trained)
    assert [example.rollout.completion.text for example in hands_of(run).left_out[0]] == ["8"] * 4
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    wanted = {"reward/mean": 1.0, "reward/std": 0.0, "reward/failed": 4.0, "reward/dropped": 4.0}
    wanted |= {"reward/fails_on_eights": 1.0, "monitor/length": 1.0, "monitor/length/characters": 1.0}
    assert {key: line[key] for key in wanted} == wanted
    assert line["update/selected_fraction"] == 1.0
    samples = pq.read_table(tmp_path / "run" / "samples" / "step_000001.parquet").to_pydict()
    assert [text for text, reward in zip(samples["completion"], samples["reward"], strict=True) if reward is None] == [
        "8"
    ] * 4
    assert samples["reward/fails_on_eights"].count(None) == 4
    assert samples["monitor/length"] == [1.0] * 16
    assert samples["reward_failed"].count(["fails_on_eights"]) == 4
    assert len((tmp_path / "run" / "failures" / "step_000001.jsonl").read_text().splitlines()) == 4
    assert "4 scores failed (fails_on_eights: raised 4)" in caplog.text


def test_a_step_without_any_reward_trains_on_nothing(tmp_path: Path):
    def abstains(completion: str) -> None:
        return None

    run = trainer(tmp_path, rewards=[abstains], steps=1)
    run.run()

    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert hands_of(run).trained == [[]]
    assert (line["reward/dropped"], line["reward/failed"], line["update/selected_fraction"]) == (16.0, 0.0, 0.0)
    assert "reward/mean" not in line
