"""Metrics that only some update rules log."""

from __future__ import annotations

from rlkl.tracking.metrics.definition import MetricDefinition

RULE_METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="update/alarms",
        unit="alarms",
        formula="Warnings of the rule's own that are on; each is told in the log when it sets in (rlkl/updates).",
        bad="Above 0: read the log.",
    ),
    MetricDefinition(
        key="update/kl_coef",
        unit="reward per nat",
        formula="PPO: the weight of the per-token KL in this step's rewards, as steered so far.",
        bad="Rising or falling without end: update.kl_target cannot be held; see kl/policy_to_reference.",
    ),
    MetricDefinition(
        key="update/trained_sequences",
        unit="sequences",
        formula="PPO: trained sequences with at least one response token.",
        bad="Far below prompts_per_step * samples_per_prompt: completions are empty or filtered out.",
    ),
    MetricDefinition(
        key="update/value_explained_variance",
        unit="fraction",
        formula=(
            "PPO: 1 - Var(return - value) / Var(return) over the step's response tokens, values at the start of the "
            "step; 0 where returns do not vary."
        ),
        bad="At or below 0 after the first steps: the critic is no better than a constant; raise its learning.",
    ),
    MetricDefinition(
        key="update/value_clip_fraction",
        unit="fraction",
        formula=(
            "PPO: share of response tokens whose value moved by more than value_clip since the start of the step, "
            "towards its return or past it, so that the clip takes its gradient."
        ),
        bad="Above 0.2: the critic is held back; raise update.value_clip or lower learner.lr.",
    ),
    MetricDefinition(
        key="perception/kl",
        unit="nats per token",
        formula=(
            "PAPO: mean over response tokens of image sequences of k3 (at most 10) of the policy given the image "
            "against given the corrupted image (KL(clean || corrupted)); the loss takes it off."
        ),
        bad="Above 0.3, or leaping: the loss is being hacked. Near 0: answers do not depend on the image.",
    ),
    MetricDefinition(
        key="perception/kl_variance",
        unit="squared nats",
        formula="PAPO: mean over image sequences of the variance (population) of perception/kl within a response.",
        bad="Above three times its median so far: a few odd tokens make up the KL.",
    ),
    MetricDefinition(
        key="perception/entropy_clean",
        unit="nats per token",
        formula="PAPO: mean negative log-probability of sampled tokens given the image.",
        bad="Rising together with perception/entropy_corrupted: answers drift into unlikely tokens.",
    ),
    MetricDefinition(
        key="perception/entropy_corrupted",
        unit="nats per token",
        formula="PAPO: the same given the corrupted image.",
        bad="As above.",
    ),
    MetricDefinition(
        key="update/preference_accuracy",
        unit="fraction",
        formula="Share of pairs whose chosen response is worth more than the rejected one (margin above 0).",
        bad="At 0.5 or below after the first steps (0 before the first, where nothing differs); 1 early: memorised.",
    ),
    MetricDefinition(
        key="update/preference_margin",
        unit="nats",
        formula="Mean over pairs of the implicit reward of the chosen response minus that of the rejected one.",
        bad="Growing without end while held-out rewards do not change: the pairs are memorised.",
    ),
    MetricDefinition(
        key="update/chosen_implicit_reward",
        unit="nats",
        formula=(
            "Mean over pairs of what the chosen response is worth: update.beta * sum over its tokens of mask * (log "
            "policy - log reference), plus mask * KL(reference || policy) unless update.mask is none."
        ),
        bad="Falling while the margin grows: both responses lose probability, and it goes somewhere else.",
    ),
    MetricDefinition(
        key="update/chosen_length_gap",
        unit="tokens",
        formula="Mean over pairs of the chosen response's length minus that of the rejected one.",
        bad="Far from 0: responses are worth sums over tokens, so the policy may learn length.",
    ),
    MetricDefinition(
        key="mask/reward_zero_fraction",
        unit="fraction",
        formula="Share of a response's tokens whose reward mask is exactly 0, mean over the trained sequences.",
        bad="At 1: the masks are dead and nothing is learned; lower update.l1_reward, or update.mask_init=ones.",
    ),
    MetricDefinition(
        key="mask/kl_zero_fraction",
        unit="fraction",
        formula="Share of a response's tokens whose KL mask is exactly 0, mean over the trained sequences.",
        bad="At 1: no token is held to the reference any more; lower update.l1_kl.",
    ),
    MetricDefinition(
        key="mask/reward_effective_beta",
        unit="nats per nat",
        formula="update.beta times the mean reward mask over the trained response tokens.",
        bad="Far from update.beta: masks act as another beta; compare such runs with one whose beta is this value.",
    ),
    MetricDefinition(
        key="mask/kl_effective_beta",
        unit="nats per nat",
        formula="update.beta times the mean KL mask over the trained response tokens.",
        bad="As above.",
    ),
    MetricDefinition(
        key="mask/dead_pairs",
        unit="pairs",
        formula="Pairs of an optimizer step whose masks are all 0, mean over optimizer steps: their loss is log 2.",
        bad="Above 0 for long: such pairs teach nothing.",
    ),
    MetricDefinition(
        key="time/corrupted_s",
        unit="seconds",
        formula=(
            "Corrupting the pictures and scoring the responses given them, once a step: a part of time/learner_s. What "
            "update.recompute does besides, in each pass, is not in it."
        ),
        bad="Far above a fifth of time/step_s: lower update.corruption's cost, or the pictures' size.",
        timing=True,
    ),
    MetricDefinition(
        key="rule/<name>",
        unit="the rule's own",
        formula="What an update rule from outside rlkl logs under this name, summed over micro-batches.",
        bad="Ask its author.",
    ),
)
