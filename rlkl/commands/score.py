"""`rlkl score`: score given completions with rewards, as training would."""

from __future__ import annotations

import json
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rlkl.commands.outputs import check_out
from rlkl.data.answers import AnswerEncoder
from rlkl.data.chat import EncodedPrompt, refuse_surrogates
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.data.report import BadPrompt
from rlkl.errors import DataError, InputError, RewardInputError, did_you_mean
from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe, load_rewards_only
from rlkl.recipe.resolved_model import ModelName, read_model
from rlkl.rewards import RewardSet, load_rewards
from rlkl.rewards.function.arguments import State, UnknownIds
from rlkl.rewards.scoring.reward_set import ScoredRound
from rlkl.rollout.stopping import StopWatch, cut_at_stop
from rlkl.types import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

COMPLETION_COLUMN = "completion"
_IDS = ("completion_ids", "prompt_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """The scores and the failures."""

    rewards: RewardSet
    prompts: Sequence[Prompt]
    """The prompt of each sample."""
    completions: Sequence[Completion]
    round: ScoredRound
    setup_s: float
    seconds: float
    """From the first sample to the last score."""


def run(options: Namespace) -> int:
    """Score the data, print the report, write the scores if ``--out`` is given, and return 0."""
    from rlkl.commands.score_view import show

    words: list[str] = options.words
    if options.reward and words and "=" not in words[0]:
        raise InputError(f"rlkl score takes a recipe or --reward, not both; got the recipe {words[0]}")
    if not options.reward and (not words or "=" in words[0]):
        raise InputError("rlkl score needs --reward FILE:FUNCTION, or a recipe first (rlkl score RECIPE --data FILE)")
    check_out("--out", options.out)
    recipe = load_rewards_only(options.reward, *words) if options.reward else load_recipe(words[0], *words[1:])
    report = score_data(recipe, options.data, tokenizer_path=options.tokenizer)
    show(report)
    if options.out is not None:
        write_scores(report, options.out)
    return 0


def score_data(recipe: Recipe, data: str, *, tokenizer_path: str | None = None) -> ScoreReport:
    """Score the rows of ``data`` with the recipe's rewards.

    A row has a prompt, a ``completion`` (text, or a list of texts) and whatever columns the rewards read. Samples of
    equal prompts that follow one another are one group. Token ids are those of ``tokenizer_path``, or of a column
    ``completion_ids``, which holds one list a text; a reward that reads missing ids fails.

    If the recipe names ``rollout.stop``, a completion is cut before the first stop text, as in training. Its ids from
    the tokenizer end with the token that completes the stop text; ids from the column stay as given.

    Raises:
        InputError: the data or a reward cannot be used.
        RewardError: a reward with ``on_error: raise`` failed, or a reward failed too often.
    """
    rewards = load_rewards(recipe.rewards, normalize=recipe.scoring.normalize)
    rows = _read(recipe, data, tokenizer_path)
    if tokenizer_path is None:
        rows = [replace(row, token_ids=UnknownIds()) for row in rows]
        _refuse_ids(rewards, completions_too=any(row.columns.get("completion_ids") is None for row in rows))
    reader = _CompletionReader(recipe, tokenizer_path)
    groups = _grouped([(row, completion) for row in rows for completion in reader.read(row)])
    for warning in rewards.check([prompt for prompt, _ in groups], of="--data"):
        logger.warning("%s", warning)
    samples = [(prompt, completion) for prompt, completions in groups for completion in completions]
    with ExitStack() as running:
        running.callback(rewards.close)
        start = time.perf_counter()
        start_rewards(rewards, recipe, running)
        started = time.perf_counter()
        scoring = rewards.open_round(
            [prompt for prompt, _ in groups],
            samples=[len(completions) for _, completions in groups],
            state=State(step=1, steps=1, epoch=0.0, seed=recipe.seed),
            draws=range(len(groups)),
        )
        for index, (_, completion) in enumerate(samples):
            scoring.add(index, completion)
        done = scoring.finish()
        ended = time.perf_counter()
    return ScoreReport(
        rewards=rewards,
        prompts=[prompt for prompt, _ in samples],
        completions=[completion for _, completion in samples],
        round=done,
        setup_s=started - start,
        seconds=ended - started,
    )


def write_scores(report: ScoreReport, path: Path) -> None:
    """Write one JSON object a sample: prompt, completion, reward (null if it has none), and every reward by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for prompt, completion, scored in zip(report.prompts, report.completions, report.round.scored, strict=True):
            row: dict[str, Any] = {"id": prompt.id, "prompt": prompt.text, "completion": completion.text}
            row["reward"] = None if scored.reward != scored.reward else scored.reward
            row |= {f"reward/{name}": value for name, value in scored.components.items()}
            row |= {f"monitor/{name}": value for name, value in scored.monitors.items()}
            row |= {"tags": scored.tags, "failed": scored.failed}
            file.write(json.dumps(row) + "\n")


def start_rewards(rewards: RewardSet, recipe: Recipe, running: ExitStack) -> None:
    """Bring up all rewards, those in mode ``actor`` in Ray; ``running`` ends them."""
    rewards.start(timeout_s=recipe.cluster.start_timeout_s)
    if any(reward.section.mode == "actor" for reward in rewards.rewards):
        from rlkl.actors.rewards import ray_for_rewards

        make_worker = running.enter_context(ray_for_rewards(recipe))
        running.callback(rewards.close)  # actors end before Ray does
        rewards.start_actors(make_worker, timeout_s=recipe.cluster.start_timeout_s)


class _NoTokenizer:
    """A tokenizer for rewards that read no token ids: every text is one token."""

    bos_token = eos_token_id = chat_template = None
    name_or_path = "none: name the folder of a model with --tokenizer"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0]


def _read(recipe: Recipe, data: str, tokenizer_path: str | None) -> list[Prompt]:
    section = recipe.data.model_copy(
        update={
            "source": data,
            "max_prompt_tokens": sys.maxsize,
            "max_bad_fraction": 0.0,
            "shuffle": False,
            "sampler": "uniform",
            "curriculum": None,
            "chosen_column": None,
            "rejected_column": None,
        }
    )
    if tokenizer_path is None:
        encoder = Encoder(tokenizer=cast("PreTrainedTokenizerBase", _NoTokenizer()))
    else:
        from rlkl.data.vision import load_picture_processor

        tokenizer = _tokenizer(tokenizer_path)
        tokenizer_only = Path(tokenizer_path).is_dir() and not (Path(tokenizer_path) / "config.json").is_file()
        name = ModelName(key="--tokenizer", value=tokenizer_path)
        pictures = None if tokenizer_only else load_picture_processor(read_model(tokenizer_path, name))
        encoder = Encoder(tokenizer=tokenizer, pictures=pictures)
    source = load_prompts(section, encoder, seed=0)
    return source.take(0, len(source))


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--tokenizer {path}: cannot be loaded ({_first_line(error)}); expected a Hugging Face folder"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _refuse_ids(rewards: RewardSet, *, completions_too: bool) -> None:
    """Raise `RewardInputError` if a reward reads token ids that are missing.

    Prompt ids are missing; ``completions_too``: completion ids are missing as well. A parameter with a default is
    refused too, because training would pass ids to it.
    """
    for reward in rewards.rewards:
        for name in _IDS if completions_too else _IDS[1:]:
            if name in reward.parameters.names:
                column = ", or a column 'completion_ids'" if name == "completion_ids" else ""
                raise RewardInputError(
                    f"reward '{reward.name}' reads '{name}', and text alone has no token ids: give --tokenizer PATH"
                    f"{column}"
                )


class _CompletionReader:
    """Reads the completions of a row, cut at the recipe's stop texts."""

    def __init__(self, recipe: Recipe, tokenizer_path: str | None) -> None:
        self._stop = recipe.rollout.stop
        self._answers: AnswerEncoder | None = None
        self._watch: StopWatch | None = None
        if tokenizer_path is not None:
            tokenizer = _tokenizer(tokenizer_path)
            self._answers = AnswerEncoder(tokenizer, recipe.data.chat_template_kwargs)
            self._watch = StopWatch(tokenizer, self._stop) if self._stop else None

    def read(self, row: Prompt) -> list[Completion]:
        """Return one completion a text.

        Raises:
            DataError: the row has no completion, or its ids do not fit.
        """
        column = row.columns.get(COMPLETION_COLUMN)
        texts = [column] if isinstance(column, str) else column
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            names = did_you_mean(COMPLETION_COLUMN, row.columns)
            raise DataError(f"{row.id} has no column '{COMPLETION_COLUMN}' with a text or a list of texts; {names}")
        ids = _given_ids(row, column) if self._answers is None else [self._encoded(row, text) for text in texts]
        return [
            Completion(token_ids=token_ids, logprobs=None, finish_reason="stop", text=cut_at_stop(text, self._stop))
            for text, token_ids in zip(texts, ids, strict=True)
        ]

    def _encoded(self, row: Prompt, text: str) -> tuple[int, ...]:
        assert self._answers is not None
        try:
            refuse_surrogates(text, f"'{COMPLETION_COLUMN}'")
        except BadPrompt as error:
            raise DataError(f"{row.id}: {error.detail}; correct the row, or leave --tokenizer out") from error
        token_ids = self._answers.encode_sampled(EncodedPrompt(text=row.text, token_ids=row.token_ids), text)
        return token_ids if self._watch is None else token_ids[: self._watch.end(token_ids, 0)]


def _given_ids(row: Prompt, column: Any) -> list[tuple[int, ...]]:
    """Return the ids of the column ``completion_ids``: one list for a text, a list of lists for a list of texts."""
    texts = 1 if isinstance(column, str) else len(column)
    given = row.columns.get("completion_ids")
    if given is None:
        return [UnknownIds()] * texts
    lists = [given] if isinstance(column, str) else given
    if not isinstance(lists, list) or len(lists) != texts or not all(map(_are_ids, lists)):
        wanted = "a list of token ids" if isinstance(column, str) else f"a list of {texts} lists of token ids"
        raise DataError(
            f"{row.id}: column 'completion_ids' has to be {wanted}, as '{COMPLETION_COLUMN}' is "
            f"{'a text' if isinstance(column, str) else f'a list of {texts} texts'}; got {given!r:.200}"
        )
    return [tuple(token_ids) for token_ids in lists]


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(part) is int and part >= 0 for part in value)


def _grouped(samples: Sequence[tuple[Prompt, Completion]]) -> list[tuple[Prompt, list[Completion]]]:
    """Group neighbours whose prompt and columns are equal, except for the completion."""
    groups: list[tuple[Prompt, list[Completion]]] = []
    for prompt, completion in samples:
        if groups and _same(groups[-1][0], prompt):
            groups[-1][1].append(completion)
        else:
            groups.append((prompt, [completion]))
    return groups


def _same(one: Prompt, other: Prompt) -> bool:
    return one is other or (one.text == other.text and _columns(one) == _columns(other))


def _columns(prompt: Prompt) -> Mapping[str, Any]:
    return {name: value for name, value in prompt.columns.items() if name not in ("id", COMPLETION_COLUMN, *_IDS)}
