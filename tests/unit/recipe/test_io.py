from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from rlkl.errors import RecipeError
from rlkl.recipe.io import dump_recipe, load_recipe, recipe_from
from rlkl.recipe.keys import REQUIRED, describe_keys
from rlkl.updates import RULES
from rlkl.updates.base_settings import CorrectedSettings
from rlkl.updates.settings import GrpoSettings, RuleSettings

MINIMAL = "model: {path: some/model}\ndata: {source: prompts.jsonl}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path, MINIMAL)


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix(f"{file} with overrides: ").removeprefix(f"{file}: ")


def test_overrides_are_yaml_and_apply_in_order(minimal: Path) -> None:
    recipe = load_recipe(
        minimal,
        "learner.lr=1e-4",
        "steps=7",
        "steps=8",
        "model.lora.rank=4",
        "rewards=[{function: 'a.py:f'}, {function: b.c:g}]",
        "rewards[1].weight=-0.5",
        "data.subset=null",
        "learner.epochs=0x2",
    )
    assert recipe.learner.lr == 0.0001
    assert recipe.steps == 8
    assert recipe.model.lora is not None
    assert (recipe.model.lora.rank, recipe.model.lora.alpha) == (4, 32.0)
    assert [(reward.function, reward.weight) for reward in recipe.rewards] == [("a.py:f", None), ("b.c:g", -0.5)]
    assert recipe.data.subset is None
    assert recipe.learner.epochs == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 0.0001), ("1E-4", 0.0001), ("5.0e-4", 0.0005), (".5", 0.5), ("+2.5e+1", 25.0), ("3", 3.0)],
)
def test_numbers_as_people_write_them(minimal: Path, text: str, value: float) -> None:
    assert load_recipe(minimal, f"learner.lr={text}").learner.lr == value


@pytest.mark.parametrize("word", ["off", "online"])
def test_words_that_yaml_1_1_takes_for_truth_values_stay_words(minimal: Path, word: str) -> None:
    assert load_recipe(minimal, f"tracking.wandb={word}").tracking.wandb == word


def test_text_with_equals_signs_and_dates_stays_text(minimal: Path) -> None:
    recipe = load_recipe(minimal, "data.system_prompt=a=b", "tracking.project=2026-01-02")
    assert (recipe.data.system_prompt, recipe.tracking.project) == ("a=b", "2026-01-02")


def test_recipes_are_found_by_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart").model.path == "task:arithmetic"


def test_dumped_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", "model.lora={rank: 8}", "tracking.wandb=off", "learner.lr=1e-7", "run.name='7'")
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(("overrides", "clips"), [((), (0.2, 0.28)), (("update.clip_high=null",), (0.2, None))])
def test_a_clip_of_null_survives_the_dump_and_one_left_out_stays_out(
    tmp_path: Path, overrides: tuple[str, ...], clips: tuple[float, float | None]
) -> None:
    recipe = load_recipe("quickstart", "update.rule=grpo", "update.variant=dapo", *overrides)
    for read in (recipe, load_recipe(write(tmp_path, dump_recipe(recipe)))):
        assert isinstance(read.update, GrpoSettings)
        assert (read.update.choices().clip_low, read.update.choices().clip_high) == clips


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=3", "lr: unknown key. Did you mean learner.lr?"),
        ("learner.lrr=3", "learner.lrr: unknown key. Did you mean learner.lr?"),
        ("learner.kl_coef=1", "learner.kl_coef: unknown key. Did you mean update.kl_coef?"),
        ("rolout.workers=2", "rolout: unknown key. Did you mean rollout?"),
        ("model.lora.rnk=1", "model.lora.rnk: unknown key. Did you mean model.lora.rank?"),
        ("rewards=[{function: f, wieght: 2}]", "rewards[0].wieght: unknown key. Did you mean rewards[0].weight?"),
        ("run.zzz=1", "run.zzz: unknown key. The keys of run are name, dir"),
        ("rollout.workers=two", "rollout.workers = 'two': expected a whole number >= 0"),
        ("steps=1.5", "steps = 1.5: expected a whole number >= 1"),
        ("steps=0", "steps = 0: expected a whole number >= 1"),
        ("learner.beta1=1", "learner.beta1 = 1: expected a number >= 0 and < 1"),
        ("data.shuffle=yes", "data.shuffle = 'yes': expected true or false"),
        ("tracking.wandb=maybe", "tracking.wandb = 'maybe': expected one of offline, online, off"),
        ("data.split=7", 'data.split = 7: expected text; put it in quotes: "7"'),
        ("run.name=1e-6", "run.name = 1e-06: expected text matching ^[A-Za-z0-9][A-Za-z0-9._-]*$; put it in quotes"),
        ("rewards=[3]", "rewards[0] = 3: expected a section with the keys function, settings, name, weight"),
        ("rewards={}", "rewards = {}: expected a list, each entry a section with the keys function, settings, name"),
        ("model.lora=3", "model.lora = 3: expected a section with the keys rank, alpha, target_modules"),
        ("rewards=[{weight: 2}]", "rewards[0].function is missing: path/to/file.py:function, "),
        ("update.rule=gpro", "update.rule = 'gpro': expected grpo"),
        ("update.clip_lo=1", "update.clip_lo: unknown key. Did you mean update.clip_low"),
        ("rollout.top_p=0.9", "rollout: top_p = 0.9 is refused: sampling is never truncated"),
        ("learner.minibatches=33", "learner.minibatches = 33 exceeds rollout.prompts_per_step = 32; "),
        ("update={kl_estimator: k1}", "update: kl_estimator = k1 does nothing in the loss"),
    ],
)
def test_refusals_name_key_value_and_what_was_expected(minimal: Path, override: str, message: str) -> None:
    assert refusal(minimal, override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "override 'steps': expected section.key=value, as in learner.lr=1e-4"),
        ("steps.x=1", "override 'steps.x=1': the recipe has no such place; it holds 100 there"),
        ("rewards[2].weight=1", "override 'rewards[2].weight=1': the recipe has no such place; it holds [] there"),
        ("model.path=[a", "override 'model.path=[a' is not valid YAML in line 1: "),
    ],
)
def test_overrides_that_fit_nowhere(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(write(tmp_path, MINIMAL + "steps: 100\nrewards: []\n"), override).startswith(message)


def test_all_problems_are_listed_at_once(minimal: Path) -> None:
    lines = refusal(minimal, "learner.lrr=3", "steps=no", "rollout.workers=-1").splitlines()
    assert lines[0] == "3 problems"
    assert sorted(line.strip().partition(" ")[0] for line in lines[1:]) == ["learner.lrr:", "rollout.workers", "steps"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected sections (model, data, ...), got None"),
        ("- 1", "expected sections (model, data, ...), got [1]"),
        (MINIMAL + "seed: 1\nseed: 2\n", "is not valid YAML in line 4: the key 'seed' is given twice"),
        (MINIMAL + "learner: {lr: 1, lr: 2}\n", "is not valid YAML in line 3: the key 'lr' is given twice"),
        ("model: {path: x}\n", "data is missing: a section"),
        ("data: [", "is not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(write(tmp_path, text))


def test_missing_file_names_the_nearest_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at quikstart; it can be a path .*: quickstart$"):
        load_recipe("quikstart")
    with pytest.raises(RecipeError, match=r"is a folder; .* rlkl train --resume"):
        load_recipe(tmp_path)


def test_values_from_python_are_checked_like_a_file() -> None:
    with pytest.raises(RecipeError, match=r"^recipe: data\.source is missing"):
        recipe_from({"model": {"path": "m"}, "data": {}})


def test_keys_are_few_and_each_is_described() -> None:
    keys = describe_keys()
    assert len({key.name for key in keys}) == len(keys)
    plain = [key for key in keys if not key.name.startswith(("update.terms[]", "models.", "eval.rewards[]"))]
    for rule in RULES:
        assert sum(not key.rules or rule in key.rules for key in plain) < 156, f"a recipe for {rule} has too many keys"
    assert [key.name for key in keys if not key.description.endswith((".", ")"))] == []
    assert [key.name for key in keys if key.default == REQUIRED] == [
        "model.path",
        "models.<name>.path",
        "data.source",
        "rewards[].function",
        "eval.rewards[].function",
    ]
    lr = next(key for key in keys if key.name == "learner.lr")
    assert (lr.expects, lr.default) == ("a number >= 0", "1e-06")
    assert next(key for key in keys if key.name == "model.lora.rank").default == "16"
    assert next(key for key in keys if key.name == "update.kl_estimator").rules == ("grpo", "papo")


def test_pairs_need_a_rule_that_learns_from_them_and_no_worker(minimal: Path) -> None:
    pairs = ("data.chosen_column=good", "data.rejected_column=bad")
    assert load_recipe(minimal, *pairs, "rollout.workers=0", "update.rule=sparsepo").data.has_pairs
    assert "take update.rule = sparsepo" in refusal(minimal, *pairs, "rollout.workers=0")
    assert "nothing is sampled" in refusal(minimal, *pairs, "update.rule=sparsepo")
    assert "nothing is sampled" in refusal(minimal, "rollout.workers=0", "update.rule=sparsepo")
    assert "go together" in refusal(minimal, pairs[0], "rollout.workers=0", "update.rule=sparsepo")


def test_settings_that_exclude_each_other_are_refused(minimal: Path) -> None:
    pairs = ("data.chosen_column=good", "data.rejected_column=bad", "rollout.workers=0", "update.rule=sparsepo")
    assert "nothing is sampled" in refusal(minimal, *pairs, "rollout.schedule=one_step_off")
    assert "set schedule: alternate" in refusal(minimal, "rollout.placement=colocated", "rollout.schedule=stream")
    assert "needs engine: vllm" in refusal(minimal, "rollout.engine=hf", "rollout.tensor_parallel=2")
    assert "weights.transport: group" in refusal(minimal, "rollout.tensor_parallel=2", "weights.transport=host")


@pytest.mark.parametrize(("schedule", "correction"), [("alternate", "none"), ("stream", "token_truncate")])
def test_auto_corrects_where_sampler_and_learner_differ_by_versions(minimal: Path, schedule: str, correction: str):
    recipe = load_recipe(minimal, f"rollout.schedule={schedule}", "model.dtype=float32")
    assert isinstance(recipe.decided_update, CorrectedSettings)
    assert recipe.decided_update.correction == correction


def test_a_rule_of_ones_own_may_have_keys_of_any_annotation() -> None:
    class Own(RuleSettings):
        rule: Literal["own"] = "own"
        at: tuple[int, ...] = (1,)

    assert {key.name: key.expects for key in describe_keys(Own, "update.")}["update.at"] == "tuple[int, ...]"
