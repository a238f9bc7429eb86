"""The metrics of SparsePO. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.metrics import EXACT_KL

METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="loss/preference",
        unit="nats",
        formula="Mean over pairs of -log sigmoid(margin): log 2 = 0.693 at the start.",
        bad="Staying at 0.693: nothing is learned.",
    ),
    MetricDefinition(
        key="loss/l1",
        unit="loss",
        formula="The L1 terms of the masks: update.l1_reward and update.l1_kl times the mean masks.",
        bad="Larger than loss/preference: the masks decide the run.",
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
        formula="Update.beta times the mean reward mask over the trained response tokens.",
        bad="Far from update.beta: masks act as another beta; compare such runs with one whose beta is this value.",
    ),
    MetricDefinition(
        key="mask/kl_effective_beta",
        unit="nats per nat",
        formula="Update.beta times the mean KL mask over the trained response tokens.",
        bad="As above.",
    ),
    MetricDefinition(
        key="mask/dead_pairs",
        unit="pairs",
        formula="Pairs of an optimizer step whose masks are all 0, mean over optimizer steps: their loss is log 2.",
        bad="Above 0 for long: such pairs teach nothing.",
    ),
    EXACT_KL,
)
