"""The command `rlkl`. Each subcommand imports what it needs when it runs, so that `rlkl --help` is quick."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlkl import __version__
from rlkl.errors import InputError, RlklError

if TYPE_CHECKING:
    from rlkl.recipe import Recipe

_PIPED_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""
_EPILOG = """exit codes: 0 done, 1 the run failed, 2 bad input (nothing was computed),
  130 or 143 stopped by Ctrl-C or SIGTERM (the step was finished and saved)

RECIPE is a YAML file or the name of one in recipes/. Overrides are section.key=value with YAML values:
  rlkl train quickstart steps=20 learner.lr=1e-4 'rewards=[{function: my.py:score}]'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code. Only errors that rlkl raises on purpose end without a traceback."""
    options = _parse(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in ("rlkl", "reward_models"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        return options.run(options)
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
    words = getattr(options, "words", None)
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
    train.set_defaults(run=_train)

    _add_score(commands)

    plan = commands.add_parser("plan", help="check a recipe and print what it would do; loads no model")
    plan.add_argument("recipe", metavar="RECIPE")
    plan.add_argument("overrides", nargs="*", metavar="section.key=value")
    plan.set_defaults(run=_plan)

    for name, run, what in (
        ("reward-model", _reward_model, "train a reward model, or two on disjoint halves, from preferences"),
        ("sft", _sft, "train a language model on demonstrations, for a warm start"),
    ):
        trainer = commands.add_parser(name, help=what)
        trainer.add_argument("recipe", metavar="RECIPE")
        trainer.add_argument("overrides", nargs="*", metavar="section.key=value")
        trainer.set_defaults(run=run)

    doctor = commands.add_parser("doctor", help="report versions and hardware, and what works here")
    doctor.set_defaults(run=_doctor)

    keys = commands.add_parser("keys", help="list the keys of a recipe with type, default and meaning")
    keys.add_argument("prefix", nargs="?", default="", help="only keys that start so, such as learner")
    keys.set_defaults(run=_keys)
    return parser


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
    score.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> int:
    from rlkl.commands.score import score_data, write_scores
    from rlkl.commands.score_view import show
    from rlkl.recipe.io import load_recipe, load_rewards_only

    words: list[str] = options.words
    if options.reward and words and "=" not in words[0]:
        raise InputError(f"rlkl score takes a recipe or --reward, not both; got the recipe {words[0]}")
    if not options.reward and (not words or "=" in words[0]):
        raise InputError("rlkl score needs --reward FILE:FUNCTION, or a recipe first (rlkl score RECIPE --data FILE)")
    recipe = load_rewards_only(options.reward, *words) if options.reward else load_recipe(words[0], *words[1:])
    report = score_data(recipe, options.data, tokenizer_path=options.tokenizer)
    show(report)
    if options.out is not None:
        write_scores(report, options.out)
    return 0


def _train(options: argparse.Namespace) -> int:
    if options.allow_changed_rewards and options.resume is None:
        raise InputError(
            "--allow-changed-rewards goes with --resume RUN_DIR only: a new run has no rewards that could have changed"
        )
    recipe = _recipe_to_train(options.words, options.resume)
    from rlkl.training.setup import train

    return train(recipe, resume_from=options.resume, allow_changed_rewards=options.allow_changed_rewards).exit_code


def _recipe_to_train(words: Sequence[str], resume: Path | None) -> Recipe:
    from rlkl.recipe.io import load_recipe
    from rlkl.recipe.run_dir import recipe_path

    if resume is None:
        if not words or "=" in words[0]:
            raise InputError("rlkl train needs a recipe first (rlkl train RECIPE ...), or --resume RUN_DIR")
        return load_recipe(words[0], *words[1:])
    return load_recipe(recipe_path(resume), *words)


def _plan(options: argparse.Namespace) -> int:
    from rlkl.commands.plan import make_plan
    from rlkl.commands.plan_view import show
    from rlkl.recipe.io import load_recipe
    from rlkl.system.machine import this_machine

    show(make_plan(load_recipe(options.recipe, *options.overrides), this_machine()))
    return 0


def _reward_model(options: argparse.Namespace) -> int:
    from reward_models.training.recipe import RewardModelRecipe
    from rlkl.recipe.io import load_section

    recipe = load_section(RewardModelRecipe, options.recipe, *options.overrides)
    from reward_models.training.reward_model import train_reward_model
    from reward_models.training.show import show_reward_models

    show_reward_models(train_reward_model(recipe))
    return 0


def _sft(options: argparse.Namespace) -> int:
    from reward_models.training.recipe import SftRecipe
    from rlkl.recipe.io import load_section

    recipe = load_section(SftRecipe, options.recipe, *options.overrides)
    from reward_models.training.sft import train_sft
    from reward_models.training.show import show_sft

    show_sft(train_sft(recipe))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from rlkl.commands.doctor import examine, show

    checks = examine()
    show(checks)
    return 1 if any(check.blocks for check in checks) else 0


def _keys(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from rlkl.recipe.keys import describe_keys

    keys = [key for key in describe_keys() if key.name.startswith(options.prefix)]
    if not keys:
        raise InputError(f"no key starts with '{options.prefix}'")
    table = Table("key", "expects", "default", "meaning", box=None, pad_edge=False)
    for key in keys:
        table.add_row(key.name, key.expects, key.default, key.description)
    Console(markup=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    return 0
