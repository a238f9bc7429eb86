from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.memory import MemoryEstimate
from rlkl.recipe.placement import memory_fraction
from rlkl.recipe.resources import describe, place_on_machine
from rlkl.system.machine import Machine

SMALL = Machine(cpus=2, memory_gib=24.0)
ONE_GIB = MemoryEstimate(
    parameters=2**28,
    learner_gib=4.0,
    moments_gib=2.0,
    gradients_gib=1.0,
    reference_gib=1.0,
    engine_gib=1.0,
    copy_gib=0.0,
)


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"model": {"path": "m"}, "data": {"source": "d"}, **sections})


def test_a_hundred_workers_on_two_cores_are_refused_as_bad_input():
    with pytest.raises(
        EnvironmentProblem, match=r"rollout.workers = 100: .*101 actors.*2 cores.*at most 8 \(4 per core\).*by 93"
    ) as error:
        place_on_machine(recipe(rollout={"workers": 100}), SMALL, None)
    assert error.value.exit_code == 2


def test_as_many_actors_as_the_cores_can_start_are_accepted():
    placement = place_on_machine(recipe(rollout={"workers": 7, "cpus_per_worker": 9}), SMALL, None)
    assert len(placement.actors) == 8
    with_reward = recipe(rollout={"workers": 7}, rewards=[{"function": "f.py:f", "mode": "actor"}])
    with pytest.raises(EnvironmentProblem, match="starts 9 actors"):
        place_on_machine(with_reward, SMALL, None)


def test_processes_that_memory_cannot_hold_are_refused_with_the_arithmetic():
    workers = recipe(rollout={"workers": 4, "kv_cache_gib": 2}, update={"kl_coef": 0.1})
    place_on_machine(workers, Machine(cpus=8, memory_gib=22.7), ONE_GIB)
    with pytest.raises(EnvironmentProblem) as error:
        place_on_machine(workers, Machine(cpus=8, memory_gib=22.5), ONE_GIB)
    assert "needs at least 22.6 GiB of memory, and this machine has 22.5" in str(error.value)
    assert "rollout.workers = 4 x 4.20 (process 1.2, weights 1.00, rollout.vllm.kv_cache_gib = 2)" in str(error.value)
    assert "the learner 5.40" in str(error.value)


def test_a_vllm_process_is_larger_than_one_of_transformers():
    machine = Machine(cpus=8, memory_gib=5.0)
    place_on_machine(recipe(rollout={"workers": 4, "engine": "hf"}), machine, None)
    with pytest.raises(EnvironmentProblem, match=r"needs at least 9.6 GiB .* 4 x 2.20 \(process 1.2, weights 0.00"):
        place_on_machine(recipe(rollout={"workers": 4}), machine, None)


def test_weights_on_gpus_do_not_count_as_host_memory():
    on_gpus = Machine(cpus=8, memory_gib=4.0, gpus=("A, 81559 MiB",) * 5)
    assert place_on_machine(recipe(rollout={"workers": 4}), on_gpus, ONE_GIB).gpus_of("learner") == 1


def test_a_learner_that_its_gpu_cannot_hold_beside_vllm_is_refused():
    one_gpu = Machine(cpus=8, memory_gib=64.0, gpus=("A, 10240 MiB",))
    place_on_machine(recipe(rollout={"memory_fraction": 0.5}), one_gpu, ONE_GIB)
    with pytest.raises(EnvironmentProblem) as error:
        place_on_machine(recipe(rollout={"memory_fraction": 0.6}), one_gpu, ONE_GIB)
    assert "learner needs at least 5.0 GiB" in str(error.value)
    assert "1 x 0.6 = 0.6 of the memory of one GPU" in str(error.value)


def test_each_gpu_is_described_with_its_actors():
    three = Machine(cpus=8, memory_gib=64.0, gpus=("A",) * 3)
    workers = recipe(rollout={"workers": 3}, rewards=[{"function": "f.py:f", "mode": "actor", "gpus": 0.25}])
    placement = place_on_machine(workers, three, None)
    assert memory_fraction(workers, placement) == 0.45
    assert describe(workers, placement) == [
        "GPU 0: learner (1)",
        "GPU 1: rollout workers 0, 2 (0.5, vLLM memory 0.45 each)",
        "GPU 2: rollout worker 1 (0.5, vLLM memory 0.45), reward f.py:f 0 (0.25)",
    ]
    assert describe(recipe(), place_on_machine(recipe(), SMALL, None)) == []


def test_each_rank_needs_host_memory_for_its_share():
    run = recipe(learner={"ranks": 4}, update={"kl_coef": 0.1})
    with pytest.raises(EnvironmentProblem) as error:
        place_on_machine(run, Machine(cpus=8, memory_gib=8.0), ONE_GIB)
    assert "learner.ranks = 4 x 1.65, the driver" in str(error.value)  # 5 GiB among 4


def test_rank_0_alone_needs_host_memory_for_the_weights_that_it_loads():
    machine = Machine(cpus=64, memory_gib=3.0, gpus=("A",) * 5)
    run = recipe(learner={"ranks": 4, "device": "cuda"}, update={"kl_coef": 0.1})
    with pytest.raises(EnvironmentProblem) as error:
        place_on_machine(run, machine, ONE_GIB)
    assert "learner.ranks = 4 x 0.40 and 1.00 while rank 0 loads the model, the driver" in str(error.value)

    place_on_machine(run, replace(machine, memory_gib=4.0), ONE_GIB)
