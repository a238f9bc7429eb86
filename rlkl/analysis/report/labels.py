"""Short names of arms, for legends and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlkl.analysis.runs import Arm
from rlkl.recipe.core_yaml import write_value

RULE_KEY = "update.rule"
_COLUMNS = 6


def short_labels(arms: Sequence[Arm]) -> list[str]:
    """Return a name for each arm: its rule if rules differ, and the keys in which it differs from others of that rule.

    An arm whose short name is not its own keeps its full label.
    """
    names = []
    for arm in arms:
        keys = _keys_within_rule(arms, arm)
        leaves = Counter(key.rpartition(".")[2] for key in keys)
        parts = [str(arm.values[RULE_KEY])] if RULE_KEY in arm.values else []
        for key in keys:
            if key in arm.values:
                leaf = key.rpartition(".")[2]
                parts.append(f"{leaf if leaves[leaf] == 1 else key} {write_value(arm.values[key])}")
        names.append(", ".join(parts) or arm.label)
    counts = Counter(names)
    return [name if counts[name] == 1 else arm.label for name, arm in zip(names, arms, strict=True)]


def telling_keys(arms: Sequence[Arm]) -> list[str]:
    """Return the keys that tell the arms apart best, at most a few: columns of the table of arms."""
    keys = dict.fromkeys(key for arm in arms for key in arm.values if key == RULE_KEY)
    keys |= dict.fromkeys(key for arm in arms for key in _keys_within_rule(arms, arm))
    keys |= dict.fromkeys(key for arm in arms for key in arm.values if not key.startswith("update."))
    return list(keys)[:_COLUMNS]


def _keys_within_rule(arms: Sequence[Arm], arm: Arm) -> list[str]:
    """Return the keys other than the rule in which the arms with this arm's rule differ."""
    peers = [other for other in arms if other.values.get(RULE_KEY) == arm.values.get(RULE_KEY)]
    keys = dict.fromkeys(key for peer in peers for key in peer.values if key != RULE_KEY)
    return [key for key in keys if len({write_value(peer.values.get(key)) for peer in peers}) > 1]
