"""Every logged metric, defined once. `rlkl.tracking.metrics.pages` writes the pages that show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlkl.tracking.metrics.curriculum import CURRICULUM_METRICS
from rlkl.tracking.metrics.evaluation import EVAL_METRICS
from rlkl.tracking.metrics.watch import WATCH_METRICS
from rlkl.types import MetricDefinition
from rlkl.updates.distill.metrics import METRICS as DISTILL
from rlkl.updates.dro.metrics import METRICS as DRO
from rlkl.updates.grpo.metrics import METRICS as GRPO
from rlkl.updates.listwise.metrics import METRICS as LISTWISE
from rlkl.updates.papo.metrics import METRICS as PAPO
from rlkl.updates.ppo.metrics import METRICS as PPO
from rlkl.updates.sparsepo.metrics import METRICS as SPARSEPO
from rlkl.updates.superhf.metrics import METRICS as SUPERHF

RULE_METRICS: Mapping[str, tuple[MetricDefinition, ...]] = {
    "distill": DISTILL,
    "grpo": GRPO,
    "listwise": LISTWISE,
    "papo": PAPO,
    "ppo": PPO,
    "sparsepo": SPARSEPO,
    "superhf": SUPERHF,
}
"""The metrics of each rule, in the order of its page."""

METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="reward/mean",
        unit="reward",
        formula="Mean over all scored rollouts of the step of the weighted sum of rewards, before any normalisation.",
        bad="Flat from the start (the rule sees no spread, see reward/std), or falling.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="reward/std",
        unit="reward",
        formula=(
            "Mean over prompts of the standard deviation (population) of a prompt's rewards, before any normalisation."
        ),
        bad="Near 0: the samples of a prompt all score alike, so group-relative advantages vanish.",
    ),
    MetricDefinition(
        key="reward/<name>",
        unit="reward",
        formula=(
            "Mean of one reward function over the rollouts that it scored, before its weight: those on which it failed "
            "or abstained do not count."
        ),
        bad="One rises while the others fall: the policy trades them, or exploits one.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="reward/<name>/<component>",
        unit="reward",
        formula="Mean of a named component of that reward over the rollouts for which it gave one.",
        bad="As above, between the components of one reward.",
    ),
    MetricDefinition(
        key="reward/failed",
        unit="scores",
        formula=(
            "Scores that a reward function, monitors included, failed to give: it raised, took too long, crashed, ran "
            "out of memory, or returned nothing usable. Each is in failures/step_<step>.jsonl."
        ),
        bad="Above 0: read them. rewards[].on_error decides what becomes of the sample, never a silent 0.",
    ),
    MetricDefinition(
        key="reward/dropped",
        unit="rollouts",
        formula="Rollouts without a reward, which rules do not see: dropped by rewards[].on_error, or all abstained.",
        bad="A large share of the step: generation is wasted, and what is left may not be a fair sample.",
    ),
    MetricDefinition(
        key="monitor/<name>",
        unit="reward",
        formula="Mean of a reward with role: monitor over the rollouts that it scored. It is never optimised.",
        bad="Falling while reward/mean rises: the policy exploits the rewards that it is trained on.",
        higher_is_better=True,
    ),
    MetricDefinition(
        key="monitor/<name>/<component>",
        unit="reward",
        formula="Mean of a named component of that monitor over the rollouts for which it gave one.",
        bad="As above.",
    ),
    MetricDefinition(
        key="kl/policy_to_reference",
        unit="nats per sequence",
        formula=(
            "Mean over all rollouts of the step, trained on or not, of the sum over their response tokens of "
            "log policy - log reference, weights at the start of the step, tokens sampled by the policy (k1, "
            "unclipped; KL(policy || reference)). Under one_step_off and stream each token counts policy / sampler "
            "times."
        ),
        bad="Growing faster than the reward; clearly below 0 means that tokens and weights do not belong together.",
    ),
    MetricDefinition(
        key="kl/policy_to_reference_per_token",
        unit="nats per token",
        formula="The same differences summed over all response tokens, divided by their number.",
        bad="As above; use it to compare runs whose completions differ in length.",
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
        formula="Share of completions that ended at rollout.max_new_tokens instead of a stop token or text.",
        bad="Above 0.2: raise rollout.max_new_tokens, or the reward judges unfinished answers.",
    ),
    MetricDefinition(
        key="rollout/equal_fraction",
        unit="fraction",
        formula="Share of the step's prompts whose rewards are all equal, before any normalisation.",
        bad="Near 1: most prompts have advantages of 0, and nothing is learned from them.",
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
        formula="Mean number of sampled tokens per completion, the stop token included.",
        bad="Drifting to 1 or to rollout.max_new_tokens while the reward rises: length is being exploited.",
    ),
    MetricDefinition(
        key="rollout/rounds",
        unit="rounds",
        formula="Rounds of prompts drawn to fill the step (more than 1 only where the rule drops groups).",
        bad="At rollout.max_rounds step after step: most prompts are too easy or too hard.",
    ),
    MetricDefinition(
        key="rollout/staleness_mean",
        unit="versions",
        formula="Mean over trained tokens of the step's version of the weights minus the version that sampled them.",
        bad="Near rollout.max_staleness, with a growing rollout/mismatch_kl: lower it, or compare with alternate.",
    ),
    MetricDefinition(
        key="rollout/staleness_max",
        unit="versions",
        formula="Largest such difference: 0 under alternate, 1 under one_step_off, up to rollout.max_staleness.",
        bad="It cannot exceed the bound of the schedule: the run stops before.",
    ),
    MetricDefinition(
        key="similarity/meteor",
        unit="0 to 1",
        formula=(
            "Mean over tracking.similarity_pairs seeded pairs of completions of different prompts of METEOR, averaged "
            "over both directions; only equal words match where NLTK's WordNet is absent."
        ),
        bad=(
            "Rising far above its start, 0.3 and more on free text: the policy gives the same answer to every prompt. "
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
        key="term/sequences",
        unit="sequences",
        formula="Trained sequences of the step; only with update.terms.",
        bad="Far below the sequences sampled: most were filtered out.",
    ),
    MetricDefinition(
        key="term/<name>",
        unit="as the term defines it",
        formula="A metric of a term of update.terms: kl_reference_nats is the KL of kl_reference, nats per token.",
        bad="A KL that grows step after step: raise the term's coef.",
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
        key="optim/fault",
        unit="0 or 1",
        formula="1 when the step was skipped because a loss, gradient or log-prob was not finite (learner.on_fault).",
        bad="1: the batch is kept in faults/; look into it with rlkl inspect.",
    ),
    MetricDefinition(
        key="weights/verified",
        unit="0 or 1",
        formula="1 when every engine's log-probs on the probes agree with the learner's after the publish, and have "
        "moved as the learner's have.",
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
        formula=(
            "Sampling in this step: of its batch; under one_step_off of the next one; under stream: time/step_s - "
            "time/rollout_idle_s."
        ),
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
        key="time/<view>_s",
        unit="seconds",
        formula="Making a rule's view of the pictures and scoring the responses given it, once a step.",
        bad="A large share of time/learner_s: make the view cheaper, or the pictures smaller.",
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
        key="time/learner_waited_s",
        unit="seconds",
        formula="Waiting of the learner for a batch to be sampled, scored and selected.",
        bad="More than a tenth of the step under one_step_off or stream: rollout workers are the bottleneck.",
        timing=True,
    ),
    MetricDefinition(
        key="time/rollout_idle_s",
        unit="seconds",
        formula=(
            "Time in which an engine had no request, as of its last report, mean over the workers. Without stream "
            "that is the time of the step before."
        ),
        bad="More than a tenth of the step under one_step_off or stream: the learner is the bottleneck.",
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
        formula="1 - (time/learner_waited_s + time/learner_s) / time/step_s.",
        bad="Above 0.1 after the first steps: publishing or bookkeeping is slow.",
        timing=True,
    ),
    MetricDefinition(
        key="throughput/samples_per_s",
        unit="rollouts per second",
        formula="SampleReward rollouts of the step divided by time/step_s.",
        bad="Falling at equal rollout/length_mean.",
        timing=True,
    ),
    MetricDefinition(
        key="update/alarms",
        unit="alarms",
        formula="Warnings of the rule that are active. The log shows each when it begins.",
        bad="Above 0: read the log.",
    ),
    MetricDefinition(
        key="rule/<name>",
        unit="the rule's own",
        formula="What an update rule from outside rlkl logs under this name, summed over micro-batches.",
        bad="Ask its author.",
    ),
    *dict.fromkeys(definition for rule in RULE_METRICS.values() for definition in rule),
    *DRO,
    *CURRICULUM_METRICS,
    *WATCH_METRICS,
    *EVAL_METRICS,
)


def find_definition(key: str) -> MetricDefinition | None:
    """Return the definition of a logged key; an exact key (``reward/mean``) wins over a pattern (``reward/<name>``)."""
    matching = [definition for definition in METRICS if definition.matches(key)]
    return min(matching, key=lambda definition: "<" in definition.key, default=None)


def check_known(keys: Iterable[str]) -> None:
    """Raise AssertionError for a metric without a definition: a new metric needs one in `METRICS`."""
    unknown = sorted(key for key in keys if find_definition(key) is None)
    assert not unknown, (
        f"metrics without a definition: {', '.join(unknown)}; define them in rlkl/tracking/metrics or in the rule's "
        "metrics.py, or call them rule/<name> where a rule from outside logs them"
    )


def without_timings(record: Mapping[str, float]) -> dict[str, float]:
    """Return a record of ``metrics.jsonl`` without timings: equal for two runs of one recipe and seed."""

    def is_timing(key: str) -> bool:
        definition = find_definition(key)
        return definition is not None and definition.timing

    return {key: value for key, value in record.items() if not is_timing(key)}
