"""Leave a model card beside the policy when a run ends."""

from __future__ import annotations

import logging
from pathlib import Path

from rlkl.analysis.card.card import CARD_FILE, write_card
from rlkl.analysis.card.origin import write_origin
from rlkl.analysis.runs import read_run

_log = logging.getLogger(__name__)


def leave_card(run_dir: Path) -> None:
    """Write ``policy/README.md`` and the versions of the software. A failure is a warning: the policy is complete."""
    try:
        write_origin(run_dir)
        card = write_card(read_run(run_dir))
        (run_dir / "policy" / CARD_FILE).write_text(card, encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning(
            "no model card was written beside the policy (%s: %s); rlkl push --dry-run writes it again",
            type(error).__name__,
            error,
        )
