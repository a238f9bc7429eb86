"""The metrics of the rule listwise. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.metrics import SELECTED_FRACTION

METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="loss/listwise",
        unit="nats",
        formula="Mean over lists of the sum over places of alpha times (logsumexp of the remaining scores - the own).",
        bad="Not falling below its value in the first steps: nothing is learned.",
    ),
    MetricDefinition(
        key="update/rank_accuracy",
        unit="fraction",
        formula="Share of a list's pairs of unequal reward whose better response has the larger implicit reward.",
        bad="At 0.5 or below after the first steps (0 before the first, where nothing differs); 1 early: memorised.",
    ),
    MetricDefinition(
        key="update/rank_margin",
        unit="nats",
        formula="Mean over lists of the implicit reward of the best response minus that of the worst; ties: the mean.",
        bad="Growing without end while held-out rewards do not change: the lists are memorised.",
    ),
    MetricDefinition(
        key="update/best_implicit_reward",
        unit="nats",
        formula="Mean over lists of the implicit reward of the response of highest reward; ties: their mean.",
        bad="Falling while update/rank_margin grows: all responses lose probability, and it goes somewhere else.",
    ),
    MetricDefinition(
        key="update/best_weight",
        unit="fraction",
        formula="Mean over lists of alpha of the response of highest reward, softmax(reward / tau); ties: their sum.",
        bad="Near 1: only the best counts; raise update.tau. Near 1 / list size: rewards decide the order alone.",
    ),
    MetricDefinition(
        key="update/best_length_gap",
        unit="tokens",
        formula="Mean over lists of the length of the response of highest reward minus the mean length of the list.",
        bad="Far from 0: with update.over_tokens = sum the policy may learn length.",
    ),
    MetricDefinition(
        key="update/tied_fraction",
        unit="fraction",
        formula="Share of a list's responses whose reward another response of the list has, mean over lists.",
        bad="Near 1: the reward separates two classes at most, and most places of the order are draws.",
    ),
    SELECTED_FRACTION,
)
