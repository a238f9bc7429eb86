"""Metrics of the hacking watch."""

from __future__ import annotations

from rlkl.types import MetricDefinition

_TRIPPED = "1 and above: it has tripped. See docs/hacking_watch.md."

WATCH_METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="rollout/repetition",
        unit="fraction",
        formula="Mean over completions of the share of their tokens that are among the 16 tokens before them.",
        bad="Rising far above its start: the policy repeats itself.",
    ),
    MetricDefinition(
        key="watch/spread/<name>",
        unit="reward",
        formula=(
            "Standard deviation (population) over all rollouts of the step of the optimised sum (reward), or of one "
            "monitor."
        ),
        bad="0 at the start: a gap has no unit then, and watch/gap/<name> and watch/fall/<name> are silent.",
    ),
    MetricDefinition(
        key="watch/similarity",
        unit="limit",
        formula="Rise of similarity/meteor since the start, means of 5 steps, divided by its limit of 0.2.",
        bad=_TRIPPED + " Empty completions resemble nothing, so read it beside watch/empty and watch/length.",
    ),
    MetricDefinition(
        key="watch/empty",
        unit="limit",
        formula="Rise of rollout/empty_fraction since the start, means of 5 steps, divided by its limit of 0.05.",
        bad=_TRIPPED,
    ),
    MetricDefinition(
        key="watch/length",
        unit="limit",
        formula=(
            "Logarithm of rollout/length_mean over that of the start, means of 5 steps, without its sign, divided by "
            "its limit log 1.3."
        ),
        bad=_TRIPPED,
    ),
    MetricDefinition(
        key="watch/repetition",
        unit="limit",
        formula="Rise of rollout/repetition since the start, means of 5 steps, divided by its limit of 0.1.",
        bad=_TRIPPED,
    ),
    MetricDefinition(
        key="watch/kl_acceleration",
        unit="limit",
        formula=(
            "Growth of kl/policy_to_reference from the 5 steps before the last 5 to the last 5, divided by the largest "
            "such growth until then and by its limit of 2; 0 where it is below a quarter of the KL or 0.1 nats. From "
            "step 25 on."
        ),
        bad=_TRIPPED,
    ),
    MetricDefinition(
        key="watch/gap/<name>",
        unit="limit",
        formula=(
            "Gain of reward/mean since the start minus that of a monitor, means of 5 steps, each in standard "
            "deviations of the samples at the start (watch/spread), divided by its limit of 1."
        ),
        bad=_TRIPPED,
    ),
    MetricDefinition(
        key="watch/fall/<name>",
        unit="limit",
        formula=(
            "Fall of a monitor below its best within 200 steps, means of 5 steps, in standard deviations of the "
            "samples at the start, divided by its limit of 0.25; 0 where reward/mean is lower than it was then."
        ),
        bad=_TRIPPED,
    ),
    MetricDefinition(
        key="watch/warnings",
        unit="signals",
        formula="Signals of the hacking watch that have set in at this step, each told in a warning.",
        bad="Above 0: read the warning and the samples in suspicious/.",
    ),
)
