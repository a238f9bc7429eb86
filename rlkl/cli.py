"""Parse the command line of `rlkl` and dispatch to `rlkl.commands`.

Each command is a module with a function ``run(options)`` that returns the exit code. Its module is imported only when
the command runs, so that `rlkl --help` is quick.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from rlkl import __version__
from rlkl.errors import RlklError, about_files, did_you_mean
from rlkl.system.interrupt import signal_of, sigterm_raises
from rlkl.system.telemetry import silence_telemetry

_EPILOG = """exit codes: 0 done, 1 the run failed, 2 bad input (nothing was computed),
  130 or 143 stopped by Ctrl-C or SIGTERM (the step was finished and saved)

RECIPE is a YAML file or the name of one in recipes/. Overrides are section.key=value with YAML values:
  rlkl train quickstart steps=20 learner.lr=1e-4 'rewards=[{function: my.py:score}]'
"""


_UNKNOWN_COMMAND = re.compile(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)")

_DEBUG = "show the traceback of an error as well"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error of rlkl, or of a file or disk, becomes one message, with ``--debug`` after its traceback. Any other error
    is a defect and keeps its traceback.
    """
    options = _parse(arguments)
    silence_telemetry()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in ("rlkl", "reward_models"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        with sigterm_raises():
            return import_module(f"rlkl.commands.{options.command}").run(options)
    except (RlklError, OSError) as error:
        message = str(error) if isinstance(error, RlklError) else about_files(error)
        if message is None:
            raise
        if options.debug:
            traceback.print_exception(error)
        print("\n".join([f"error: {message}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return error.exit_code if isinstance(error, RlklError) else 1
    except KeyboardInterrupt as stopped:
        print("; ".join(["stopped at once", *getattr(stopped, "__notes__", ())]), file=sys.stderr)
        return 128 + signal_of(stopped)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line. Overrides may come before, between and after options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    words = getattr(options, "words", getattr(options, "overrides", None))
    if rest and (words is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if words is not None:
        words += rest
    return options


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line like any other error: one message and exit code 2."""

    def error(self, message: str) -> NoReturn:
        if match := _UNKNOWN_COMMAND.fullmatch(message):
            known = [name.strip(" '") for name in match[2].split(",")]
            message = f"no command is called '{match[1]}'; {did_you_mean(match[1], known)}"
        self.exit(2, f"error: {message}. {self.prog} --help shows what there is\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rlkl",
        description="Trains language models from rewards.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help=_DEBUG)
    parser.add_argument("--version", action="version", version=f"rlkl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_train(commands)

    _add_eval(commands)

    _add_score(commands)

    _add_plan(commands)

    _add_sweep(commands)

    _add_compare(commands)
    _add_report(commands)

    for name, effect in (
        ("reward-model", "train a reward model, or two on disjoint halves, from preferences"),
        ("sft", "train a language model on demonstrations, for a warm start"),
    ):
        trainer = commands.add_parser(name, help=effect)
        trainer.add_argument("recipe", metavar="RECIPE")
        trainer.add_argument("overrides", nargs="*", metavar="section.key=value")
        trainer.set_defaults(command=name.replace("-", "_"))

    _add_replay_states(commands)

    _add_inspect(commands)

    _add_doctor(commands)

    _add_dashboard(commands)

    _add_push(commands)

    keys = commands.add_parser("keys", help="list the keys of a recipe with type, default and meaning")
    keys.add_argument("prefix", nargs="?", default="", help="only keys that start so, such as learner")
    keys.set_defaults(command="keys")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG)
    return parser


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = commands.add_parser("train", help="train by a recipe, or continue a run", epilog=_EPILOG)
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    resume_usage = "rlkl train --resume RUN_DIR [--allow-changed-rewards] [steps=N ...]"
    train.usage = f"rlkl train RECIPE [section.key=value ...]\n       {resume_usage}"
    train.add_argument("words", nargs="*", metavar="RECIPE ...", help="the recipe and overrides")
    train.add_argument(
        "--resume",
        type=Path,
        metavar="RUN_DIR",
        help="continue this run by its own recipe; steps may change, and where and how it computes and records",
    )
    train.add_argument(
        "--allow-changed-rewards", action="store_true", help="with --resume: go on although a reward has changed"
    )
    train.set_defaults(command="train")


def _add_replay_states(commands: argparse._SubParsersAction[_Parser]) -> None:
    states = commands.add_parser("replay-states", help="write general samples and their hidden states, to be replayed")
    states.add_argument("model", metavar="MODEL", help="the model before training: a folder or name, or task:NAME")
    states.add_argument("data", metavar="DATA", help="rows with a text: a file, a data set, or task:NAME/PART")
    states.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    states.add_argument("--column", default="text", metavar="NAME", help="the column of the texts; default: text")
    states.add_argument("--split", default="train", metavar="NAME", help="of a data set; default: train")
    states.add_argument("--samples", type=int, default=1000, metavar="N", help="most samples; default: 1000")
    states.add_argument("--tokens", type=int, default=563, metavar="N", help="longest sample; default: 563")
    states.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="as the run's model.dtype")
    states.add_argument("--device", default="auto", metavar="DEVICE", help="as learner.device; default: auto")
    states.add_argument("--micro-batch-tokens", type=int, default=8192, metavar="N", help="tokens of a pass")
    states.add_argument("--seed", type=int, default=0, metavar="S", help="of the choice of samples; default: 0")
    states.set_defaults(command="replay_states")


def _add_inspect(commands: argparse._SubParsersAction[_Parser]) -> None:
    inspect = commands.add_parser("inspect", help="make a step again that had a number that is not finite")
    inspect.add_argument("fault", type=Path, metavar="RUN/faults/STEP")
    inspect.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as learner.device=cpu")
    inspect.set_defaults(command="inspect")


def _add_sweep(commands: argparse._SubParsersAction[_Parser]) -> None:
    sweep = commands.add_parser("sweep", help="make many runs by one plan, or go on with them")
    sweep.usage = (
        "rlkl sweep FILE [key=value ...] [--jobs N] [--dry-run] [--retry-failed]\n"
        "       rlkl sweep RECIPE 'section.key=[value, value]' seeds=5 [section.key=value ...]"
    )
    sweep.add_argument(
        "words", nargs="*", metavar="FILE ...", help="a sweep file or the name of one in recipes/sweeps/, or a recipe"
    )
    sweep.add_argument("--jobs", type=int, metavar="N", help="runs at a time; default: as many as this machine holds")
    sweep.add_argument("--dry-run", action="store_true", help="print the runs and start none")
    sweep.add_argument("--retry-failed", action="store_true", help="try each failed run once more")
    sweep.set_defaults(command="sweep")


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    compare = commands.add_parser("compare", help="compare the arms of a sweep, or runs: intervals, tests, frontier")
    compare.add_argument("folders", nargs="+", metavar="FOLDER", help="the folder of a sweep, or folders of runs")
    compare.add_argument("--y", metavar="FIGURE", help="the figure to compare: eval/gold, monitor/gold, reward/mean")
    compare.add_argument("--x", metavar="KL", help="eval/kl or kl/policy_to_reference; default: the evaluation's")
    compare.add_argument("--at-kl", metavar="KL,KL", help="compare at these KLs as well")
    compare.add_argument("--over", choices=("steps",), help="also fit the figure over the steps by a power law")
    compare.add_argument("--at-steps", metavar="N,N", help="--over steps: the fitted figure after so many updates")
    compare.add_argument("--baseline", metavar="ARM", help="compare the others with this arm")
    compare.add_argument("--paired", action="store_true", help="compare runs of equal seeds as pairs")
    compare.add_argument("--watch", metavar="ARM", help="also measure the hacking watch; this arm hacks its reward")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write tables and frontier as one HTML file")
    compare.add_argument("--pdf", type=Path, metavar="FILE", help="write the frontier: .pdf, .svg or .png")
    compare.add_argument("--wandb", metavar="ENTITY/PROJECT", help="save the comparison as a W&B report")
    compare.set_defaults(command="compare")


def _add_doctor(commands: argparse._SubParsersAction[_Parser]) -> None:
    doctor = commands.add_parser("doctor", help="report versions and hardware, and what works here or on a cluster")
    doctor.add_argument(
        "--cluster", action="store_true", help="compare the nodes of a Ray cluster, and time its network"
    )
    doctor.add_argument("--address", metavar="HOST:PORT", help="the cluster; default: RAY_ADDRESS, or this machine")
    doctor.add_argument("--run-dir", type=Path, metavar="DIR", help="a folder that all nodes must share")
    doctor.add_argument("--mib", type=int, metavar="N", help="size of the tensor that nodes exchange; default: 64")
    doctor.set_defaults(command="doctor")


def _add_dashboard(commands: argparse._SubParsersAction[_Parser]) -> None:
    dashboard = commands.add_parser("dashboard", help="save a W&B dashboard of a project's runs, and print its address")
    dashboard.add_argument("project", metavar="ENTITY/PROJECT")
    dashboard.add_argument("--group", metavar="NAME", help="show the runs of this W&B group only")
    dashboard.add_argument("--update", metavar="URL", help="renew the sections of a saved view instead")
    dashboard.add_argument("--print", action="store_true", help="print the view as JSON; needs no account")
    dashboard.set_defaults(command="dashboard")


def _add_push(commands: argparse._SubParsersAction[_Parser]) -> None:
    push = commands.add_parser("push", help="publish a run's policy on the Hugging Face Hub, with a model card")
    push.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    push.add_argument("repo", metavar="REPO", help="USER/NAME")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument("--dry-run", action="store_true", help="write and print the card, list the files, upload nothing")
    push.add_argument("--with-samples", action="store_true", help="upload the sample files too")
    push.add_argument("--adapter", action="store_true", help="the adapters alone, of a run with model.lora")
    push.set_defaults(command="push")


def _add_plan(commands: argparse._SubParsersAction[_Parser]) -> None:
    plan = commands.add_parser("plan", help="check a recipe and its files, and print what it would do; loads no model")
    plan.add_argument("recipe", metavar="RECIPE")
    plan.add_argument("overrides", nargs="*", metavar="section.key=value")
    plan.add_argument("--gpus", type=int, metavar="N", help="plan for N GPUs that this machine need not have")
    plan.add_argument(
        "--gpu", default="H100", metavar="NAME", help="their kind: A100, H100 (default), H200, B200, L40S"
    )
    plan.add_argument("--shape", metavar="FILE", help="config.json of the model, or its folder, if it is not here")
    plan.add_argument("--prompt-tokens", type=float, metavar="MEAN", help="mean length; default: half of the limit")
    plan.add_argument("--completion-tokens", type=float, metavar="MEAN", help="mean length; default: half of the limit")
    plan.add_argument(
        "--measured", metavar="RUN_DIR", help="simulate the schedules with the seconds of a run on this machine"
    )
    plan.set_defaults(command="plan")


def _add_eval(commands: argparse._SubParsersAction[_Parser]) -> None:
    evaluate = commands.add_parser("eval", help="sample a policy on held-out prompts, and score the completions")
    evaluate.add_argument("policy", metavar="POLICY", help="a model folder or name, task:NAME, or the folder of a run")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="keys of data, rollout, eval, model or rewards"
    )
    evaluate.add_argument("--recipe", metavar="RECIPE", help="read data, rewards and the section eval there")
    evaluate.add_argument("--data", metavar="SOURCE", help="the prompts: a file, a data set, or task:NAME/test")
    evaluate.add_argument("--reward", action="append", default=[], metavar="FILE:FUNCTION", help="may be repeated")
    evaluate.add_argument("--limit", type=int, metavar="N", help="most prompts; default: the recipe's, or 512")
    evaluate.add_argument("--reference", metavar="BASE", help="measure the KL to this model; none: to no model")
    evaluate.add_argument(
        "--greedy", action=argparse.BooleanOptionalAction, help="also take the most probable tokens, once a prompt"
    )
    _add_sampling(evaluate, samples="completions for each prompt; default: the recipe's, or 8")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument("--out", type=Path, metavar="FILE.parquet", help="write all completions and scores there")
    evaluate.set_defaults(command="eval")

    generate = commands.add_parser("generate", help="let a policy answer a prompt")
    generate.add_argument("policy", metavar="POLICY", help="a model folder or name, task:NAME, or the folder of a run")
    generate.add_argument("prompt", metavar="PROMPT", help="the text; <image> stands for a picture")
    generate.add_argument("--image", action="append", default=[], type=Path, metavar="FILE", help="may be repeated")
    generate.add_argument("--raw", action="store_true", help="leave out the chat template")
    _add_sampling(generate, samples="completions; default: 1")
    generate.set_defaults(command="generate")


def _add_sampling(parser: argparse.ArgumentParser, *, samples: str) -> None:
    parser.add_argument("--samples", type=int, metavar="N", help=samples)
    parser.add_argument("--temperature", type=float, metavar="T", help="default: 1, or the recipe's")
    parser.add_argument("--seed", type=int, metavar="S", help="default: 0, or the recipe's")
    parser.add_argument("--engine", metavar="ENGINE", help="default: vllm, or hf where there is no GPU")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 256, or the recipe's")


def _add_report(commands: argparse._SubParsersAction[_Parser]) -> None:
    report = commands.add_parser(
        "report", help="write one HTML file about runs: curves, events, samples token by token"
    )
    report.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="the folder of a run, or one with runs in it, such as a sweep's",
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the run's folder; of several runs, here"
    )
    report.add_argument(
        "--samples", type=int, default=2000, metavar="N", help="most samples in the file; default: 2000"
    )
    report.add_argument(
        "--watch", type=int, metavar="SECONDS", help="write it anew so often, and have browsers reload it"
    )
    report.set_defaults(command="report")


def _add_score(commands: argparse._SubParsersAction[_Parser]) -> None:
    score = commands.add_parser("score", help="score data with rewards, as training would, without training")
    score.usage = (
        "rlkl score --reward my.py:fn --data rows.jsonl [mode=process ...]\n"
        "       rlkl score RECIPE --data rows.jsonl [section.key=value ...]"
    )
    score.add_argument(
        "words", nargs="*", metavar="RECIPE ...", help="a recipe and overrides; with --reward, keys of every reward"
    )
    score.add_argument("--reward", action="append", default=[], metavar="FILE:FUNCTION", help="may be given repeatedly")
    score.add_argument("--data", required=True, metavar="FILE", help="rows with prompt, completion and other columns")
    score.add_argument("--tokenizer", metavar="FOLDER", help="a model folder, for rewards that read token ids")
    score.add_argument("--out", type=Path, metavar="FILE", help="write the scores of every row there, as JSON lines")
    score.set_defaults(command="score")
