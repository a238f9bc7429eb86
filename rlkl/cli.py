"""Parse the command line of `rlkl` and dispatch to `rlkl.commands`.

Each command is a module with a function ``run(options)`` that returns the exit code. Its module is imported only when
the command runs, so that `rlkl --help` is quick.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rlkl import __version__
from rlkl.errors import RlklError

_EPILOG = """exit codes: 0 done, 1 the run failed, 2 bad input (nothing was computed),
  130 or 143 stopped by Ctrl-C or SIGTERM (the step was finished and saved)

RECIPE is a YAML file or the name of one in recipes/. Overrides are section.key=value with YAML values:
  rlkl train quickstart steps=20 learner.lr=1e-4 'rewards=[{function: my.py:score}]'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors that rlkl does not raise itself keep their traceback."""
    options = _parse(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in ("rlkl", "reward_models"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        return import_module(f"rlkl.commands.{options.command}").run(options)
    except RlklError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped at once; what the last checkpoint holds is safe", file=sys.stderr)
        return 128 + signal.SIGINT


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlkl",
        description="Trains language models from rewards.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rlkl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

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

    _add_score(commands)

    _add_plan(commands)

    for name, effect in (
        ("reward-model", "train a reward model, or two on disjoint halves, from preferences"),
        ("sft", "train a language model on demonstrations, for a warm start"),
    ):
        trainer = commands.add_parser(name, help=effect)
        trainer.add_argument("recipe", metavar="RECIPE")
        trainer.add_argument("overrides", nargs="*", metavar="section.key=value")
        trainer.set_defaults(command=name.replace("-", "_"))

    _add_doctor(commands)

    keys = commands.add_parser("keys", help="list the keys of a recipe with type, default and meaning")
    keys.add_argument("prefix", nargs="?", default="", help="only keys that start so, such as learner")
    keys.set_defaults(command="keys")
    return parser


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser("doctor", help="report versions and hardware, and what works here or on a cluster")
    doctor.add_argument(
        "--cluster", action="store_true", help="compare the nodes of a Ray cluster, and time its network"
    )
    doctor.add_argument("--address", metavar="HOST:PORT", help="the cluster; default: RAY_ADDRESS, or this machine")
    doctor.add_argument("--run-dir", type=Path, metavar="DIR", help="a folder that all nodes must share")
    doctor.add_argument("--mib", type=int, metavar="N", help="size of the tensor that nodes exchange; default: 64")
    doctor.set_defaults(command="doctor")


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
