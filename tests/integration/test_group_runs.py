"""Runs with ``weights.transport: group`` on real Ray: the numbers of the host transport, and faults."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

import rlkl
from rlkl.errors import ActorDiedError, RecipeError, RlklError, WeightSyncError
from rlkl.recipe.io import load_recipe
from tests.integration.engines import LOST
from tests.integration.runs import REPOSITORY, make_recipe, recorded_stacks, untimed

GROUP = {"transport": "group"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_has_the_numbers_of_the_host_transport(ranks: int, tmp_path: Path):
    found = {}
    for transport in ("host", "group"):
        recipe = load_recipe(
            REPOSITORY / "recipes" / "quickstart.yaml",
            f"run.dir={tmp_path / transport}",
            "steps=2",
            f"weights.transport={transport}",
            f"learner.ranks={ranks}",
            f"rollout.workers={ranks}",
        )
        rlkl.train(recipe)
        found[transport] = untimed(tmp_path / transport)

    assert len(found["host"]) == 2
    assert found["group"] == found["host"]
    assert all(record["weights/verified"] == 1 for record in found["group"])


def fail(tmp_path: Path, model: Path, engine: str, **sections: Any) -> tuple[RlklError, float]:
    """Train with an engine of `tests.integration.engines`; return the error and the seconds until it came."""
    rollout = {"engine": f"tests.integration.engines:{engine}", "threads": 1}
    recipe = make_recipe(tmp_path / "run", model, steps=2, weights=GROUP, rollout=rollout, **sections)
    started = time.monotonic()
    with pytest.raises(RlklError) as caught:
        rlkl.train(recipe)
    return caught.value, time.monotonic() - started


def test_an_engine_that_dies_in_a_publish_is_named(untied_model: Path, tmp_path: Path):
    for ranks in (1, 2):
        error, _ = fail(tmp_path / str(ranks), untied_model, "DiesInPublish", learner={"ranks": ranks, "threads": 1})
        assert isinstance(error, ActorDiedError)
        assert str(error).startswith("rollout worker 0 ended while it was asked to send weights")


def test_an_engine_that_does_not_join_is_named_within_the_deadline(untied_model: Path, tmp_path: Path):
    error, seconds = fail(tmp_path, untied_model, "NeverJoins", cluster={"call_timeout_s": 20})
    assert isinstance(error, WeightSyncError)
    assert "the learner waited 18 s" in str(error)
    assert "missing: rollout worker 0" in str(error)
    _, _, theirs = recorded_stacks(tmp_path / "run").read_text().partition("---- rollout worker 0 ----")
    assert re.search(r"tests/integration/engines\.py\", line \d+ in join_group", theirs)
    assert seconds < 400  # a start of Ray and of two actors, 18 s, and 15 s in which the worker could have answered


def test_a_flipped_bit_and_a_matrix_that_is_kept_are_named_and_read_back(untied_model: Path, tmp_path: Path):
    error, _ = fail(tmp_path / "flip", untied_model, "FlipsOneBit")
    assert f"received other bytes than were published in 1 tensors of version 1: {LOST} at rollout worker 0" in str(
        error
    )
    assert re.search(
        rf"Read back, these are not what was published: rollout worker 0: {re.escape(LOST)} \(off", str(error)
    )

    error, _ = fail(tmp_path / "kept", untied_model, "KeepsOneMatrix")
    assert isinstance(error, WeightSyncError)
    assert re.search(
        rf"Read back, these are not what was published: rollout worker 0: {re.escape(LOST)} \(off", str(error)
    )


def test_an_engine_without_the_methods_is_refused(untied_model: Path, tmp_path: Path):
    error, _ = fail(tmp_path, untied_model, "WithoutGroup")
    assert isinstance(error, RecipeError)
    assert "WithoutGroup lacks join_group" in str(error)
