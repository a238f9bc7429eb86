"""Defaults start on any number of GPUs; whatever cannot be placed is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.placement import (
    LEARNER,
    WORKER,
    Node,
    Placement,
    memory_fraction,
    nodes_for,
    part,
    place,
    place_rewards,
    reserved_cpus,
    reward_actors,
)


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"model": {"path": "m"}, "data": {"source": "d"}, **sections})


def nodes(*gpus: int, cpus: float = 64) -> list[Node]:
    return [Node(name=f"n{number}", cpus=cpus, gpus=count) for number, count in enumerate(gpus)]


def assert_sound(placement: Placement, there: list[Node]) -> None:
    """No GPU is given out more than once, no node beyond its CPUs, and no actor is split over GPUs that it shares."""
    given = Counter((group.node, device) for group in placement.groups for device in group.devices)
    assert set(given.values()) <= {1}
    by_name = {node.name: node for node in there}
    assert all(device < by_name[node].gpus for node, device in given)
    for group in placement.groups:
        units = sum(round(actor.gpus * 10_000) for actor in group.actors)
        assert units <= 10_000 * len(group.devices)
        assert len(group.actors) == 1 or len(group.devices) == 1
    for node in there:
        assert sum(group.cpus for group in placement.groups if group.node == node.name) <= node.cpus


@pytest.mark.parametrize("workers", range(1, 10))
@pytest.mark.parametrize("gpus", range(1, 17))
def test_defaults_start_on_any_number_of_gpus(workers: int, gpus: int):
    run = recipe(rollout={"workers": workers})
    placement = place(run, nodes(gpus))

    assert_sound(placement, nodes(gpus))
    assert Counter(actor.role for actor in placement.actors) == {WORKER: workers, LEARNER: 1}
    assert all(actor.gpus > 0 for actor in placement.actors)
    assert sum(len(group.devices) for group in placement.groups) == min(gpus, workers + 1)  # no GPU idles needlessly
    alone = [group for group in placement.groups if group.count(LEARNER) and len(group.actors) == 1]
    assert len(alone) == (gpus >= 2)
    fraction = memory_fraction(run, placement)
    assert all(group.count(WORKER) * fraction <= 0.9 for group in placement.groups)
    assert min(group.count(WORKER) for group in placement.groups if group.count(WORKER)) >= workers // gpus


@pytest.mark.parametrize("workers", range(1, 10))
@pytest.mark.parametrize("gpus", [(1, 1), (1, 2), (2, 2), (4, 0, 1), (8, 8), (1, 1, 1, 1, 1)])
def test_defaults_start_on_several_nodes(workers: int, gpus: tuple[int, ...]):
    placement = place(recipe(rollout={"workers": workers}), nodes(*gpus))

    assert_sound(placement, nodes(*gpus))
    assert len(placement.actors) == workers + 1


@pytest.mark.parametrize(
    ("gpus", "sections", "worker", "learner"),
    [
        (0, {}, 0.0, 0.0),
        (1, {}, 0.5, 0.5),
        (2, {}, 1.0, 1.0),
        (2, {"rollout": {"workers": 2}}, 0.5, 1.0),
        (3, {"rollout": {"workers": 3}}, 0.5, 1.0),
        (4, {"rollout": {"workers": 3}}, 1.0, 1.0),
        (8, {"rollout": {"workers": 8}}, 0.5, 1.0),
        (8, {"rollout": {"workers": 3}}, 1.0, 1.0),
        (1, {"learner": {"device": "cpu"}}, 1.0, 0.0),
        (1, {"learner": {"gpus": 0}}, 1.0, 0.0),
        (1, {"rollout": {"gpus_per_worker": 0.7}, "learner": {"gpus": 0.3}}, 0.7, 0.3),
        (1, {"rollout": {"gpus_per_worker": 0.25}}, 0.25, 0.5),
        (1, {"rollout": {"workers": 2}, "learner": {"gpus": 0.5}}, 0.25, 0.5),
        (3, {"rollout": {"gpus_per_worker": 2}}, 2.0, 1.0),
        (2, {"rollout": {"workers": 0}, "data": {"source": "d", "chosen_column": "a", "rejected_column": "b"},
             "update": {"rule": "sparsepo"}}, 0.0, 1.0),
        (2, {"rewards": [{"function": "f.py:f", "mode": "actor", "gpus": 1}]}, 0.5, 0.5),
        (1, {"rewards": [{"function": "f.py:f", "mode": "actor", "gpus": 0.5}]}, 0.25, 0.25),
        (3, {"rewards": [{"function": "f.py:f", "mode": "actor", "gpus": 0.5}]}, 1.0, 1.0),
    ],
)  # fmt: skip
def test_shares(gpus: int, sections: dict[str, Any], worker: float, learner: float):
    placement = place(recipe(**sections), nodes(gpus))

    assert_sound(placement, nodes(gpus))
    assert (placement.gpus_of(WORKER), placement.gpus_of(LEARNER)) == (worker, learner)


@pytest.mark.parametrize("actors", range(1, 129))
def test_parts_of_a_gpu_never_exceed_it_in_steps_that_ray_counts(actors: int):
    assert round(part(actors) * 10_000) * actors <= 10_000
    assert part(actors) * 10_000 == pytest.approx(round(part(actors) * 10_000))


def test_shares_of_different_sizes_are_placed_where_they_leave_the_least_room():
    workers = {"workers": 2, "gpus_per_worker": 0.5}
    reward = {"function": "f.py:f", "mode": "actor", "workers": 2, "gpus": 0.3}
    placement = place(recipe(rollout=workers, learner={"gpus": 0.4}, rewards=[reward]), nodes(2))
    assert_sound(placement, nodes(2))


@pytest.mark.parametrize(
    ("sections", "there", "message"),
    [
        (
            {"rollout": {"workers": 2, "gpus_per_worker": 0.667}, "learner": {"gpus": 0.667}},
            nodes(2),
            "1 x learner (1 CPU, 0.667 GPU), 2 x rollout worker (1 CPU, 0.667 GPU). For rollout worker 1 (1 CPU, 0.667 "
            "GPU) there is no room; once the others are placed, this is left: n0: 62 of 64 CPUs, 0.333 of GPU 0, 0.333 "
            "of GPU 1",
        ),
        ({"rollout": {"gpus_per_worker": 2}}, nodes(1, 1), "For rollout worker 0 (1 CPU, 2 GPU)"),
        ({"rollout": {"workers": 2, "gpus_per_worker": 0.5}}, nodes(1), "For learner"),
        ({"rollout": {"workers": 4}}, nodes(1, cpus=4), "left: n0: 0 of 4 CPUs, 1 of GPU 0"),
        ({"rollout": {"cpus_per_worker": 6}}, nodes(0, 0, cpus=4), "n0: 4 of 4 CPUs, no GPU; n1: 4 of 4 CPUs, no GPU"),
        ({"rollout": {"gpus_per_worker": 1.5}}, nodes(4), "rollout.gpus_per_worker = 1.5: above 1, Ray gives whole"),
        ({"learner": {"device": "cuda"}}, nodes(0), "learner.device = 'cuda', but the learner sees no CUDA device"),
        ({"learner": {"device": "cuda", "gpus": 0}}, nodes(1), "learner.device = 'cuda', but learner.gpus = 0"),
        (
            {"rollout": {"workers": 2, "memory_fraction": 0.5}},
            nodes(1),
            "vLLM takes 2 x 0.5 = 1 of the memory of one GPU (rollout.vllm.memory_fraction) and leaves nothing for the "
            "learner there. Leave rollout.vllm.memory_fraction out, so that it follows from the workers' shares of the "
            "GPU (here 0.3)",
        ),
        ({"rollout": {"workers": 4, "memory_fraction": 0.6}}, nodes(3), "vLLM takes 2 x 0.6 = 1.2 of the memory"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_arithmetic(
    sections: dict[str, Any], there: list[Node], message: str
):
    with pytest.raises(EnvironmentProblem) as error:
        place(recipe(**sections), there)
    assert message in str(error.value)


def test_a_memory_fraction_that_fits_is_kept():
    for gpus, named in ((1, 0.3), (2, 0.5), (3, 0.95)):
        run = recipe(rollout={"workers": 2, "memory_fraction": named})
        assert memory_fraction(run, place(run, nodes(gpus))) == named
    hf = recipe(rollout={"workers": 2, "memory_fraction": 0.5, "engine": "hf"})
    assert place(hf, nodes(1)).gpus_of(WORKER) == 0.3333


def test_rewards_alone_are_placed_too():
    rewards = recipe(rewards=[{"function": "f.py:f", "mode": "actor", "workers": 3, "gpus": 0.4, "cpus": 0.5}])
    assert_sound(place_rewards(rewards, nodes(2)), nodes(2))
    with pytest.raises(EnvironmentProblem, match=r"For reward f.py:f 2 \(0.5 CPU, 0.4 GPU\) there is no room"):
        place_rewards(rewards, nodes(1))


def test_two_rewards_of_one_function_are_actors_of_their_own():
    twice = [{"function": "f.py:f", "mode": "actor", "workers": 2, "settings": {"x": number}} for number in range(2)]
    assert [actor.name for actor in reward_actors(recipe(rewards=twice))] == [f"reward f.py:f {n}" for n in range(4)]


def test_reserved_cpus_count_every_actor():
    reward = {"function": "f.py:f", "mode": "actor", "workers": 3, "cpus": 0.5}
    assert reserved_cpus(recipe(rollout={"workers": 2, "cpus_per_worker": 4}, rewards=[reward])) == 2 * 4 + 1 + 1.5


@pytest.mark.parametrize(("there", "worker"), [(nodes(4), 0.5), (nodes(3, 1), 0.5), (nodes(5), 1.0), (nodes(9), 1.0)])
def test_each_rank_of_the_learner_has_a_gpu_of_its_own(there: list[Node], worker: float):
    placement = place(recipe(rollout={"workers": 2}, learner={"ranks": 3}), there)

    assert_sound(placement, there)
    assert [actor.name for actor in placement.actors if actor.role == LEARNER] == [
        "learner",
        "learner rank 1",
        "learner rank 2",
    ]
    assert (placement.gpus_of(LEARNER), placement.gpus_of(WORKER)) == (1.0, worker)


def test_ranks_without_gpus_have_a_cpu_each():
    run = recipe(rollout={"workers": 1}, learner={"ranks": 2})
    placement = place(run, nodes(0, 0, cpus=2))

    assert_sound(placement, nodes(0, 0, cpus=2))
    assert reserved_cpus(run) == 3
    assert placement.count(LEARNER) == 2
    assert placement.gpus_of(LEARNER) == 0


@pytest.mark.parametrize(
    ("learner", "there", "problem"),
    [
        ({"ranks": 2, "gpus": 0.5}, nodes(4), r"learner\.gpus = 0\.5 with learner\.ranks = 2: two ranks cannot share"),
        ({"ranks": 3}, nodes(2), r"cannot be placed: 3 x learner .*lower them, rollout\.workers, learner\.ranks"),
    ],
)
def test_ranks_that_would_share_a_gpu_are_refused(learner: dict[str, Any], there: list[Node], problem: str):
    with pytest.raises(EnvironmentProblem, match=problem):
        place(recipe(rollout={"workers": 1}, learner=learner), there)


def nodes_of(placement: Placement, role: str) -> list[str]:
    return sorted(group.node for group in placement.groups for actor in group.actors if actor.role == role)


def test_ranks_lie_together_and_workers_apart():
    placement = place(recipe(rollout={"workers": 4}, learner={"ranks": 4}), nodes(4, 4, 4))
    assert nodes_of(placement, LEARNER) == ["n0"] * 4
    assert nodes_of(placement, WORKER) == ["n1", "n1", "n2", "n2"]

    on_cpus = place(recipe(rollout={"workers": 2}, learner={"ranks": 2}), nodes(0, 0, 0, cpus=2))
    assert (nodes_of(on_cpus, LEARNER), nodes_of(on_cpus, WORKER)) == (["n0", "n0"], ["n1", "n2"])


def test_an_actor_that_fits_one_node_only_goes_there_even_if_the_learner_would_like_it():
    there = [*nodes(0, cpus=2), Node(name="large", cpus=3, gpus=0)]
    placement = place(recipe(rollout={"cpus_per_worker": 3}, learner={"ranks": 2}), there)
    assert (nodes_of(placement, LEARNER), nodes_of(placement, WORKER)) == (["n0", "n0"], ["large"])


@pytest.mark.parametrize(("there", "fits"), [(nodes(5), True), (nodes(1, 4), True), (nodes(3, 2), True)])
def test_an_engine_has_all_its_gpus_on_one_node(there: list[Node], fits: bool):
    run = recipe(rollout={"workers": 2, "tensor_parallel": 2})
    placement = place(run, there)
    assert_sound(placement, there)
    assert (placement.gpus_of(WORKER), placement.gpus_of(LEARNER)) == (2.0, 1.0)
    assert memory_fraction(run, placement) == 0.9


def test_an_engine_that_no_node_can_hold_is_refused_although_there_are_gpus_enough():
    with pytest.raises(
        EnvironmentProblem,
        match=r"1 x rollout worker \(1 CPU, 4 GPU\).*An actor runs on one node.*rollout\.tensor_parallel",
    ):
        place(recipe(rollout={"tensor_parallel": 4}), nodes(3, 3, 3))


def test_groups_go_to_nodes_that_have_room_now():
    groups = place(recipe(rollout={"workers": 2}, learner={"ranks": 2}), nodes(2, 2)).groups
    assert nodes_for(groups, nodes(2, 2)) == ["n0", "n0", "n1", "n1"]
    assert nodes_for(groups, nodes(0, 3, 1)) == ["n1", "n1", "n2", "n1"]
    assert nodes_for(groups, nodes(0, 3)) is None


def test_a_part_of_a_gpu_that_another_run_leaves_is_used():
    groups = place(recipe(rollout={"gpus_per_worker": 0.3}, learner={"gpus": 0.2}), nodes(1)).groups
    assert nodes_for(groups, [Node(name="n", cpus=8, gpus=0.5)]) == ["n"]
    assert nodes_for(groups, [Node(name="n", cpus=8, gpus=0.4)]) is None


def test_a_parallel_engine_reserves_nothing_more_on_cpus():
    assert place(recipe(rollout={"tensor_parallel": 2}), nodes(0)).gpus_of(WORKER) == 0
