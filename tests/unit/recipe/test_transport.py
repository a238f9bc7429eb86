"""``weights.transport: auto`` is decided by the GPUs of the actors."""

from __future__ import annotations

from typing import Any

import pytest

from rlkl.recipe import Recipe
from rlkl.recipe.placement import Node, place
from rlkl.recipe.transport import decided_transport


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"model": {"path": "m"}, "data": {"source": "d"}, **sections})


def node(gpus: int) -> Node:
    return Node(name="a", cpus=16, gpus=gpus)


@pytest.mark.parametrize(
    ("gpus", "sections", "transport"),
    [
        (0, {}, "host"),
        (0, {"weights": {"transport": "group"}}, "group"),
        (0, {"rollout": {"tensor_parallel": 2}}, "group"),
        (1, {}, "host"),  # learner and worker share the GPU
        (2, {}, "group"),
        (2, {"weights": {"transport": "host"}}, "host"),
        (2, {"rollout": {"workers": 2}}, "host"),  # two workers share a GPU
        (3, {"rollout": {"workers": 2}}, "group"),
        (3, {"rollout": {"engine": "hf", "workers": 2}}, "group"),
        (3, {"rollout": {"tensor_parallel": 2}}, "group"),
        (2, {"learner": {"device": "cpu"}}, "host"),
        (2, {"rollout": {"engine": "somewhere:Engine"}}, "host"),  # it may lack the methods
    ],
)
def test_auto_is_group_where_every_process_has_a_gpu_of_its_own(gpus: int, sections: dict[str, Any], transport: str):
    made = recipe(**sections)
    assert decided_transport(made, place(made, [node(gpus)])) == transport


def test_a_cluster_decides_when_the_run_starts():
    assert decided_transport(recipe(), None) == "auto"
    assert decided_transport(recipe(rollout={"tensor_parallel": 2}), None) == "group"
