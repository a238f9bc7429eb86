"""The metrics of ``update.dro``. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition

METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="dro/groups",
        unit="groups",
        formula="With update.dro: groups of the step that get a weight.",
        bad="0 or 1: there is nothing to weigh. Few of rollout.prompts_per_step: most groups have equal rewards.",
    ),
    MetricDefinition(
        key="dro/ess",
        unit="fraction",
        formula=(
            "With update.dro: effective sample size of the groups' weights w, (sum w)^2 / sum w^2, divided by their "
            "number."
        ),
        bad="Below 0.3: few groups carry the gradient; raise update.dro.temperature. Always 1: it is too high to act.",
    ),
    MetricDefinition(
        key="dro/weight_max",
        unit="ratio",
        formula="With update.dro: the largest weight of a group, after the weights were cut and scaled to mean 1.",
        bad="Near dro/groups: one prompt has the whole weight.",
    ),
    MetricDefinition(
        key="dro/tail_reward",
        unit="reward",
        formula="With update.dro: mean over the 30 % of the step's groups of lowest mean reward (rounded up) of that.",
        bad="Not rising, or falling while reward/mean rises: the weights do not help the hard prompts.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="dro/soft_worst_reward",
        unit="reward",
        formula=(
            "With update.dro: minus the moving soft maximum of the groups' losses, -r log of the moving average of "
            "mean(exp(-reward / r)), r = update.dro.temperature. Between the mean and the worst reward of the groups."
        ),
        bad="Far below the rewards of a step: earlier steps had harder groups, and the cut acts less.",
    ),
)
