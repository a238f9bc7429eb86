"""Stop texts and further engine arguments through Ray and vLLM: tokens up to the stop, text without it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import rlkl
from rlkl.rollout.stopping import cut_at_stop
from rlkl.rollout.vllm_arguments import engine_arguments
from rlkl.tasks.characters import character_tokenizer
from tests.integration.runs import digits, make_recipe, records

LENGTHS = {"max_new_tokens": 24, "workers": 2}


def first_samples(run_dir: Path) -> list[dict[str, Any]]:
    return pq.read_table(run_dir / "samples" / "step_000001.parquet").to_pylist()


def test_completions_end_at_a_stop_text_and_rewards_do_not_see_it(untied_model: Path, tmp_path: Path):
    rlkl.train(make_recipe(tmp_path / "free", untied_model, steps=1, rollout=LENGTHS))
    free = first_samples(tmp_path / "free")
    pairs = Counter(pair for row in free for pair in {a + b for a, b in pairwise(row["completion"])})
    stop = [pairs.most_common(1)[0][0], "never ever"]
    more = {"stop": stop, "vllm": {"max_num_seqs": 5, "enable_prefix_caching": False}}
    rlkl.train(make_recipe(tmp_path / "stopped", untied_model, steps=1, rollout={**LENGTHS, **more}))
    tokenizer: Any = character_tokenizer()
    stopped = first_samples(tmp_path / "stopped")
    assert sum(stop[0] in row["completion"] for row in free) > 1
    for before, after in zip(free, stopped, strict=True):
        size, text = len(after["completion_ids"]), before["completion"]
        assert after["completion_ids"] == before["completion_ids"][:size]
        assert len(after["logprobs"]) == size
        assert after["completion"] == cut_at_stop(text, stop)
        assert after["reward"] == digits(after["completion"])
        if stop[0] in text:
            assert after["finish_reason"] == "stop"
            kept = tokenizer.decode(after["completion_ids"], skip_special_tokens=True)
            assert kept == text[: text.index(stop[0]) + len(stop[0])]
        else:
            assert (size, after["finish_reason"]) == (len(before["completion_ids"]), before["finish_reason"])
    assert all(record["rollout/mismatch_max"] < 1e-4 for record in records(tmp_path / "stopped"))


def test_the_names_of_engine_arguments_are_those_that_vllm_declares():
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    assert {field.name for field in fields(EngineArgs) if field.name[0] != "_"} == engine_arguments()
