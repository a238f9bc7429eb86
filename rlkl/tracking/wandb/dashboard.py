"""The W&B dashboard of a project: a saved view with a section for each question about a run.

`sections` and `workspace` need neither network nor account. Curves are averaged over the runs of an arm (the config
value ``arm``, see `rlkl.recipe.arm`) and banded by their standard deviation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb.errors import AuthenticationError, CommError, UsageError

from rlkl.errors import EnvironmentProblem, InputError
from rlkl.tracking.metrics.registry import METRICS, RULE_METRICS

VIEW = "rlkl"
KL = "kl/policy_to_reference"
PINNED_COLUMNS = ("config:arm", "summary:reward/mean.last", "summary:reward/mean.max", f"summary:{KL}")

OMITTED: Mapping[str, str] = {
    "reward/<name>/<component>": "drawn with its reward in the samples; a line for each hides the rewards",
    "monitor/<name>/<component>": "as above",
    "watch/spread/<name>": "the unit of the gaps, not a curve to look at",
    "eval/<name>/<component>": "as the components of rewards",
    "eval/<name>/<component>_se": "as above",
    "optim/fault": "a step that is skipped so is warned of, and its batch is kept in faults/",
    "optim/skipped": "selected_fraction is 0 in such a step",
    "weights/version": "the number of the step",
    "rollout/rounds": "truncated and selected fractions show what was dropped",
    "update/trained_sequences": "the selected fraction is drawn",
    "throughput/samples_per_s": "tokens per second are drawn",
}
"""Metrics that no section shows, and the reason. W&B still has their curves."""


def sections() -> list[ws.Section]:
    """Return the sections of the dashboard. Its keys and patterns are those of `rlkl.tracking.metrics`."""
    return [
        _frontier(),
        _section(
            "Reward",
            _lines("reward", "reward/mean", "reward/std"),
            _lines("each reward", regex="^reward/[^/]+$"),
            _lines("monitors", regex="^monitor/[^/]+$"),
            _lines("failed and dropped", "reward/failed", "reward/dropped"),
            _lines("epoch of the data", "data/epoch"),
            _lines("prompts of equal rewards", "rollout/equal_fraction"),
            _lines("draws: pass rate, largest probability", "data/pass_rate", "data/top_probability"),
        ),
        _section(
            "KL and entropy",
            _lines("KL to the reference, nats per sequence", KL),
            _lines("KL to the reference, nats per token", "kl/policy_to_reference_per_token"),
            _lines("KL of the reference to the policy, exact", "kl/exact_reference_to_policy"),
            _lines("entropy, nats per token", "entropy/policy"),
            _lines("coefficient of the KL", "update/kl_coef"),
        ),
        _section(
            "Hacking watch",
            _lines(
                "signals: 1 is the limit",
                regex="^watch/(similarity|empty|length|repetition|kl_acceleration|gap/.+|fall/.+)$",
                range_y=(0, 2),
            ),
            _lines("signals that set in", "watch/warnings"),
            _lines("similarity of answers to different prompts", "similarity/meteor"),
            _lines("repeated tokens", "rollout/repetition"),
        ),
        _section(
            "Eval",
            _lines("held-out score", "eval/mean", "eval/greedy"),
            _lines("all of eval", regex="^eval/[^/]+$"),
            _lines("pass at k", regex="^eval/pass@[0-9]+$", range_y=(0, 1)),
        ),
        *_learner_sections(),
        *_machine_sections(),
    ]


def _frontier() -> ws.Section:
    return _section(
        "Frontier",
        _lines("reward over KL", "reward/mean", x=KL),
        _lines("monitors over KL", regex="^monitor/[^/]+$", x=KL),
        _lines("held-out score over KL", "eval/mean", x="eval/kl"),
        wr.ScatterPlot(
            title="last reward of each run over its KL",
            x=wr.SummaryMetric(KL),
            y=wr.SummaryMetric("reward/mean.last"),
            running_ymax=True,
        ),
        pinned=True,
    )


def _learner_sections() -> list[ws.Section]:
    return [
        _section(
            "Update",
            _lines("loss", "loss/total"),
            _lines("parts of the loss", regex="^loss/"),
            _lines("gradient norm", "optim/grad_norm"),
            _lines("learning rate", "optim/lr"),
            _lines("clip fractions", regex="^update/(clip_fraction_.*|value_clip_fraction)$"),
            _lines("selected fraction", "update/selected_fraction", range_y=(0, 1)),
            _lines("correction of the sampler", regex="^correction/"),
            _lines("effective sample size", "rollout/ess"),
            _lines("alarms of the rule", "update/alarms"),
        ),
        _section(
            "Rule's own",
            *(_lines(family, regex=f"^{family}/") for family in own_families()),
            _lines("value head", "update/value_explained_variance"),
            _lines("pairs", regex="^update/(preference_|chosen_).*$"),
            _lines("lists", regex="^update/(rank_|best_|tied_).*$"),
            _lines("weights of prompts", regex="^dro/"),
            _lines("corrected samples", regex="^rollout/(correct|teacher_|regenerated_).*(fraction|place)$"),
            _lines("KL at corrected tokens", "rollout/correction_kl"),
            _lines("further terms", regex="^term/"),
            _lines("custom rules", regex="^rule/"),
        ),
    ]


def own_families() -> list[str]:
    """Return the families of metrics that one rule alone logs, such as mask."""
    of_rules = [{metric.key.partition("/")[0] for metric in metrics} for metrics in RULE_METRICS.values()]
    own = {metric.key for metrics in RULE_METRICS.values() for metric in metrics}
    general = {metric.key.partition("/")[0] for metric in METRICS if metric.key not in own}
    counted = Counter(family for families in of_rules for family in families)
    return sorted(family for family, rules in counted.items() if rules == 1 and family not in general)


def _machine_sections() -> list[ws.Section]:
    return [
        _section(
            "Rollout and weights",
            _lines("sampler against learner, largest difference in nats", "rollout/mismatch_max", log_y=True),
            _lines("sampler against learner, KL per token", "rollout/mismatch_kl"),
            _lines("weights verified", "weights/verified", range_y=(0, 1)),
            _lines("probe after a publish, nats", "weights/probe_max", log_y=True),
            _lines("truncated and empty", "rollout/truncated_fraction", "rollout/empty_fraction"),
            _lines("length, tokens", "rollout/length_mean"),
            _lines("tokens per second", "rollout/tokens_per_s"),
            _lines("staleness, versions", "rollout/staleness_mean", "rollout/staleness_max"),
        ),
        _section(
            "Time",
            _lines("seconds of a step", "time/step_s"),
            _lines("parts of a step", regex="^time/.*_s$"),
            _lines("other share", "time/other_fraction"),
        ),
        _section("Samples", wr.WeavePanelSummaryTable(table_name="samples")),
    ]


def _section(name: str, *panels: Any, pinned: bool = False) -> ws.Section:
    return ws.Section(name=name, panels=list(panels), is_open=True, pinned=pinned)


def _lines(title: str, *metrics: str, regex: str | None = None, x: str = "step", **settings: Any) -> wr.LinePlot:
    """Return a panel of curves. W&B's own default for ``x`` would win over the view's, so each panel names it."""
    return wr.LinePlot(
        title=title,
        x=x,
        y=list(metrics),
        metric_regex=regex,
        groupby=wr.Config("arm"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        **settings,
    )


def workspace(entity: str, project: str, *, group: str | None = None) -> ws.Workspace:
    """Return the view of a project; with ``group`` it shows the runs of that W&B group only."""
    view = ws.Workspace(
        entity=entity,
        project=project,
        name=VIEW if group is None else f"{VIEW} {group}",
        sections=sections(),
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=50),
        runset_settings=ws.RunsetSettings(pinned_columns=list(PINNED_COLUMNS)),
    )
    _show_group(view, group)
    return view


def _show_group(view: ws.Workspace, group: str | None) -> None:
    if group is not None:
        view.runset_settings.filters = ws.And(ws.Metric("Group") == group)


def as_json(view: ws.Workspace) -> str:
    """Return the view as W&B stores it. Needs no network."""
    model = view._to_model()
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps({"name": view.name, "entity": view.entity, "project": view.project, "spec": spec}, indent=1)


def save(view: ws.Workspace) -> str:
    """Save the view as a new one, and return its address.

    Raises `EnvironmentProblem` if there is no key, or if W&B cannot be reached or refuses.
    """
    with _Account(view.entity, view.project):
        return view.save_as_new_view().url


def update(url: str, entity: str, project: str, *, group: str | None = None) -> str:
    """Replace the sections of a saved view, keep what users have set beside them, and return its address.

    Raises `InputError` if the address is not that of a view of the project, else as `save`.
    """
    if not re.match(rf"https?://[^/]+/{re.escape(entity)}/{re.escape(project)}/?\?(?:.*&)?nw=\w", url):
        raise InputError(
            f"--update {url} is not the address of a saved view of {entity}/{project}; expected the address that "
            f"`rlkl dashboard {entity}/{project}` printed, such as https://wandb.ai/{entity}/{project}?nw=abc123"
        )
    with _Account(entity, project):
        try:
            view = ws.Workspace.from_url(url)
        except ValueError as error:
            raise InputError(f"--update {url}: {error}. Leave --update out to make a new view") from error
        view.sections = sections()
        _show_group(view, group)
        return view.save().url


class _Account:
    """Turns the errors of W&B into one that names the cure."""

    def __init__(self, entity: str, project: str) -> None:
        self._name = f"{entity}/{project}"

    def __enter__(self) -> None:
        wandb.setup(wandb.Settings(silent=True))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UsageError | AuthenticationError):
            raise EnvironmentProblem(
                f"there is no valid W&B key ({error}): run `wandb login`, or set WANDB_API_KEY. `--print` shows the "
                "view without an account"
            ) from error
        if isinstance(error, CommError | OSError):
            raise EnvironmentProblem(
                f"W&B does not take the view of {self._name} ({type(error).__name__}: {error}). Check the name of the "
                "project and your rights to it"
            ) from error
