"""Decide when an alarm of a run begins and ends, and warn about it.

The rule, the steps without gradient (`rlkl.training.watch`) and the hacking watch (`rlkl.tracking.hacking.watch`)
measure; this file decides. An alarm begins when its level reaches 1. It ends below `RELEASE`, so that one that wavers
at its limit warns once. A warning is printed when an alarm begins, not in each step.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)

RELEASE = 0.8
RULE_ALARMS = "update/alarms"
"""Metric: the alarms of the rule that are on."""
WATCH_WARNINGS = "watch/warnings"
"""Metric: the signals of the hacking watch that begin at this step."""


@dataclass(slots=True)
class Alarms:
    """The alarms of one source that are on, by name."""

    on: set[str] = field(default_factory=set)

    def measure(self, levels: Mapping[str, float]) -> list[str]:
        """Note the levels of a step and return the alarms that begin, in order. Those without a level stay as they are.

        With {"length": 1.2} the alarm length begins; it stays on at 0.9 and ends at 0.7.
        """
        before = set(self.on)
        for name, level in levels.items():
            if level >= 1:
                self.on.add(name)
            elif level < RELEASE:
                self.on.discard(name)
        return [name for name in levels if name in self.on - before]

    def hold(self, names: Collection[str]) -> list[str]:
        """Note all alarms that are on in a step and return those that begin, sorted. All others end."""
        return self.measure({**dict.fromkeys(self.on, 0.0), **dict.fromkeys(sorted(names), 1.0)})


def warn_of(texts: Mapping[str, str]) -> None:
    """Print one warning for each alarm that begins. ``texts``: the warning by the alarm's name."""
    for text in texts.values():
        _log.warning("%s", text)
