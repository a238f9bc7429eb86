"""`rlkl eval`: sample a policy on prompts, score the completions, and print means with standard errors."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlkl.commands.eval_inputs import evaluation_recipe
from rlkl.commands.outputs import check_out
from rlkl.commands.score import start_rewards
from rlkl.data.prompts import Encoder
from rlkl.data.vision import load_picture_processor
from rlkl.errors import InputError
from rlkl.models.resolve import resolve_models
from rlkl.recipe import Recipe
from rlkl.recipe.model_limits import check_limits
from rlkl.recipe.resolved_model import ResolvedModels
from rlkl.rewards import load_rewards
from rlkl.rollout.alone import generate_alone, score_alone
from rlkl.rollout.engine import EngineSettings, Request, engine_class
from rlkl.rollout.eval_metrics import evaluation_metrics
from rlkl.rollout.settings import engine_settings, load_tokenizer
from rlkl.rollout.vllm_arguments import check_vllm_arguments
from rlkl.system.machine import this_machine
from rlkl.tracking.console.view import number
from rlkl.tracking.metrics.registry import check_known
from rlkl.tracking.records.evaluations import evaluation_table
from rlkl.tracking.records.reading import write_table
from rlkl.training.evaluation import Evaluated, load_held_out
from rlkl.training.hands import Finished
from rlkl.types import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """The result of an evaluation."""

    recipe: Recipe
    policy: str
    """As it was named."""
    prompts: int
    done: Evaluated
    metrics: Mapping[str, float]


def run(options: Namespace) -> int:
    """Evaluate, print the metrics, write the samples if ``--out`` is given, and return 0."""
    if options.out is not None and options.out.suffix != ".parquet":
        raise InputError(f"--out {options.out}: expected a file that ends with .parquet")
    check_out("--out", options.out)
    report = evaluate_policy(evaluation_recipe(options), name=options.policy)
    if options.out is not None:
        _write(report, options.out)
    if options.json:
        sys.stdout.write(json.dumps(as_json(report), allow_nan=False) + "\n")
    else:
        show(report)
    return 0


def evaluate_policy(recipe: Recipe, *, name: str) -> EvalReport:
    """Evaluate ``model.path`` as the section ``eval`` says; with a ``model.reference`` also measure the KL to it.

    ``name``: of the policy, for the report.

    Raises:
        InputError: a model, the data or a reward cannot be used.
        RewardError: a reward with ``on_error: raise`` failed, or a reward failed too often.
    """
    assert recipe.eval is not None
    start = time.perf_counter()
    engine_class(recipe.rollout.engine)
    check_vllm_arguments(recipe.rollout.vllm.arguments)
    key = "eval.rewards" if recipe.eval.rewards else "rewards"
    rewards = load_rewards(recipe.eval.rewards or recipe.rewards, for_evaluation=True, key=key)
    models = resolve_models(recipe)
    check_limits(recipe, models.policy.path, this_machine())
    tokenizer = load_tokenizer(models.policy.path, models.policy.vocabulary)
    pictures = load_picture_processor(models.policy, recipe.data.pixels)
    held_out = load_held_out(recipe, recipe.eval, rewards, Encoder(tokenizer=tokenizer, pictures=pictures))
    images = max(len(prompt.images) for prompt in held_out.prompts)
    settings = engine_settings(recipe, models.policy, tokenizer, images)
    with ExitStack() as running:
        running.callback(rewards.close)
        start_rewards(rewards, recipe, running)
        done = held_out.run(lambda requests: _sample(recipe, settings, requests))
    metrics = evaluation_metrics(done.groups, done.greedy, _gaps(recipe, models, settings, done))
    metrics["time/eval_s"] = time.perf_counter() - start
    check_known(metrics)
    return EvalReport(recipe=recipe, policy=name, prompts=len(held_out.prompts), done=done, metrics=metrics)


def as_json(report: EvalReport) -> dict[str, object]:
    """Return what ``--json`` prints."""
    section = report.recipe.eval
    assert section is not None
    return {
        "policy": report.policy,
        "prompts": report.prompts,
        "samples": section.samples,
        "seed": report.recipe.seed,
        "metrics": dict(report.metrics),
    }


def show(report: EvalReport, console: Console | None = None) -> None:
    """Print a table of the metrics with their standard errors."""
    console = console or Console(markup=False, highlight=False)
    section = report.recipe.eval
    assert section is not None
    greedy = ", and one greedy each" if section.greedy else ""
    console.print(
        f"{report.policy}: {report.prompts} prompts, {section.samples} samples each at temperature "
        f"{section.temperature:g}{greedy}, seed {report.recipe.seed}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for key, value in report.metrics.items():
        if not key.endswith("_se"):
            error = report.metrics.get(f"{key}_se")
            table.add_row(key, number(value), "" if error is None else number(error))
    console.print(table)


def _sample(recipe: Recipe, settings: EngineSettings, requests: Sequence[Request]) -> Iterator[Finished]:
    completions = generate_alone(recipe.rollout.engine, settings, requests, threads=recipe.rollout.threads)
    yield [(n, replace(one, weights_version=one.weights_version or 0)) for n, one in enumerate(completions)]


def _gaps(recipe: Recipe, models: ResolvedModels, settings: EngineSettings, done: Evaluated) -> list[float]:
    """Return log policy - log reference of each sampled completion; nothing without a reference or at temperature 1.

    The policy's log-probs are those that it was sampled with.
    """
    assert recipe.eval is not None
    if models.reference is None or recipe.eval.temperature != 1:
        return []
    pairs = [(group.prompt, rollout.completion) for group in done.groups for rollout in group.rollouts]
    probes = [Probe(token_ids=prompt.token_ids + one.token_ids, images=prompt.images) for prompt, one in pairs]
    different = list(dict.fromkeys(probes))
    longest = max(len(probe.token_ids) for probe in different)
    reference = replace(settings, model_path=models.reference.path, max_prompt_tokens=longest, max_new_tokens=1)
    scored = score_alone(recipe.rollout.engine, reference, different, threads=recipe.rollout.threads)
    scores = dict(zip(different, scored, strict=True))
    gaps = []
    for probe, (_, completion) in zip(probes, pairs, strict=True):
        assert completion.logprobs is not None
        count = len(completion.token_ids)
        gaps.append(sum(completion.logprobs) - sum(scores[probe][-count:] if count else ()))
    return gaps


def _write(report: EvalReport, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, evaluation_table(0, report.done.groups, report.done.greedy))
