"""Checks of corrected samples against the rest of a recipe. No torch here."""

from __future__ import annotations


def check_turns(rounds: int, *, schedule: str, placement: str) -> None:
    """Raise ValueError if engines and learner do not take turns, which ``update.corrections`` needs."""
    if rounds and schedule != "alternate":
        raise ValueError(
            f"rollout.schedule = {schedule}, but with update.corrections = {rounds} the learner compares the samples "
            "of a step with the teacher before it trains on them, so it cannot step meanwhile; set rollout.schedule: "
            "alternate, or update.corrections: 0"
        )
    if rounds and placement == "colocated":
        raise ValueError(
            f"rollout.placement = colocated, but with update.corrections = {rounds} the engines sample on after the "
            "learner has worked, and engines that sleep while it works lose their weights; set rollout.placement: "
            "separate, or update.corrections: 0"
        )
