"""From words and files to a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkl.analysis.sweep_plan import PlannedRun, SweepPlan, plan_from
from rlkl.cli import _parser
from rlkl.commands.eval_inputs import evaluation_recipe
from rlkl.commands.sweep import check_plan
from rlkl.errors import InputError, RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.io import as_override, built_in_names, dump_recipe, load_recipe
from rlkl.sweeps.commands import evaluate_words, train_words
from rlkl.sweeps.making import load_sweep, make_plan, plan_differences, slug
from rlkl.sweeps.recipes import write_recipes
from rlkl.sweeps.state import RunState

PLANNED = [
    "average",
    "cauchy_schwarz",
    "consistency",
    "distill",
    "distill_parts",
    "distill_reviews",
    "dro",
    "free_nats",
    "hacking",
    "kl_weight",
    "lagged",
    "listwise",
    "marginal_kl",
    "noisy_pictures",
    "papo",
    "papo_grid",
    "papo_hacking",
    "papo_time",
    "preferences",
    "replay",
    "rules",
    "samplers",
    "samplers_uneven",
    "scrg",
    "sparsepo",
    "unlearn",
]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_list_where_the_key_takes_one_value_is_an_axis() -> None:
    sweep = load_sweep(["quickstart", "update.kl_coef=[0.1,0.2]", "learner.lr=[1e-4,2e-4,3e-4]", "seeds=2", "steps=5"])
    plan = make_plan(sweep)
    assert sweep.name == "quickstart_sweep"
    assert [point.name for point in plan.arms[0].points] == [
        f"kl_coef-{coef}_lr-{lr}" for coef in (0.1, 0.2) for lr in ("0.0001", "0.0002", "0.0003")
    ]
    assert (list(plan.seeds), plan.number_of_runs, plan.arms[0].steps) == ([1, 2], 12, 5)


def test_a_list_where_the_key_takes_a_list_is_its_value() -> None:
    plan = make_plan(load_sweep(["quickstart", "rollout.stop=[a,b]", "seeds=1"]))
    (point,) = plan.arms[0].points
    assert (point.name, point.label) == ("default", "")
    assert load_recipe("quickstart", *point.overrides).rollout.stop == ["a", "b"]
    plan = make_plan(load_sweep(["quickstart", "rollout.stop=[[a],[b,c]]", "seeds=1"]))
    assert [point.name for point in plan.arms[0].points] == ["stop-1", "stop-2"]


def test_a_single_recipe_is_a_sweep_of_seeds() -> None:
    assert make_plan(load_sweep(["quickstart", "seeds=[3,4]", "name=x"])).number_of_runs == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a sweep file"),
        (["update.kl_coef=[1]"], "needs a sweep file"),
        (["quickstrat", "seeds=2"], "did you mean 'quickstart'"),
        (["quickstart", "update.kl_ceof=[0.1,0.2]", "seeds=2"], r"Did you mean update\.kl_coef"),
        (["quickstart", "update.kl_coef=[0.1,x]", "seeds=2"], r"update\.kl_coef = 'x'"),
        (["quickstart", "update.kl_coef=[0.1,0.1]", "seeds=2"], "are two values of an axis equal"),
        (["quickstart", "update.kl_coef=[0.1,0.2]"], "no seeds"),
        (["quickstart", "seeds=[1,1]"], "expected a list of different whole numbers"),
        (["quickstart", "seeds=[]"], "expected a list of different whole numbers"),
        (["quickstart", "seeds=2", "select={seeds: [0], by: reward/mean}"], "seeds is for sweeps without a selection"),
        (["quickstart", "select={seeds: [0], by: reward/mean}"], "select and final go together"),
        (
            ["quickstart", "select={seeds: [0, 1], by: reward/mean}", "final={seeds: 3}"],
            r"final\.seeds and select\.seeds share \[1\]",
        ),
        (["quickstart", "select={seeds: [0], by: eval/gold}", "final={seeds: 3}"], "needs an evaluation"),
        (
            ["quickstart", "select={seeds: [0], by: kl/policy_to_reference}", "final={seeds: 3}"],
            r"select\.by = kl/policy_to_reference: the point with the highest value is chosen",
        ),
        (["quickstart", "seeds=2", "baseline=GRPO"], "baseline = 'GRPO' is no arm"),
        (["quickstart", "seed=[1,2]", "seeds=2"], "the sweep sets it itself"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_starts(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(load_sweep(words))


def test_a_file_has_arms_with_grids_of_their_own(tmp_path: Path) -> None:
    file = write(
        tmp_path / "s.yaml",
        "name: s\nsteps: 7\nset: {learner.lr: 0.001}\nseeds: 2\nevaluate: {data: {source: task:arithmetic}}\n"
        "arms:\n  GRPO, one: {recipe: quickstart, vary: {update.kl_coef: [0.1, 0.2]}}\n"
        "  SuperHF: {recipe: quickstart, set: {update: {rule: superhf}, steps: 9}}\n",
    )
    plan = make_plan(load_sweep([file, "seeds=[5]"]))
    assert [(arm.name, arm.folder, len(arm.points), arm.steps) for arm in plan.arms] == [
        ("GRPO, one", "GRPO_one", 2, 7),
        ("SuperHF", "SuperHF", 1, 9),
    ]
    assert list(plan.seeds) == [5]
    assert list(plan.warnings) == [
        "the arms are not equal in points in the grid: GRPO, one 2, SuperHF 1",
        "the arms are not equal in steps: GRPO, one 7, SuperHF 9",
    ]
    assert plan.arms[1].resolved["learner"]["lr"] == 0.001
    assert plan.evaluate is not None
    assert (plan.evaluate["max_new_tokens"], plan.evaluate["engine"]) == (8, "vllm")


def test_names_that_give_one_folder_are_refused(tmp_path: Path) -> None:
    arms = "arms: {A b: {recipe: quickstart}, A_b: {recipe: quickstart}}"
    with pytest.raises(InputError, match="two names give the folder 'A_b'"):
        make_plan(load_sweep([write(tmp_path / "s.yaml", f"name: s\nseeds: 1\n{arms}\n")]))


def test_a_mistake_in_a_file_names_its_key(tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", "name: s\nseeds: 1\narms: {A: {recipe: quickstart, very: {steps: [1]}}}\n")
    with pytest.raises(RecipeError, match=r"arms\.A\.very: unknown key\. Did you mean arms\.A\.vary"):
        load_sweep([file])


def test_a_plan_is_read_back_as_it_was_written() -> None:
    plan = make_plan(load_sweep(["quickstart", "update.kl_coef=[0.1,0.2]", "seeds=2"]))
    again = plan_from(json.loads(json.dumps(plan.as_json())))
    assert again.as_json() == plan.as_json()
    assert plan_differences(again, plan) == []
    assert plan.origin["versions"]["rlkl"]


def test_a_changed_plan_names_what_differs() -> None:
    words = ["quickstart", "update.kl_coef=[0.1,0.2]"]
    before = make_plan(load_sweep([*words, "seeds=2", "steps=5"]))
    assert plan_differences(before, make_plan(load_sweep([*words, "seeds=3", "steps=6"]))) == [
        "arms[0].resolved.steps=6 (was 5)",
        "arms[0].steps=6 (was 5)",
        "seeds=[1, 2, 3] (was [1, 2])",
    ]


def test_the_command_lines_of_a_run(tmp_path: Path) -> None:
    plan = make_plan(load_sweep(["quickstart", "update.kl_coef=[0.1]", "seeds=[3]", "name=s"]))
    run = PlannedRun(arm=plan.arms[0], point=plan.arms[0].points[0], seed=3)
    write_recipes(plan, tmp_path)
    folder = f"{tmp_path}/quickstart/kl_coef-0.1/seed-3"
    assert train_words(run, plan, tmp_path, RunState.RESUMABLE) == ["train", "--resume", folder]
    words = train_words(run, plan, tmp_path, RunState.MISSING)
    assert words == [
        "train",
        f"{tmp_path}/recipes/quickstart/kl_coef-0.1.yaml",
        "seed=3",
        "run.name=s-quickstart-kl_coef-0.1-seed-3",
        f"run.dir={folder}",
    ]
    assert load_recipe(*words[1:]) == load_recipe("quickstart", "update.kl_coef=0.1", *words[2:])


def test_an_edit_of_a_recipe_changes_no_run_of_a_sweep_that_has_begun(tmp_path: Path) -> None:
    recipe = write(tmp_path / "own.yaml", dump_recipe(load_recipe("quickstart", "learner.lr=0.25")))
    plan = make_plan(load_sweep([recipe, "seeds=1"]))
    write_recipes(plan, tmp_path / "s")
    write(tmp_path / "own.yaml", dump_recipe(load_recipe("quickstart", "learner.lr=0.5")))
    write_recipes(plan, tmp_path / "s")
    run = next(plan.reported_runs({}))
    assert load_recipe(*train_words(run, plan, tmp_path / "s", RunState.MISSING)[1:]).learner.lr == 0.25
    file = tmp_path / "s" / "recipes" / "own" / "default.yaml"
    write(file, file.read_text().replace("lr: 0.25", "lr: 0.5"))
    with pytest.raises(InputError, match=r"own/default\.yaml is not the recipe that plan\.json was made for"):
        write_recipes(plan, tmp_path / "s")


def evaluated(policy: str, plan: SweepPlan, root: Path) -> Recipe:
    """Return the recipe that `rlkl eval` makes of its words."""
    words = evaluate_words(policy, next(iter(plan.models)), plan, root)
    return evaluation_recipe(_parser().parse_args(words))


def test_every_policy_is_evaluated_as_the_untrained_model(tmp_path: Path) -> None:
    """How prompts are read and sampled comes from the plan, not from the run that is evaluated."""
    own = {"data.system_prompt": "Be brief.", "data.max_prompt_tokens": 99, "model.dtype": "bfloat16"}
    own |= {"rollout.stop": ["!"], "model.reference": "task:arithmetic"}
    evaluate = {"data": {"source": "task:arithmetic/test"}, "samples": 4, "rewards": ["task:arithmetic"]}
    words = ["quickstart", "seeds=1", f"evaluate={json.dumps({**evaluate, 'set': {'rollout.threads': 1}})}"]
    plan = make_plan(load_sweep([*words, *(as_override(key, value) for key, value in own.items())]))
    write_recipes(plan, tmp_path)
    run = next(plan.reported_runs({})).folder(tmp_path)
    (run / "policy").mkdir(parents=True)
    section = "{data: {source: task:arithmetic}, limit: 3, temperature: 0.7, samples: 2}"
    write(run / "recipe.yaml", dump_recipe(load_recipe("quickstart", f"eval={section}", "data.max_prompt_tokens=12")))

    trained, untrained = (evaluated(policy, plan, tmp_path) for policy in (str(run), "task:arithmetic"))

    assert trained.model.path == str(run / "policy")
    assert trained.model_copy(update={"model": untrained.model}) == untrained
    assert (untrained.model.dtype, untrained.model.reference) == ("bfloat16", "task:arithmetic")
    assert (untrained.data.system_prompt, untrained.data.max_prompt_tokens) == ("Be brief.", 99)
    assert (untrained.rollout.stop, untrained.rollout.threads, untrained.seed) == (["!"], 1, 99)
    assert untrained.eval is not None
    assert (untrained.eval.samples, untrained.eval.limit, untrained.eval.temperature) == (4, 512, 1.0)
    assert untrained.eval.greedy is False


def test_at_another_temperature_no_kl_is_measured(tmp_path: Path) -> None:
    evaluate = {"data": {"source": "task:arithmetic/test"}, "set": {"eval.temperature": 0.7}}
    plan = make_plan(load_sweep(["quickstart", "seeds=1", f"evaluate={json.dumps(evaluate)}"]))
    write_recipes(plan, tmp_path)
    assert evaluated("task:arithmetic", plan, tmp_path).model.reference is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": {"eval.reward": 1}}, r"evaluate: eval\.reward: unknown key"),
        ({"set": {"learner.lr": 1}}, r"learner\.lr does nothing in evaluate\.set"),
        ({"data": {"source": "task:arithmetic/tset"}}, r"evaluate: .*task:arithmetic/tset"),
        ({"rewards": ["task:arithmetics"]}, r"evaluate: no built-in task is called 'arithmetics'"),
    ],
)
def test_a_wrong_evaluation_is_refused_before_the_first_run(change: dict[str, Any], message: str) -> None:
    evaluate = {"data": {"source": "task:arithmetic/test"}} | change
    with pytest.raises(InputError, match=message):
        check_plan(make_plan(load_sweep(["quickstart", "seeds=1", f"evaluate={json.dumps(evaluate)}"])))


def test_a_figure_that_no_evaluation_has_is_refused_before_the_first_run() -> None:
    evaluate = "evaluate={data: {source: task:reviews/test}}"
    words = ["reviews_grpo", "final={seeds: 1}", evaluate]
    check_plan(make_plan(load_sweep([*words, "select={seeds: [0], by: eval/gold}"])))
    with pytest.raises(InputError, match=r"select\.by = eval/golden: .*available: eval/reviews, eval/gold, eval/"):
        check_plan(make_plan(load_sweep([*words, "select={seeds: [0], by: eval/golden}"])))


def test_data_that_is_not_there_names_its_arm(tmp_path: Path) -> None:
    arms = "arms: {A: {recipe: quickstart}, B: {recipe: quickstart, set: {data.source: no.jsonl}}}"
    with pytest.raises(InputError, match=r"arm B: .*no\.jsonl"):
        check_plan(make_plan(load_sweep([write(tmp_path / "s.yaml", f"name: s\nseeds: 1\n{arms}\n")])))


def test_arms_that_read_their_prompts_otherwise_are_told(tmp_path: Path) -> None:
    arms = "arms: {A: {recipe: quickstart}, B: {recipe: quickstart, set: {data.system_prompt: Think.}}}"
    evaluate = "evaluate: {data: {source: task:arithmetic/test}}"
    plan = make_plan(load_sweep([write(tmp_path / "s.yaml", f"name: s\nseeds: 1\n{evaluate}\n{arms}\n")]))
    assert plan.warnings == ["B differs from A in data.system_prompt; both are evaluated as A is trained"]


def test_an_arm_has_no_folder_of_the_sweep_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="arms: 'recipes' is a folder of the sweep itself"):
        make_plan(
            load_sweep([write(tmp_path / "s.yaml", "name: s\nseeds: 1\narms: {recipes: {recipe: quickstart}}\n")])
        )


def test_without_rewards_of_its_own_the_evaluation_takes_those_of_the_recipe() -> None:
    plan = make_plan(load_sweep(["reviews_grpo", "seeds=1", "evaluate={data: {source: task:reviews/test}}"]))
    assert plan.evaluate is not None
    assert [(reward["function"], reward["role"]) for reward in plan.evaluate["rewards"]] == [
        ("task:reviews", "train"),
        ("task:reviews/gold", "monitor"),
    ]
    with pytest.raises(InputError, match="no recipe of the sweep names a reward"):
        make_plan(load_sweep(["reviews_dpo", "seeds=1", "evaluate={data: {source: task:reviews/test}}"]))


@pytest.mark.parametrize("name", PLANNED)
def test_the_built_in_sweeps_are_equal_and_whole(name: str) -> None:
    plan = make_plan(load_sweep([name]))
    assert plan.name == name
    assert list(plan.warnings) == []


def test_all_built_in_sweeps_are_tested_and_listed() -> None:
    assert built_in_names("sweeps") == PLANNED
    page = (Path(__file__).parents[3] / "recipes" / "README.md").read_text()
    assert [name for name in PLANNED if f"`{name}`" not in page] == []


def test_folder_names() -> None:
    assert slug("SparsePO, common mask") == "SparsePO_common_mask"
    assert slug("1e-05") == "1e-05"
    assert slug("../..") == "_"
