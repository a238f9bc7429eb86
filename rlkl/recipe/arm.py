"""The arm of a run: runs of one arm differ in their seeds only."""

from __future__ import annotations

import hashlib
import json

from rlkl.recipe.recipe import Recipe

NOT_OF_AN_ARM = ("seed", "run", "eval", "tracking", "checkpoint", "cluster")
"""Keys and sections in which the runs of one arm may differ: they change no sample, or are the seed."""

_DIGITS = 6


def arm_of(recipe: Recipe) -> str:
    """Return ``tracking.arm``; if it is left out, the rule, its variant, and a hash of all that defines an arm.

    A sweep names its arms. Without one, two runs get one label only if their recipes differ in nothing but the seed:
    ``grpo dapo 3fa2c1``.
    """
    if recipe.tracking.arm is not None:
        return recipe.tracking.arm
    values = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in NOT_OF_AN_ARM}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_DIGITS]
    return " ".join(part for part in (rule_of(recipe), variant_of(recipe), digest) if part)


def rule_of(recipe: Recipe) -> str:
    """Return the name of the rule; of a custom rule without the folders of its file."""
    return recipe.update.rule.rpartition("/")[2]


def variant_of(recipe: Recipe) -> str | None:
    """Return the variant of the rule; None if the rule has no variants."""
    return getattr(recipe.update, "variant", None)
