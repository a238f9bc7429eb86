"""A rule from outside the package: the tutorial's, and files that are no rule."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlkl.batch import Signal, Signals
from rlkl.errors import RecipeError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe, load_recipe, recipe_from
from rlkl.updates import build_update
from rlkl.updates.custom import OutsideSettings
from tests.builders import make_batch, random_logprobs
from tests.models import tiny_qwen3

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "recipes" / "rule_example.py"
REFERENCE = f"{EXAMPLE}:Reinforce"


def recipe_with(rule: str, **settings: object) -> Recipe:
    return recipe_from({"model": {"path": "m"}, "data": {"source": "d.jsonl"}, "update": {"rule": rule, **settings}})


def test_the_tutorial_shows_the_file_that_is_tested():
    page = (ROOT / "docs" / "your_own_rule.md").read_text()
    shown, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    assert shown == EXAMPLE.read_text()
    assert len(shown.splitlines()) <= 40


def test_its_loss_is_what_the_hand_computes():
    """Two responses of two tokens, rewards 1 and 0: advantages 1/2 and -1/2, mean over the two sequences."""
    rule = build_update(recipe_with(REFERENCE, kl_coef=0.5).update)
    batch = rule.credit(make_batch(lengths=[2, 2], rewards=[1.0, 0.0], groups=[0, 1]))
    policy_BT = torch.where(batch.response_BT, torch.tensor([[-1.0], [-3.0]]), 0.0).requires_grad_()
    kl_BT = torch.where(batch.response_BT, torch.tensor([[0.1], [0.3]]), 0.0)

    output = rule.loss(batch, Signals({Signal.POLICY_LOGPROBS: policy_BT, Signal.KL_POLICY_TO_REFERENCE: kl_BT}))
    output.loss.backward()

    assert output.terms["policy_gradient"] == pytest.approx(-(0.5 * -2 - 0.5 * -6) / 2)
    assert output.terms["kl"] == pytest.approx(0.5 * (0.2 + 0.6) / 2)
    assert policy_BT.grad is not None
    assert policy_BT.grad[batch.response_BT].tolist() == [-0.25, -0.25, 0.25, 0.25]


def test_its_cut_into_micro_batches_does_not_matter():
    rule = build_update(recipe_with(REFERENCE).update)
    batch = rule.credit(make_batch(lengths=[3, 1, 4], rewards=[1.0, 0.0, 0.5], groups=[0, 0, 1]))
    signals = Signals(
        {
            Signal.POLICY_LOGPROBS: random_logprobs(batch.response_BT, seed=1),
            Signal.KL_POLICY_TO_REFERENCE: -random_logprobs(batch.response_BT, seed=2),
        }
    )

    def loss_of(rows: list[int]) -> float:
        part = batch.rows(torch.tensor(rows))
        return float(rule.loss(part, signals.rows(torch.tensor(rows), part.response_BT.shape[1])).loss)

    assert loss_of([0]) + loss_of([2, 1]) == pytest.approx(loss_of([0, 1, 2]))


def test_it_trains_in_the_learner(tmp_path: Path):
    from tests.unit.learner.test_learner import examples

    model = str(tiny_qwen3(tmp_path / "model", tied=False, seed=0))
    recipe = recipe_from(
        {"model": {"path": model}, "data": {"source": "unused.jsonl"}, "update": {"rule": REFERENCE}}
        | {"learner": {"lr": 1e-2}}
    )
    learner = Learner(LearnerSpec(recipe=recipe, model_path=model))

    first = learner.prepare(examples(), step=0) | learner.step(0)
    second = learner.prepare(examples(), step=1) | learner.step(1)

    assert first["optim/grad_norm"] > 0
    assert first["loss/kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["loss/kl"] > 0
    assert second["rule/praised_tokens"] == first["rule/praised_tokens"] > 0


def test_its_settings_are_kept_overridden_and_written_out(tmp_path: Path):
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(recipe_with(REFERENCE, kl_coef=0.25, filter={"keep": "top_k", "value": 2.0})))

    again = load_recipe(written, "update.kl_coef=0.75")

    assert again.update.model_dump() == {
        "filter": {"keep": "top_k", "value": 2.0},
        "terms": [],
        "dro": None,
        "kl_coef": 0.75,
        "rule": REFERENCE,
    }
    assert again == pickle.loads(pickle.dumps(again))
    assert load_recipe(written, "update={rule: grpo}").update.rule == "grpo"


def test_another_process_without_the_file_rebuilds_it(tmp_path: Path):
    """As the learner's process on another machine gets it."""
    file = tmp_path / "there" / "mine.py"
    file.parent.mkdir()
    file.write_text(EXAMPLE.read_text().replace("Reinforce", "Mine"))
    sent = tmp_path / "settings.pickle"
    sent.write_bytes(pickle.dumps(recipe_with(f"{file}:Mine", kl_coef=0.25)))
    file.unlink()
    code = (
        "import pickle, sys; from rlkl.updates import build_update\n"
        "rule = build_update(pickle.load(open(sys.argv[1], 'rb')).update)\n"
        "print(type(rule).__name__, rule.rule, rule.settings.kl_coef)"
    )

    answer = subprocess.run([sys.executable, "-c", code, str(sent)], cwd=ROOT, capture_output=True, text=True)

    assert answer.stdout.split() == ["Mine", "Mine", "0.25"], answer.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_coeff": 1.0}, "update.kl_coeff: unknown key. Did you mean update.kl_coef?"),
        ({"kl_coef": -1.0}, "update.kl_coef = -1.0: expected a number >= 0"),
        ({"kl_coef": "much"}, "update.kl_coef = 'much': expected a number >= 0"),
        ({"filter": {"keep": "best"}}, "update.filter.keep = 'best': expected one of top_k, threshold, top_fraction"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str):
    with pytest.raises(RecipeError) as caught:
        recipe_with(REFERENCE, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "Missing", "'Missing' does not exist"),
        ("Reinforce = print\n", "Reinforce", "is no subclass of rlkl.updates.base.PolicyUpdate"),
        (
            "from rlkl.updates.base import PolicyUpdate\nclass Half(PolicyUpdate):\n    pass\n",
            "Half",
            "Half does not define loss, needs",
        ),
        (
            EXAMPLE.read_text().replace("class Settings(RuleSettings)", "class Settings"),
            "Reinforce",
            "expected a subclass of rlkl.updates.settings.RuleSettings",
        ),
        ("1 / 0\n", "Any", "raised ZeroDivisionError"),
    ],
)
def test_what_is_no_rule_is_refused(tmp_path: Path, text: str, name: str, message: str):
    file = tmp_path / "rule.py"
    file.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe_with(f"{file}:{name}")


def test_a_missing_file_names_what_is_there(tmp_path: Path):
    (tmp_path / "my_rule.py").write_text("")
    with pytest.raises(RecipeError, match=r"there is no rule file .*did you mean '.*my_rule\.py'"):
        recipe_with(f"{tmp_path}/my_rul.py:Rule")


def test_settings_know_their_rule_apart_from_built_in_ones():
    settings = recipe_with(REFERENCE).update
    assert isinstance(settings, OutsideSettings)
