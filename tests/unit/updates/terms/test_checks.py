"""Names of terms, refused when the recipe is read, and warnings of terms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe, recipe_from
from rlkl.updates import RULES, build_update
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.settings import GrpoSettings
from rlkl.updates.terms.checks import curve_names, warnings_about_terms
from rlkl.updates.terms.settings import EntropySettings, KlSettings, TermSettings
from tests.builders import FACTS

RECIPES = Path(__file__).parents[4] / "recipes"


def recipe(update: dict[str, Any]) -> Recipe:
    values = {"model": {"path": "m"}, "data": {"source": "d"}, "models": {"teacher": {"path": "t"}}}
    return recipe_from({**values, "update": update})


def test_names_that_come_again_are_numbered():
    terms = [KlSettings(), KlSettings(name="near"), KlSettings(coef=0.2), EntropySettings(), KlSettings(name="near")]
    assert curve_names(terms) == ["kl_reference", "near", "kl_reference_2", "entropy_bonus", "near_2"]
    assert TermSettings(term="my_term.py:LongFloorOf2").default_name == "long_floor_of2"


@pytest.mark.parametrize(
    ("update", "own"),
    [
        ({"rule": "grpo", "kl_coef": 0.1}, "kl"),
        ({"rule": "grpo"}, "policy"),
        ({"rule": "papo"}, "perception"),
        ({"rule": "ppo"}, "value"),
        ({"rule": "superhf"}, "cross_entropy"),
        ({"rule": "sparsepo"}, "preference"),
        ({"rule": "sparsepo", "l1_kl": 0.1}, "l1"),
        ({"rule": "listwise"}, "listwise"),
    ],
)
def test_the_name_of_one_of_the_rules_own_terms_is_refused_when_the_recipe_is_read(update: dict[str, Any], own: str):
    terms = [{"term": "entropy"}, {"term": "kl", "to": "teacher", "name": own}]
    with pytest.raises(RecipeError, match=rf"update\.terms\[1\]\.name = '{own}': update\.rule = {update['rule']} has"):
        recipe({**update, "terms": terms})
    assert recipe({**update, "terms": [{**terms[1], "name": "other"}]}).update.terms[0].name == "other"


def test_a_name_is_free_if_the_settings_turn_the_rules_own_term_off():
    for update in ({"rule": "grpo"}, {"rule": "ppo"}, {"rule": "grpo", "kl_coef": 0.1, "kl_placement": "reward"}):
        assert build_update(recipe({**update, "terms": [{"term": "kl", "name": "kl"}]}).update)


def test_a_default_name_of_a_custom_term_that_is_taken_is_refused(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text((RECIPES / "term_example.py").read_text().replace("Floor", "Policy"))
    with pytest.raises(RecipeError, match=r"update\.terms\[0\]\.name is not set, and its default is 'policy'"):
        recipe({"rule": "grpo", "terms": [{"term": f"{file}:Policy"}]})


def test_a_custom_rule_may_declare_its_terms(tmp_path: Path):
    file = tmp_path / "declaring.py"
    text = (RECIPES / "rule_example.py").read_text()
    declared = "        @property\n        def own_terms(self):\n            return frozenset({'kl'})\n\n"
    file.write_text(text.replace("(RuleSettings):\n", f"(RuleSettings):\n{declared}"))
    with pytest.raises(RecipeError, match=r"update\.terms\[0\]\.name = 'kl': .*; the rule's own are kl"):
        recipe({"rule": f"{file}:Reinforce", "terms": [{"term": "kl", "name": "kl"}]})


def test_the_curve_of_the_whole_loss_cannot_be_taken():
    with pytest.raises(RecipeError, match=r"update\.terms\[0\]\.name = 'total': loss/total is the curve of the whole"):
        recipe({"rule": "grpo", "terms": [{"term": "entropy", "name": "total"}]})
    with pytest.raises(RecipeError, match=r"loss/total is the curve of the whole loss"):
        build_update(GrpoSettings(terms=[EntropySettings(name="total")]))


def warnings(update: dict[str, Any], **facts: Any) -> list[str]:
    given = {name: facts.get(name, getattr(FACTS, name)) for name in RunFacts.__slots__}
    return list(warnings_about_terms(recipe(update).update, RunFacts(**given)))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "distill"])  # it has no pull of its own
@pytest.mark.parametrize("term", [{"term": "kl"}, {"term": "masked_kl", "token_ids": [3]}], ids=["kl", "masked_kl"])
def test_two_pulls_to_the_reference_are_a_warning(rule: str, term: dict[str, Any]):
    weight = {"beta": 0.25} if rule in ("sparsepo", "listwise") else {"kl_coef": 0.25}
    (warning,) = warnings({"rule": rule, **weight, "terms": [term]})
    assert warning.startswith("update.terms[0]: the term compares with the reference")
    assert f"update.{next(iter(weight))} = 0.25: both act" in warning
    assert warnings({"rule": rule, **weight, "terms": [{**term, "to": "teacher"}]}) == []


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
@pytest.mark.parametrize(
    ("update", "facts", "source"),
    [
        ({"rule": "sparsepo"}, {"has_pairs": True}, "data.chosen_column"),
        ({"rule": "sparsepo"}, {}, "update.rule = sparsepo, which takes the best and the worst"),
        ({"rule": "superhf"}, {}, "update.filter.keep = top_k"),
        ({"rule": "grpo", "filter": {"keep": "threshold", "value": 0.5}}, {}, "update.filter.keep = threshold"),
        ({"rule": "grpo", "filter": {"keep": "top_fraction", "value": 0.5}}, {}, "update.filter.keep = top_fraction"),
    ],
)
def test_sampled_estimators_need_the_policys_own_samples(
    estimator: str, update: dict[str, Any], facts: dict[str, Any], source: str
):
    term = {"term": "kl", "to": "teacher", "estimator": estimator}
    found = warnings({**update, "terms": [{"term": "entropy"}, term]}, **facts)
    if estimator == "exact":
        assert found == []
    else:
        (warning,) = found
        assert warning.startswith(
            f"update.terms[1]: estimator = {estimator} estimates a KL from tokens that the policy"
        )
        assert source in warning


@pytest.mark.parametrize(
    "update", [{"rule": "superhf", "filter": None}, {"rule": "grpo", "filter": {"keep": "top_k", "value": 8}}]
)
def test_a_filter_that_keeps_all_is_no_selection(update: dict[str, Any]):
    assert warnings({**update, "terms": [{"term": "kl", "to": "teacher", "estimator": "k3"}]}) == []


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        ({"vocabulary_ids": [3]}, None),
        ({"vocabulary_ids": [3], "renormalise": False}, "renormalise = false: the sum over some ids of the vocabulary"),
        ({"token_ids": [3], "renormalise": False}, "renormalise = false does nothing without vocabulary_ids"),
    ],
)
def test_a_raw_sum_over_the_vocabulary_is_a_warning(keys: dict[str, Any], warned: str | None):
    found = warnings({"rule": "grpo", "terms": [{"term": "masked_kl", "to": "teacher", **keys}]})
    assert [warning.startswith(f"update.terms[0]: {warned}") for warning in found] == [True] * (warned is not None)


def test_a_custom_term_can_warn(tmp_path: Path):
    file = tmp_path / "warning.py"
    text = (RECIPES / "term_example.py").read_text()
    method = (
        "\n\n        def warnings(self, run, rule):\n"
        "            yield from super().warnings(run, rule)\n"
        '            yield f"floor = {self.floor:g}, {run.samples_per_prompt} samples, update.rule = {rule.rule}"\n'
    )
    file.write_text(text.replace('costs something.")\n', f'costs something.")\n{method}'))
    found = warnings({"rule": "grpo", "terms": [{"term": f"{file}:Floor", "coef": 0.0}]})
    assert [warning.partition(". ")[0] for warning in found] == [
        "update.terms[0]: coef = 0: the term costs its computation and does nothing",
        "update.terms[0]: floor = -5, 8 samples, update.rule = grpo",
    ]


def test_estimators_warn_where_older_weights_sample():
    def warned(estimator: str, **facts: Any) -> list[str]:
        update = {"rule": "grpo", "terms": [{"term": "kl", "estimator": estimator}]}
        return list(warnings_about_terms(recipe(update).update, replace(FACTS, **facts)))

    assert any("older policy" in warning for warning in warned("k1", samples_ahead=True))
    assert not any("older policy" in warning for warning in [*warned("exact", samples_ahead=True), *warned("k1")])


def test_a_span_compared_with_earlier_weights_says_how_old_they_are() -> None:
    recipe = load_recipe("quickstart", "update.terms=[{term: span, to: lagged, lag: 5}]")
    assert (recipe.update.keeps_lagged, recipe.update.lag) == (True, 5)
    warned = list(recipe.update.terms[0].warnings(FACTS, recipe.update))
    assert warned == []
    (other,) = load_recipe("quickstart", "update.terms=[{term: span, lag: 5}]").update.terms
    assert "lag = 5 has no effect with to = reference" in "\n".join(other.warnings(FACTS, recipe.update))


class Dated(TermSettings):
    """A term of one's own with a key of the same name."""

    lag: int = 3


def test_a_lag_of_ones_own_is_no_lag_of_a_frozen_model() -> None:
    assert list(Dated(term="mine.py:Dated").warnings(FACTS, load_recipe("quickstart").update)) == []
