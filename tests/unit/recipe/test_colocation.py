"""Engines on the learner's GPUs: where they lie, what is refused, and the memory of both turns."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.colocation import IN_TURNS_SHARE
from rlkl.recipe.memory import MemoryEstimate, least_learner_gib, resting_learner_gib
from rlkl.recipe.placement import LEARNER, WORKER, Node, Placement, memory_fraction, place
from rlkl.recipe.resources import describe, place_on_machine, warnings_about_gpus
from rlkl.system.machine import Machine

SIX_GIB = MemoryEstimate(
    parameters=3 * 2**29,
    learner_gib=24.0,
    moments_gib=12.0,
    gradients_gib=6.0,
    reference_gib=6.0,
    engine_gib=6.0,
    copy_gib=0.0,
)
"""A learner of 30 GiB in float32: 6 of weights, 6 of gradients, 12 of moments, 6 of a reference."""


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {"model": {"path": "m"}, "data": {"source": "d"}, **sections}
    values["rollout"] = {"placement": "colocated", **values.get("rollout", {})}
    return Recipe.model_validate(values)


def nodes(*gpus: int, cpus: float = 64) -> list[Node]:
    return [Node(name=f"n{number}", cpus=cpus, gpus=count) for number, count in enumerate(gpus)]


def members(placement: Placement) -> list[tuple[str, int, list[str]]]:
    """Node, number of GPUs and actors of each group."""
    return [(group.node, len(group.devices), [actor.name for actor in group.actors]) for group in placement.groups]


def test_each_engine_lies_on_the_gpu_of_a_rank_and_reserves_none():
    placement = place(recipe(rollout={"workers": 2}, learner={"ranks": 2}), nodes(2))

    assert members(placement) == [
        ("n0", 1, ["learner", "rollout worker 0"]),
        ("n0", 1, ["learner rank 1", "rollout worker 1"]),
    ]
    assert (placement.gpus_of(LEARNER), placement.gpus_of(WORKER)) == (1.0, 0.0)
    assert placement.in_turns
    assert placement.on_gpus(WORKER)
    assert sum(group.gpus for group in placement.groups) == 2
    assert sum(group.cpus for group in placement.groups) == 4


def test_ranks_stay_on_as_few_nodes_as_possible_and_a_reward_has_a_gpu_of_its_own():
    reward = {"function": "f.py:f", "mode": "actor", "gpus": 1}
    run = recipe(rollout={"workers": 3}, learner={"ranks": 3}, rewards=[reward])
    placement = place(run, nodes(2, 3))
    assert {group.node for group in placement.groups if group.count(LEARNER)} == {"n1"}
    assert [node for node, _, names in members(placement) if names == ["reward f.py:f 0"]] == ["n0"]


def test_an_engine_over_several_gpus_lies_on_one_node_with_all_its_ranks():
    wide = recipe(rollout={"workers": 2}, learner={"ranks": 5})
    wide = wide.model_copy(update={"rollout": wide.rollout.model_copy(update={"tensor_parallel": 2})})
    placement = place(wide, nodes(3, 2, 1))

    assert sorted(members(placement)) == [
        ("n0", 1, ["learner rank 4"]),
        ("n0", 2, ["learner", "learner rank 1", "rollout worker 0"]),
        ("n1", 2, ["learner rank 2", "learner rank 3", "rollout worker 1"]),
    ]
    with pytest.raises(EnvironmentProblem, match=r"1 CPU, 2 GPU|3 CPU, 2 GPU"):
        place(wide, nodes(3, 1, 1))


def test_without_gpus_all_actors_share_the_cores_as_always():
    separate = recipe(rollout={"workers": 3, "placement": "separate"})
    together = recipe(rollout={"workers": 3})
    assert place(together, nodes(0, 0)) == place(separate, nodes(0, 0))
    assert not place(together, nodes(0)).in_turns


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"rollout": {"workers": 3}, "learner": {"ranks": 2}},
            r"rollout\.workers = 3 engines of 1 GPU\(s\) lie on the GPUs of 3 learner ranks, but learner\.ranks = 2\. "
            r"Set learner\.ranks=3",
        ),
        ({"learner": {"device": "cpu"}}, r"learner\.device = cpu it has none"),
        ({"learner": {"gpus": 0}}, r"learner\.gpus = 0 it has none"),
        ({"learner": {"ranks": 9}}, r"cannot be placed: 1 x learner \(2 CPU, 1 GPU\), 8 x learner \(1 CPU, 1 GPU\)"),
    ],
)
def test_what_no_gpus_of_the_learner_can_hold_is_refused_at_once(sections: dict[str, Any], problem: str):
    with pytest.raises(EnvironmentProblem, match=problem):
        place(recipe(**sections), nodes(8))


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"rollout": {"engine": "hf"}}, r"placement = colocated needs engine: vllm"),
        ({"rollout": {"schedule": "stream"}}, r"the engines sleep then"),
        ({"rollout": {"gpus_per_worker": 1}}, r"reserve none; leave gpus_per_worker out"),
        ({"weights": {"transport": "group"}}, r"weights\.transport = group sends weights from GPU to GPU"),
        ({"rollout": {"tensor_parallel": 2}}, r"rollout\.tensor_parallel > 1 sends weights from GPU to GPU"),
        ({"model": {"path": "m", "lora": {}, "dtype": "bfloat16"}}, r"only the adapters are published"),
        ({"learner": {"gpus": 0.5}}, r"learner\.gpus = 0\.5, but each rank has one whole GPU"),
        (
            {
                "rollout": {"workers": 0},
                "data": {"source": "d", "chosen_column": "a", "rejected_column": "b"},
                "update": {"rule": "sparsepo"},
            },
            r"nothing is sampled; leave it out",
        ),
    ],
)
def test_recipes_whose_engines_could_not_come_back_are_refused(sections: dict[str, Any], problem: str):
    with pytest.raises(ValidationError, match=problem):
        recipe(**sections)


def test_adapters_that_are_published_merged_can_take_turns():
    assert recipe(model={"path": "m", "lora": {}}).rollout.placement == "colocated"


def test_tensor_parallel_engines_reserve_their_gpus_or_none():
    with pytest.raises(ValidationError, match=r"gpus_per_worker = 1, but the engine of .* tensor_parallel = 2"):
        recipe(rollout={"placement": "separate", "tensor_parallel": 2, "gpus_per_worker": 1})


def machine(gib: float) -> Machine:
    return Machine(cpus=8, memory_gib=200.0, gpus=(f"A GPU, {round(gib * 1024)} MiB",))


def test_the_memory_of_a_gpu_must_hold_the_larger_turn_not_the_sum():
    """Learner 30 GiB, at rest 24; a sleeping engine 3; an engine that samples takes its fraction."""
    fits = recipe(learner={"track_reference_kl": True}, rollout={"vllm": {"memory_fraction": 0.4}})
    assert least_learner_gib(fits, SIX_GIB, on_gpu=True) == 30.0
    assert resting_learner_gib(fits, SIX_GIB) == 24.0
    placement = place_on_machine(fits, machine(40), SIX_GIB)  # 30 + 3, and 24 + 16: the sum of both would be 46
    assert memory_fraction(fits, placement) == 0.4
    separate = fits.model_copy(update={"rollout": fits.rollout.model_copy(update={"placement": "separate"})})
    with pytest.raises(EnvironmentProblem, match=r"the learner needs at least 30\.0 GiB"):
        place_on_machine(separate, machine(40), SIX_GIB)

    with pytest.raises(EnvironmentProblem, match=r"30\.0 GiB .* beside the 3 GiB of an engine that sleeps.* has 32\.0"):
        place_on_machine(fits, machine(32), SIX_GIB)
    most = recipe()
    with pytest.raises(
        EnvironmentProblem,
        match=r"an engine takes 0\.5 of 40\.0 GiB .* keeps at least 24\.0 GiB there .*memory_fraction=0\.4 or less",
    ):
        place_on_machine(most, machine(40), SIX_GIB)


def test_offloaded_moments_leave_the_gpu_in_both_turns():
    offloaded = recipe(learner={"offload": "optimizer"})
    assert resting_learner_gib(offloaded, SIX_GIB) == 12.0
    placement = place_on_machine(offloaded, machine(40), SIX_GIB)  # 18 + 3, and 12 + 20
    assert memory_fraction(offloaded, placement) == IN_TURNS_SHARE


def test_ranks_share_the_memory_of_the_resting_learner():
    two = recipe(learner={"ranks": 2})
    assert resting_learner_gib(two, SIX_GIB) == 12.0
    assert resting_learner_gib(recipe(model={"path": "m", "lora": {}}), SIX_GIB) is None


def test_the_plan_names_engines_in_turns_and_ranks_that_rest():
    run = recipe(learner={"ranks": 2})
    placement = place(run, nodes(2))
    assert describe(run, placement) == [
        "GPU 0: learner (1), rollout worker 0 (in turns, vLLM memory 0.5)",
        "GPU 1: learner rank 1 (1)",
    ]
    two = Machine(cpus=8, memory_gib=200.0, gpus=("A GPU, 40960 MiB",) * 2)
    assert list(warnings_about_gpus(placement, two)) == [
        "1 of 2 GPUs of the learner have no rollout worker and rest while the others sample: set rollout.workers=2"
    ]
    assert list(warnings_about_gpus(place(recipe(), nodes(1)), machine(40))) == []
