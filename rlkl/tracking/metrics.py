"""Every logged metric, defined once. ``docs/metrics.md`` is this registry rendered:

python -m rlkl.tracking.metrics > docs/metrics.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    """One metric. ``key`` may end in one placeholder: ``loss/<term>`` stands for ``loss/policy``, ``loss/kl``, ..."""

    key: str
    unit: str
    formula: str
    bad: str
    """What a bad value looks like, and what it usually means."""
    timing: bool = False
    """Measured on a clock: differs between two otherwise identical runs."""

    def matches(self, key: str) -> bool:
        prefix, placeholder, _ = self.key.partition("<")
        if not placeholder:
            return key == self.key
        return re.fullmatch(re.escape(prefix) + r"[^/\s]+", key) is not None


METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="reward/mean",
        unit="reward",
        formula="Mean over all scored rollouts of the step of the weighted sum of rewards.",
        bad="Flat from the start (the rule sees no spread, see reward/std), or falling.",
    ),
    MetricDefinition(
        key="reward/std",
        unit="reward",
        formula="Mean over prompts of the standard deviation (population) of a prompt's rewards.",
        bad="Near 0: the samples of a prompt all score alike, so group-relative advantages vanish.",
    ),
    MetricDefinition(
        key="reward/<name>",
        unit="reward",
        formula="Mean of one reward function over all scored rollouts, before its weight.",
        bad="One component rises while the others fall: the policy trades them, or exploits one.",
    ),
    MetricDefinition(
        key="reward/failed",
        unit="rollouts",
        formula="Rollouts whose reward function raised or returned no finite number.",
        bad="Above 0: read the log; such rollouts are not trained on.",
    ),
    MetricDefinition(
        key="kl/policy_to_reference",
        unit="nats per sequence",
        formula=(
            "Mean over the trained sequences of the sum over their response tokens of log policy - log reference, "
            "weights at the start of the step, tokens sampled by the policy (k1, unclipped; KL(policy || reference))."
        ),
        bad="Growing faster than the reward; clearly below 0 means that tokens and weights do not belong together.",
    ),
    MetricDefinition(
        key="kl/policy_to_reference_per_token",
        unit="nats per token",
        formula="The same differences summed over all trained response tokens, divided by their number.",
        bad="As above; use it to compare runs whose completions differ in length.",
    ),
    MetricDefinition(
        key="kl/exact_reference_to_policy",
        unit="nats per token",
        formula=(
            "KL(reference || policy) of the next-token distributions over the full vocabulary (a lower bound of it "
            "under update.kl_top_k), summed over the trained response tokens and divided by their number: mean over "
            "the step's optimizer steps, weights as they are in each."
        ),
        bad="Growing faster than the reward: raise the KL's coefficient. Near 0 throughout: the KL term decides.",
    ),
    MetricDefinition(
        key="entropy/policy",
        unit="nats per token",
        formula="Mean over trained response tokens of the policy's next-token entropy over the full vocabulary.",
        bad="Near 0 early on: exploration has ended. Rising without end: the policy dissolves.",
    ),
    MetricDefinition(
        key="rollout/mismatch_kl",
        unit="nats per token",
        formula=(
            "Mean over trained response tokens of the sampler's log-probability minus the learner's, same weights "
            "(k1 estimate of KL(sampler || learner))."
        ),
        bad="Above 1e-4 in float32 or 1e-2 in bfloat16: sampler and learner compute different models.",
    ),
    MetricDefinition(
        key="rollout/mismatch_max",
        unit="nats",
        formula="Largest absolute difference between sampler's and learner's log-probability of a response token.",
        bad="Above 1e-4 in float32 or 0.5 in bfloat16: as above, on at least one token.",
    ),
    MetricDefinition(
        key="rollout/tokens_per_s",
        unit="tokens per second",
        formula="Sampled tokens of the step divided by time/rollout_s.",
        bad="Falling at equal rollout/length_mean: workers starve or the machine is shared.",
        timing=True,
    ),
    MetricDefinition(
        key="rollout/truncated_fraction",
        unit="fraction",
        formula="Share of completions that ended at rollout.max_new_tokens instead of an end-of-sequence token.",
        bad="Above 0.2: raise rollout.max_new_tokens, or the reward judges unfinished answers.",
    ),
    MetricDefinition(
        key="rollout/empty_fraction",
        unit="fraction",
        formula="Share of completions whose text is empty once special tokens are removed.",
        bad="Above 0.05: the policy learns to say nothing; look at the samples and the reward.",
    ),
    MetricDefinition(
        key="rollout/length_mean",
        unit="tokens",
        formula="Mean number of sampled tokens per completion, end-of-sequence token included.",
        bad="Drifting to 1 or to rollout.max_new_tokens while the reward rises: length is being exploited.",
    ),
    MetricDefinition(
        key="rollout/rounds",
        unit="rounds",
        formula="Rounds of prompts drawn to fill the step (more than 1 only where the rule drops groups).",
        bad="At rollout.max_rounds step after step: most prompts are too easy or too hard.",
    ),
    MetricDefinition(
        key="similarity/meteor",
        unit="0 to 1",
        formula=(
            "Mean over tracking.similarity_pairs seeded pairs of completions of different prompts of METEOR, averaged "
            "over both directions; only equal words match where NLTK's WordNet is absent."
        ),
        bad=(
            "Rising far above its start, 0.3 and more on free text: the policy says the same whatever it is asked. "
            "Near 0 with a high rollout/empty_fraction means silence, not diversity."
        ),
    ),
    MetricDefinition(
        key="loss/total",
        unit="loss",
        formula="What was back-propagated: mean over the step's optimizer steps.",
        bad="Not a measure of progress under reinforcement (0 on the first on-policy step is normal); jumps are.",
    ),
    MetricDefinition(
        key="loss/<term>",
        unit="loss",
        formula="One named part of the loss, times its coefficient: mean over the step's optimizer steps.",
        bad="One term larger than the others by orders of magnitude: its coefficient decides the run.",
    ),
    MetricDefinition(
        key="optim/grad_norm",
        unit="L2 norm",
        formula="Global norm of the gradient before clipping: mean over the step's optimizer steps.",
        bad="Always far above learner.max_grad_norm (every step is clipped), or 0 (nothing is learned).",
    ),
    MetricDefinition(
        key="optim/lr",
        unit="learning rate",
        formula="Learning rate of the step's last optimizer step.",
        bad="0 before the end: the schedule is shorter than the run.",
    ),
    MetricDefinition(
        key="optim/skipped",
        unit="0 or 1",
        formula="1 when the rule selected no rollout, so no optimizer step was taken.",
        bad="Often 1: every group is uniform; choose prompts of middling difficulty.",
    ),
    MetricDefinition(
        key="update/clip_fraction_low",
        unit="fraction",
        formula="Share of response tokens whose ratio fell below the lower bound and whose gradient was clipped away.",
        bad="Above 0.2: the policy moves too far within a step; lower learner.lr, epochs or minibatches.",
    ),
    MetricDefinition(
        key="update/clip_fraction_high",
        unit="fraction",
        formula="Share of response tokens whose ratio rose above the upper bound and whose gradient was clipped away.",
        bad="Above 0.2: as above.",
    ),
    MetricDefinition(
        key="update/selected_fraction",
        unit="fraction",
        formula="Rollouts that the rule selected for training, divided by all scored rollouts of the step.",
        bad="Near 0 with rules that drop groups: generation is wasted.",
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
        formula="PPO: share of response tokens whose value moved by more than value_clip towards its return.",
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
        bad="Growing without end while held-out rewards stand still: the pairs are memorised.",
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
        key="weights/verified",
        unit="0 or 1",
        formula="1 when every engine's log-probs on the probe agree with the learner's after the publish.",
        bad="Anything but 1; a mismatch also stops the run and names the tensors.",
    ),
    MetricDefinition(
        key="weights/probe_max",
        unit="nats",
        formula="Largest absolute difference between an engine's and the learner's log-probs on the probe.",
        bad="Rising over the run, even below weights.tolerance: something accumulates in the engines.",
    ),
    MetricDefinition(
        key="weights/version",
        unit="version",
        formula="Version of the weights published at the end of the step; equals the number of finished steps.",
        bad="Not rising by 1 each step.",
    ),
    MetricDefinition(
        key="data/epoch",
        unit="epochs",
        formula="Prompts drawn so far, divided by the usable rows of the data source.",
        bad="Far above 1 on a small source: the policy may memorise prompts.",
    ),
    MetricDefinition(
        key="time/rollout_s",
        unit="seconds",
        formula="Waiting for generation.",
        bad="The bulk of the step is normal; add rollout workers to shorten it.",
        timing=True,
    ),
    MetricDefinition(
        key="time/reward_s",
        unit="seconds",
        formula="Waiting for rewards after generation.",
        bad="More than generation: the reward function is the bottleneck.",
        timing=True,
    ),
    MetricDefinition(
        key="time/learner_s",
        unit="seconds",
        formula="Frozen signals, credit and all optimizer steps.",
        bad="Far more than generation: raise learner.micro_batch_tokens as memory allows.",
        timing=True,
    ),
    MetricDefinition(
        key="time/publish_s",
        unit="seconds",
        formula="Sending the weights to all engines and proving that they arrived.",
        bad="A large share of the step: the model is large for this transport.",
        timing=True,
    ),
    MetricDefinition(
        key="time/step_s",
        unit="seconds",
        formula="The whole step, from drawing prompts to the publish.",
        bad="Rising over the run at equal rollout/length_mean.",
        timing=True,
    ),
    MetricDefinition(
        key="time/other_fraction",
        unit="fraction",
        formula="Share of time/step_s outside generation, reward and learner.",
        bad="Above 0.1 after the first steps: publishing or bookkeeping is slow.",
        timing=True,
    ),
    MetricDefinition(
        key="throughput/samples_per_s",
        unit="rollouts per second",
        formula="Scored rollouts of the step divided by time/step_s.",
        bad="Falling at equal rollout/length_mean.",
        timing=True,
    ),
)


def find_definition(key: str) -> MetricDefinition | None:
    """The definition of a logged key; an exact key wins over a pattern (``reward/mean`` over ``reward/<name>``)."""
    matching = [definition for definition in METRICS if definition.matches(key)]
    return min(matching, key=lambda definition: "<" in definition.key, default=None)


def check_known(keys: Iterable[str]) -> None:
    """Raises AssertionError for a metric without a definition: whoever logs a new one defines it in `METRICS`."""
    unknown = sorted(key for key in keys if find_definition(key) is None)
    assert not unknown, f"metrics without a definition: {', '.join(unknown)}; define them in rlkl/tracking/metrics.py"


def without_timings(record: Mapping[str, float]) -> dict[str, float]:
    """A record of ``metrics.jsonl`` without what a clock measured: equal for two runs of one recipe and seed."""

    def is_timing(key: str) -> bool:
        definition = find_definition(key)
        return definition is not None and definition.timing

    return {key: value for key, value in record.items() if not is_timing(key)}


def render_docs() -> str:
    """The registry as ``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Written by `python -m rlkl.tracking.metrics > docs/metrics.md`; edit `rlkl/tracking/metrics.py` instead.",
        "",
        "The same keys stand in `metrics.jsonl` (one JSON object per training step) and in W&B. `step` counts finished",
        "training steps from 1. Metrics marked with a clock differ between two otherwise identical runs.",
    ]
    section = ""
    for definition in sorted(METRICS, key=lambda definition: definition.key.split("/")[0]):
        if definition.key.split("/")[0] != section:
            section = definition.key.split("/")[0]
            lines += ["", f"## {section}", "", "| key | unit | formula | a bad value |", "|---|---|---|---|"]
        unit = f"{definition.unit} (clock)" if definition.timing else definition.unit
        formula = definition.formula.replace("|", "\\|")
        lines.append(f"| `{definition.key}` | {unit} | {formula} | {definition.bad} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render_docs())
