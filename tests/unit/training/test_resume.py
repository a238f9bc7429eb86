"""A resume goes on only with the recipe, the models, the data and the rewards that made the run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from rlkl.cli import main
from rlkl.errors import CheckpointError, RunInUseError
from rlkl.recipe.changes import MAY_CHANGE, plain_values, with_absolute_paths
from rlkl.recipe.core_yaml import write_yaml
from rlkl.recipe.io import as_override, dump_recipe, load_recipe
from rlkl.recipe.keys import describe_keys
from rlkl.recipe.run_dir import write_recipe
from rlkl.recipe.run_lock import lock_run_dir
from rlkl.training.checkpoint import Checkpoints, LoopState
from rlkl.training.resume import check_rewards, newest
from rlkl.training.setup import _prepare, train
from tests.models import tiny_qwen3

STATE = LoopState(
    step=4,
    position=8,
    run_id="a",
    reward_fingerprints={"gold": "1", "short": "2"},
    data_fingerprint="d",
    recipe={},
    fingerprints={},
)
ROWS = [
    {"id": str(n), "prompt": f"{n}+1=", "answer": str(n + 1), "note": {"level": n, "tags": ["a"]}} for n in range(6)
]
RULE = Path(__file__).parents[3] / "recipes" / "rule_example.py"
TERM = Path(__file__).parents[3] / "recipes" / "term_example.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_qwen3(folder / "base", tied=False, seed=0)
    tiny_qwen3(folder / "other", tied=False, seed=1)
    return folder


@pytest.fixture
def run(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was started with relative paths and stopped after four steps."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "base", tmp_path / "base")
    shutil.copytree(models / "other", tmp_path / "reference")
    shutil.copy(RULE, tmp_path / "my_rule.py")
    write_rows(tmp_path, ROWS)
    (tmp_path / "my.py").write_text(
        "def right(completion, answer, bonus=1.0):\n    return bonus * (completion == answer)\n"
    )
    (tmp_path / "first.yaml").write_text(
        "run: {dir: run}\nsteps: 8\nseed: 3\n"
        "model: {path: base, reference: reference, lora: {rank: 4}}\n"
        "data: {source: rows.jsonl, max_prompt_tokens: 16}\n"
        "rollout: {prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 8}\n"
        "rewards: [{function: 'my.py:right', settings: {bonus: 2.0}}]\n"
        "update: {rule: 'my_rule.py:Reinforce'}\n"
    )
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    save(run_dir, load_recipe("first.yaml"))
    return run_dir


def save(run_dir: Path, made_by: Any, *, policy: str = "weights", **changes: Any) -> Path:
    """Write down what `rlkl train` would have after four steps of a recipe, with ``changes`` of the state."""
    setup = _prepare(made_by, (), None, allow_changed_rewards=False)
    write_recipe(run_dir, dump_recipe(setup.stored))
    state = LoopState(
        step=4,
        position=8,
        run_id="a",
        reward_fingerprints=setup.rewards.fingerprints,
        data_fingerprint=setup.source.fingerprint,
        recipe=plain_values(setup.stored),
        fingerprints=setup.fingerprints,
    )
    checkpoints = Checkpoints(run_dir, keep=2)
    with checkpoints.writing(replace(state, **changes)) as draft:
        (draft.folder / "policy").mkdir()
        (draft.folder / "policy" / "model.safetensors").write_text(policy)
    return checkpoints.latest()


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def resume(run_dir: Path, *overrides: str, allow_changed_rewards: bool = False) -> None:
    """Make every check that `rlkl train --resume` makes before anything starts."""
    recipe = load_recipe(run_dir / "recipe.yaml", *overrides)
    _prepare(recipe, (), newest(run_dir, recipe), allow_changed_rewards=allow_changed_rewards)


def refusal(run_dir: Path, *overrides: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        train(load_recipe(run_dir / "recipe.yaml", *overrides), resume_from=run_dir)
    assert caught.value.exit_code == 2
    assert not (run_dir / "run.lock").exists()
    return str(caught.value)


def edit(run_dir: Path, old: str, new: str) -> None:
    text = (run_dir / "recipe.yaml").read_text()
    assert text.count(old) == 1
    (run_dir / "recipe.yaml").write_text(text.replace(old, new))


def test_an_untouched_run_goes_on_from_any_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(run)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    stored = load_recipe(run / "recipe.yaml")
    assert (stored.model.path, stored.model.reference) == (str(tmp_path / "base"), str(tmp_path / "reference"))
    assert (stored.data.source, stored.run.dir) == (str(tmp_path / "rows.jsonl"), str(tmp_path / "run"))
    assert stored.rewards[0].function == f"{tmp_path}/my.py:right"
    assert stored.update.rule == f"{tmp_path}/my_rule.py:Reinforce"


@pytest.mark.parametrize(
    ("old", "new", "message", "undo"),
    [
        ("seed: 3\n", "seed: 5\n", "seed=5 (was 3)", "seed=3"),
        ("lr: 1.0e-06", "lr: 0.1", "learner.lr=0.1 (was 1.0e-06)", "learner.lr=1.0e-06"),
        ("rank: 4", "rank: 8", "model.lora.rank=8 (was 4)", "model.lora.rank=4"),
        ("samples_per_prompt: 2", "samples_per_prompt: 4", "rollout.samples_per_prompt=4 (was 2)", None),
        ("  shuffle: true\n", "  shuffle: false\n", "data.shuffle=false (was true)", "data.shuffle=true"),
        ("  weight: null\n", "  weight: 3.0\n", "rewards[0].weight=3.0 (was null)", "'rewards[0].weight=null'"),
    ],
)
def test_a_recipe_edited_by_hand_is_refused_with_old_and_new_value(
    run: Path, old: str, new: str, message: str, undo: str | None
):
    edit(run, old, new)
    told = refusal(run)
    assert f"\n  {message}\n" in told
    assert undo is None or f"rlkl train --resume {run} {undo}" in told
    assert f"rlkl train {run}/recipe.yaml " in told
    assert f"model.path={run}/checkpoints/step_000004/policy run.dir=NEW_FOLDER" in told
    if undo is not None:
        resume(run, undo.strip("'"))


def test_the_command_that_goes_on_keeps_the_changes_that_are_allowed(run: Path):
    told = refusal(run, "learner.beta1=0.5", "steps=20")
    (command,) = (line.partition(": ")[2] for line in told.splitlines() if line.startswith("To go on"))
    _, _, _, folder, *overrides = command.split()
    assert (folder, sorted(overrides)) == (str(run), ["learner.beta1=0.9", "steps=20"])
    resume(run, *overrides)


def test_a_changed_variant_and_an_override_are_both_named(run: Path):
    save(run, load_recipe("first.yaml", "update={rule: grpo}"))
    edit(run, "variant: grpo\n", "variant: dapo\n")
    told = refusal(run, "learner.beta1=0.5", "steps=20", "tracking.project=other")
    assert "\n  update.variant=dapo (was grpo)\n  learner.beta1=0.5 (was 0.9)\n" in told
    assert "tracking" not in told.partition("A run keeps")[0]
    assert "update={" in refusal(run, "update={rule: ppo}")  # another rule has other keys: the section as a whole


def test_where_and_how_it_computes_and_records_may_change(run: Path):
    resume(
        run,
        "steps=40",
        "rollout.workers=3",
        "rollout.threads=2",
        "rollout.cpus_per_worker=2",
        "rollout.memory_fraction=0.9",
        "learner.micro_batch_tokens=64",
        "model.gradient_checkpointing=true",
        "rewards[0].mode=process",
        "rewards[0].timeout_s=7",
        "rewards[0].workers=2",
        "cluster={address: 'a:1', call_timeout_s: 7, start_timeout_s: 8}",
        "tracking={wandb: off, samples_every: 3}",
        "checkpoint={every: 1, keep: 9}",
        "weights.tolerance=0.5",
    )


def test_the_fate_of_failed_samples_may_change(run: Path):
    resume(run, "rewards[0].on_error=drop_sample")
    resume(run, "rewards[0].on_error=constant", "rewards[0].error_value=0.0")


def test_keys_that_may_change_exist():
    names = [key.name for key in describe_keys()]
    assert [key for key in MAY_CHANGE if not any(name == key or name.startswith(f"{key}.") for name in names)] == []


def test_the_page_names_every_key_that_may_change():
    page = (Path(__file__).parents[3] / "docs" / "resuming.md").read_text()
    assert [key for key in MAY_CHANGE if f"`{key.removeprefix('rewards[].')}`" not in page] == []


def overwrite(folder: Path, change: Callable[[Any], None]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    change(model)
    before = (folder / "model.safetensors").stat()
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_size == before.st_size
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))


def nudge(model: Any) -> None:
    model.lm_head.weight.data[0, 0] += 1e-3


@pytest.mark.parametrize(("folder", "key"), [("base", "model.path"), ("reference", "model.reference")])
def test_one_changed_weight_of_size_and_time_as_before_is_noticed(run: Path, tmp_path: Path, folder: str, key: str):
    resume(run)  # the digests are in the cache
    overwrite(tmp_path / folder, nudge)
    assert f"{key} = '{tmp_path / folder}' is not the model that it was" in refusal(run)


def test_a_changed_setting_of_the_base_model_is_noticed(run: Path, tmp_path: Path):
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert "is not the model that it was" in refusal(run)


def test_models_data_rewards_and_rules_may_move_but_not_change(run: Path, tmp_path: Path):
    for name in ("base", "reference", "rows.jsonl", "my.py", "my_rule.py"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = tmp_path / "moved"
    places = ("model.path", "base"), ("model.reference", "reference"), ("data.source", "rows.jsonl")
    overrides = [as_override(key, str(moved / name)) for key, name in places]
    overrides += [f"rewards[0].function={moved}/my.py:right", f"update.rule={moved}/my_rule.py:Reinforce"]
    resume(run, *overrides)
    assert "is not the model that it was" in refusal(
        run, *overrides, as_override("model.path", str(moved / "reference"))
    )


def test_a_changed_rule_of_ones_own_is_noticed(run: Path, tmp_path: Path):
    with (tmp_path / "my_rule.py").open("a") as file:
        file.write("\nEDITED = True\n")
    assert f"update.rule = '{tmp_path}/my_rule.py:Reinforce' is not the rule that it was" in refusal(run)


@pytest.fixture
def run_with_terms(run: Path, models: Path, tmp_path: Path) -> Path:
    """Return the run with a further frozen model and a custom term."""
    shutil.copytree(models / "other", tmp_path / "teacher")
    shutil.copy(TERM, tmp_path / "my_term.py")
    terms = "[{term: 'my_term.py:Floor'}, {term: kl, to: teacher}]"
    save(run, load_recipe("first.yaml", "models={teacher: {path: teacher}}", f"update.terms={terms}"))
    return run


def test_frozen_models_and_custom_terms_are_found_from_any_folder_and_may_move(
    run_with_terms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = load_recipe(run_with_terms / "recipe.yaml")
    assert stored.models["teacher"].path == str(tmp_path / "teacher")
    assert stored.update.terms[0].term == f"{tmp_path}/my_term.py:Floor"
    resume(run_with_terms)
    for name in ("teacher", "my_term.py"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = tmp_path / "elsewhere"
    terms = f"[{{term: '{moved}/my_term.py:Floor'}}, {{term: kl, to: teacher}}]"
    resume(run_with_terms, f"models.teacher.path={moved}/teacher", f"update.terms={terms}")


def test_a_changed_term_of_ones_own_is_noticed(run_with_terms: Path, tmp_path: Path):
    with (tmp_path / "my_term.py").open("a") as file:
        file.write("\nEDITED = True\n")
    assert f"update.terms[0].term = '{tmp_path}/my_term.py:Floor' is not the term that it was" in refusal(
        run_with_terms
    )


def test_another_frozen_model_is_noticed(run_with_terms: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(tmp_path / "base", tmp_path / "teacher")
    assert "models.teacher.path = " in refusal(run_with_terms)


def write_states(folder: Path, *words: str) -> None:
    """Write states of the run's model from the prompts of its data."""
    given = ["replay-states", "base", "rows.jsonl", "--column", "prompt", "--output", str(folder)]
    assert main([*given, *words]) == 0


@pytest.fixture
def run_with_replay(run: Path) -> Path:
    """Return the run with replayed samples."""
    write_states(Path("states"))
    save(run, load_recipe("first.yaml", "update.terms=[{term: entropy}, {term: replay, states: states, sequences: 2}]"))
    return run


@pytest.mark.parametrize("words", [("--samples", "3"), ("--seed", "1"), ("--tokens", "3")])
def test_states_that_were_written_anew_with_other_samples_are_noticed(
    run_with_replay: Path, tmp_path: Path, words: tuple[str, ...]
):
    resume(run_with_replay)
    write_states(tmp_path / "states", *words)
    told = refusal(run_with_replay)
    assert f"update.terms[1].states = '{tmp_path}/states' is not the folder of states that it was" in told
    assert "name its new place with update.terms[1].states=..." in told


def test_states_may_move_but_not_change(run_with_replay: Path, tmp_path: Path):
    (tmp_path / "states").rename(tmp_path / "moved")
    resume(run_with_replay, as_override("update.terms[1].states", str(tmp_path / "moved")))
    write_states(tmp_path / "others", "--samples", "3")
    assert "is not the folder of states that it was" in refusal(
        run_with_replay, as_override("update.terms[1].states", str(tmp_path / "others"))
    )


def test_a_key_named_states_of_a_custom_term_is_no_path_and_may_not_change(run: Path, tmp_path: Path):
    (tmp_path / "my_term.py").write_text(
        "from rlkl.updates.terms.base import Term\n"
        "from rlkl.updates.terms.settings import TermSettings\n"
        "class Own(Term):\n"
        "    class Settings(TermSettings):\n"
        "        states: str = ''\n"
        "    needs = frozenset()\n"
        "    def loss(self, batch, signals):\n"
        "        return batch.weight_B.sum() * 0\n"
    )
    (tmp_path / "hidden").mkdir()
    save(run, load_recipe("first.yaml", "update.terms=[{term: 'my_term.py:Own', states: hidden}]"))
    assert plain_values(load_recipe(run / "recipe.yaml"))["update"]["terms"][0]["states"] == "hidden"
    resume(run)
    assert "update.terms[0].states=seen (was hidden)" in refusal(run, "update.terms[0].states=seen")


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda row: {**row, "answer": "0"}, "answer"),
        (lambda row: {**row, "answer": None}, "answer"),
        (lambda row: {**row, "note": {"level": 0, "tags": ["b"]}}, "note"),
        (lambda row: {**row, "note": {"level": 0.0, "tags": ["a"]}}, "note"),
        (lambda row: {name: value for name, value in row.items() if name != "note"}, "note"),
        (lambda row: {**row, "more": None}, "more"),
    ],
)
def test_a_changed_value_that_rewards_can_read_is_noticed(
    run: Path, tmp_path: Path, change: Callable[[dict], dict], column: str
):
    write_rows(tmp_path, [change(ROWS[0]), *ROWS[1:]])
    told = refusal(run)
    assert f"data.source = '{tmp_path / 'rows.jsonl'}'" in told
    assert f"in the column(s) '{column}'" in told


def test_rows_written_anew_with_other_spacing_and_order_of_keys_are_the_same(run: Path, tmp_path: Path):
    lines = [json.dumps(dict(reversed(row.items())), separators=(",", ":")) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    resume(run)


def test_changed_prompts_are_refused(run: Path, tmp_path: Path):
    write_rows(tmp_path, ROWS[:-1])
    assert "does not hold the prompts that it held" in refusal(run)


def test_changed_rewards_go_on_where_that_is_allowed(run: Path, caplog: pytest.LogCaptureFixture):
    overrides = ("rewards[0].settings={bonus: 3.0}", "rewards[0].weight=2", "scoring.normalize=batch")
    assert "rewards[0].weight=2.0 (was null)" in refusal(run, *overrides)
    assert "'right' is changed" in refusal(run, overrides[0])
    resume(run, *overrides, allow_changed_rewards=True)
    assert "scoring.normalize=batch (was none)" in caplog.text
    assert "curves will not join up" in caplog.text
    with pytest.raises(CheckpointError, match="seed=9"):
        resume(run, "seed=9", *overrides, allow_changed_rewards=True)


def test_a_second_resume_is_refused_with_host_and_process(run: Path):
    recipe = load_recipe(run / "recipe.yaml")
    with lock_run_dir(run), pytest.raises(RunInUseError, match=rf"process {os.getpid()} of user .* on host"):
        train(recipe, resume_from=run)


def test_a_checkpoint_of_a_version_without_manifests_is_refused_with_what_to_do(run: Path):
    (run / "checkpoints" / "step_000004" / "manifest.json").unlink()
    message = refusal(run)
    assert "manifest.json is missing (earlier versions of rlkl wrote none" in message
    assert f"model.path={run / 'checkpoints' / 'step_000004' / 'policy'}" in message


def test_a_finished_run_exports_again_unless_its_policy_is_that_of_the_last_step(run: Path):
    """A run that was prolonged may fail between its last checkpoint and its export; the old policy is still there."""
    checkpoint = save(run, load_recipe("first.yaml", "steps=4"), policy="of step 4")
    (run / "policy").mkdir()
    (run / "policy" / "model.safetensors").write_text("of step 2")
    resume(run)
    shutil.rmtree(run / "policy")
    shutil.copytree(checkpoint / "policy", run / "policy")
    assert "has made 4 steps, and steps = 4 asks for no more; to go on: " in refusal(run)


def test_keys_that_a_later_version_adds_have_their_defaults(run: Path):
    recipe = load_recipe("first.yaml")
    values = plain_values(with_absolute_paths(recipe))
    del values["learner"]["logits_chunk_tokens"], values["learner"]["weight_decay"]
    save(run, recipe, recipe=values)
    resume(run)
    assert "learner.weight_decay=0.1 (was 0.0)" in refusal(run, "learner.weight_decay=0.1")


def test_a_run_of_an_earlier_version_has_the_settings_of_vllm_at_their_old_place(run: Path):
    recipe = load_recipe("first.yaml")
    values = plain_values(with_absolute_paths(recipe))
    values["rollout"] |= {"memory_fraction": 0.5, "kv_cache_gib": 2, "vllm": {"max_num_seqs": 8}}
    save(run, recipe, recipe=values)
    (run / "recipe.yaml").write_text(write_yaml(values))
    resume(run)
    resume(run, "rollout.memory_fraction=0.4", "rollout.kv_cache_gib=3")
    assert "rollout.vllm={" in refusal(run, "rollout.vllm={}")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"gold": "1", "short": "3"}, "'short' is changed"),
        ({"gold": "1"}, "'short' is gone"),
        ({"gold": "1", "short": "2", "new": "4"}, "'new' is new"),
        ({"gold": "5", "other": "2"}, "'gold' is changed, 'other' is new, 'short' is gone"),
    ],
)
def test_changed_rewards_are_refused_or_warned_about(
    now: dict[str, str], message: str, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(CheckpointError, match=f"not what they were at step 4.*{message}.*--allow-changed-rewards"):
        check_rewards(STATE, now, allow_changed=False)
    assert not caplog.records
    check_rewards(STATE, now, allow_changed=True)
    assert message in caplog.text


def test_the_same_rewards_go_on_without_a_word(caplog: pytest.LogCaptureFixture):
    check_rewards(STATE, {"short": "2", "gold": "1"}, allow_changed=False)
    check_rewards(replace(STATE, reward_fingerprints={}), {}, allow_changed=False)
    assert not caplog.records
