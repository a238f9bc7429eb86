"""The metrics of an evaluation on held-out prompts."""

from __future__ import annotations

from rlkl.types import MetricDefinition

EVAL_METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="eval/mean",
        unit="reward",
        formula="Mean over all sampled completions of the weighted sum of the evaluation's rewards, unnormalised.",
        bad="Falling or flat while reward/mean rises: the policy learns its prompts by heart.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="eval/mean_se",
        unit="reward",
        formula="Standard error of eval/mean, clustered by prompt: sqrt(G/(G-1) sum over the G prompts of r^2) / N.",
        bad="As large as the change that you want to see: raise eval.limit; eval.samples helps less.",
    ),
    MetricDefinition(
        key="eval/reward_worst_tenth",
        unit="reward",
        formula=(
            "Mean over the tenth of the prompts (rounded up) with the lowest mean of the weighted sum of rewards; from "
            "ten prompts on. Prompts are chosen by the same samples, so few samples make it too low: compare runs of "
            "equal eval.samples."
        ),
        bad="Falling or flat while eval/mean rises: the policy gains on easy prompts only; try update.dro.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="eval/greedy",
        unit="reward",
        formula="Mean over prompts of the weighted sum of rewards of the greedy completion.",
        bad="Far below eval/mean: the mode of the policy is worse than its samples, as with endless repetition.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="eval/greedy_se",
        unit="reward",
        formula="Standard error of eval/greedy over prompts.",
        bad="See eval/mean_se.",
    ),
    MetricDefinition(
        key="eval/pass@<k>",
        unit="probability",
        formula=(
            "Mean over prompts of 1 - C(n-c, k) / C(n, k), with c of n samples right; k = 1, 2, 4, ... up to "
            "eval.samples. Only if every sum of rewards is 0 or 1."
        ),
        bad="Falling for large k while pass@1 rises: the policy becomes surer of what it could do before.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="eval/kl",
        unit="nats per sequence",
        formula=(
            "Mean over all sampled completions of the sum of log policy - log reference (k1), both at temperature 1. "
            "Only if the run keeps a reference and eval.temperature is 1."
        ),
        bad="See kl/policy_to_reference.",
    ),
    MetricDefinition(
        key="eval/kl_se",
        unit="nats per sequence",
        formula="Standard error of eval/kl, clustered by prompt.",
        bad="See eval/mean_se.",
    ),
    MetricDefinition(
        key="eval/length_mean",
        unit="tokens",
        formula="Mean length of the sampled completions.",
        bad="See rollout/length_mean.",
    ),
    MetricDefinition(
        key="eval/truncated_fraction",
        unit="fraction",
        formula="Share of the sampled completions that were cut off at rollout.max_new_tokens.",
        bad="See rollout/truncated_fraction.",
    ),
    MetricDefinition(
        key="eval/failed",
        unit="scores",
        formula="Scores of sampled and greedy completions that a reward function failed to give.",
        bad="Above 0: the means are over fewer completions. The log has the first failure.",
    ),
    MetricDefinition(
        key="eval/<name>_se",
        unit="reward",
        formula="Standard error of eval/<name>, clustered by prompt.",
        bad="See eval/mean_se.",
    ),
    MetricDefinition(
        key="eval/<name>",
        unit="reward",
        formula="Mean of one reward or monitor over the sampled completions that it scored, before its weight.",
        bad="A monitor falls while eval/mean rises: the policy exploits the rewards that it is trained on.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="eval/<name>/<component>_se",
        unit="reward",
        formula="Standard error of eval/<name>/<component>, clustered by prompt.",
        bad="See eval/mean_se.",
    ),
    MetricDefinition(
        key="eval/<name>/<component>",
        unit="reward",
        formula="Mean of a named component of a reward or monitor over the completions for which it gave one.",
        bad="As above.",
    ),
    MetricDefinition(
        key="time/eval_s",
        unit="seconds",
        formula="The evaluation: sampling, scoring and the KL. No part of time/step_s.",
        bad="Large beside the steps between two evaluations: raise eval.every, or lower eval.limit.",
        timing=True,
    ),
)
