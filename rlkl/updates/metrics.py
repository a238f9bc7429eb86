"""The metrics of the rules. No torch here.

Each rule's folder has a ``metrics.py`` with its ``METRICS``, the rows of the table on its page. Definitions that
several rules share are here.
"""

from __future__ import annotations

from rlkl.types import MetricDefinition

LOSS_POLICY = MetricDefinition(
    key="loss/policy",
    unit="loss",
    formula="The surrogate: sum over response tokens of weight times loss. On policy only its gradient counts.",
    bad="Not finite.",
)

LOSS_KL = MetricDefinition(
    key="loss/kl",
    unit="loss",
    formula="update.kl_coef times the KL to the reference, each token weighted as in the rule's own loss.",
    bad="Growing without end: raise update.kl_coef. As large as the rule's own loss: the KL decides the run.",
)

EXACT_KL = MetricDefinition(
    key="kl/exact_reference_to_policy",
    unit="nats per token",
    formula=(
        "KL(reference || policy) of the next-token distributions over the full vocabulary (a lower bound of it "
        "under update.kl_top_k), summed over the trained response tokens and divided by their number: mean over "
        "the step's optimizer steps, weights as they are in each."
    ),
    bad="Growing faster than the reward: raise the KL's coefficient. Near 0 throughout: the KL term decides.",
)

CLIP_FRACTION_LOW = MetricDefinition(
    key="update/clip_fraction_low",
    unit="fraction",
    formula="Share of response tokens whose ratio fell below the lower bound and whose gradient was clipped away.",
    bad="Above 0.2: the policy moves too far within a step; lower learner.lr, epochs or minibatches.",
)

CLIP_FRACTION_HIGH = MetricDefinition(
    key="update/clip_fraction_high",
    unit="fraction",
    formula="Share of response tokens whose ratio rose above the upper bound and whose gradient was clipped away.",
    bad="Above 0.2: as above.",
)

SELECTED_FRACTION = MetricDefinition(
    key="update/selected_fraction",
    unit="fraction",
    formula="Rollouts that the rule selected for training, divided by all scored rollouts of the step.",
    bad="Near 0 with rules that drop groups: generation is wasted.",
)

CORRECTION: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="correction/weight_mean",
        unit="ratio",
        formula="With update.correction: mean weight of the response tokens, f(proximal / sampler).",
        bad="Far from 1: sampler and learner differ systematically.",
    ),
    MetricDefinition(
        key="correction/weight_max",
        unit="ratio",
        formula="With update.correction: largest weight of a response token.",
        bad="At update.correction_high in every step: the sampler is far from the learner.",
    ),
    MetricDefinition(
        key="correction/cut_fraction",
        unit="fraction",
        formula="With update.correction: share of the response tokens whose weight was limited or set to 0.",
        bad="Above 0.2 (a warning): much of the batch is not trained as it was sampled.",
    ),
    MetricDefinition(
        key="rollout/ess",
        unit="fraction",
        formula=(
            "With update.correction: effective sample size, (sum w)^2 / sum w^2 over the weights w of the response "
            "tokens, divided by their number."
        ),
        bad="Below 0.8: few tokens carry the gradient.",
    ),
)
