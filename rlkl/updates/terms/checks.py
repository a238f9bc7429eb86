"""Names and warnings of the terms in ``update.terms``, before anything is built. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlkl.errors import RecipeError
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.settings import TermSettings

if TYPE_CHECKING:
    from rlkl.updates.base_settings import RuleSettings


def curve_names(terms: Sequence[TermSettings]) -> list[str]:
    """Return the names of the terms' curves ``loss/<name>``.

    A name that comes again is numbered from the second term on: ``kl_reference_2``.
    """
    names: list[str] = []
    for term in terms:
        name, number = term.name or term.default_name, 1
        while (numbered := name if number == 1 else f"{name}_{number}") in names:
            number += 1
        names.append(numbered)
    return names


def check_names(rule: RuleSettings) -> None:
    """Raise `RecipeError` if the curve of an added term is that of the whole loss or of one of the rule's own terms."""
    for number, name in enumerate(curve_names(rule.terms)):
        key = f"update.terms[{number}].name"
        given = f"{key} = '{name}'" if rule.terms[number].name else f"{key} is not set, and its default is '{name}'"
        if name == "total":
            raise RecipeError(f"{given}: loss/total is the curve of the whole loss. Set {key} to another name")
        if name in rule.own_terms:
            raise RecipeError(
                f"{given}: update.rule = {getattr(rule, 'rule', type(rule).__name__)} has a term named {name} itself, "
                f"and both would share the curve loss/{name}. Set {key} to another name; the rule's own are "
                f"{', '.join(sorted(rule.own_terms))}"
            )


def check_one_replay(rule: RuleSettings) -> None:
    """Raise `RecipeError` if several terms replay samples: each would train on those of the others, too."""
    numbers = [number for number, term in enumerate(rule.terms) if term.term == "replay"]
    if len(numbers) > 1:
        raise RecipeError(
            f"update.terms[{numbers[0]}] and update.terms[{numbers[1]}] are both replay, and a step has the samples "
            "of one. Keep one; its cross_entropy_coef adds the cross-entropy"
        )


def check_wordings(rule: RuleSettings, *, has_pairs: bool) -> None:
    """Raise `RecipeError` if several terms add other wordings of a prompt, or one does and nothing is sampled."""
    numbers = [number for number, term in enumerate(rule.terms) if term.wording_column is not None]
    if len(numbers) > 1:
        raise RecipeError(
            f"update.terms[{numbers[0]}] and update.terms[{numbers[1]}] both add another wording of each prompt, and "
            "each would train on those of both. Keep one"
        )
    if numbers and has_pairs:
        raise RecipeError(
            f"update.terms[{numbers[0]}] compares two wordings on responses that the policy sampled, and with "
            "data.chosen_column nothing is sampled. Leave the term out, or take a rule that samples"
        )


def warnings_about_terms(rule: RuleSettings, run: RunFacts) -> Iterator[str]:
    """Warn about each term of a rule, and about terms that are listed twice; see `TermSettings.warnings`."""
    for number, term in enumerate(rule.terms):
        key = f"update.terms[{number}]"
        yield from (f"{key}: {warning}" for warning in term.warnings(run, rule))
        if term in rule.terms[:number]:
            first = rule.terms.index(term)
            yield f"{key} repeats update.terms[{first}]: both act. Leave one out, or give one another coef"
