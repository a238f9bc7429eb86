"""Plans of runs whose engines take turns with the learner on its GPUs."""

from __future__ import annotations

import pytest

from rlkl.commands.plan import Plan, make_plan
from rlkl.commands.plan_cluster import ClusterPlan, plan_cluster
from rlkl.commands.plan_cluster_view import lines
from rlkl.costs.gpus import gpu_named
from rlkl.costs.memory import ASLEEP, GIB, peak_bytes
from rlkl.recipe.io import load_recipe
from rlkl.system.machine import Machine
from tests.unit.commands.test_plan_cluster import recipe

ROLLOUT = {"placement": "colocated", "workers": 8}


def on_gpus(gpus: int = 8, *, rollout: dict | None = None, learner: dict | None = None) -> ClusterPlan:
    split = recipe(rollout={**ROLLOUT, **(rollout or {})}, learner={"ranks": 8, **(learner or {})})
    return plan_cluster(split, gpus=gpus, gpu=gpu_named("H100"))


def text(planned: ClusterPlan) -> str:
    return " ".join(" ".join(lines(planned)).split())


def test_learner_and_engines_use_the_same_gpus_in_turns():
    planned = on_gpus()
    today, whole = planned.today, gpu_named("H100").bytes
    assert (today.ranks, today.engines, today.engine_gpus, today.used) == (8, 8, 8, 8)
    assert today.room == pytest.approx(whole - ASLEEP)
    assert today.engine is not None
    assert today.engine.weights + today.engine.graphs + today.engine.cache == pytest.approx(0.5 * whole)
    assert today.resting is not None
    assert planned.refusals == ()
    shown = text(planned)
    assert "the learner sharded over 8 GPUs and 8 rollout workers on 8 GPUs of it, in turns." in shown
    assert f"While engines sample there, {today.resting / GIB:.1f} GiB of it stay." in shown
    assert "8, in turns" in shown


def test_both_turns_fit_where_their_sum_would_not():
    planned = on_gpus(rollout={"vllm": {"memory_fraction": 0.75}})
    today, whole = planned.today, gpu_named("H100").bytes
    assert today.resting is not None
    assert peak_bytes(today.parts) + 0.75 * whole > whole
    assert today.resting + 0.75 * whole < whole
    assert planned.refusals == ()


def test_an_engine_that_could_not_wake_beside_the_resting_learner_is_refused():
    (refusal,) = on_gpus(rollout={"vllm": {"memory_fraction": 0.85}}).refusals
    assert "a rollout worker takes 68 of 80 GiB, and the resting learner keeps" in refusal
    assert "learner.offload=optimizer" in refusal
    most = float(refusal.partition("memory_fraction=")[2].split()[0])
    assert on_gpus(rollout={"vllm": {"memory_fraction": most}}).refusals == ()
    assert on_gpus(rollout={"vllm": {"memory_fraction": round(most + 0.02, 2)}}).refusals


def test_offloaded_moments_are_not_at_rest_on_the_gpu():
    kept, offloaded = on_gpus().today, on_gpus(learner={"offload": "optimizer"}).today
    assert kept.resting is not None
    assert offloaded.resting is not None
    moments = next(part.bytes for part in kept.parts if part.name == "AdamW moments")
    assert kept.resting - offloaded.resting == pytest.approx(1.05 * moments, rel=0.01)


def test_as_many_gpus_as_ranks_are_enough():
    assert on_gpus(8).today.used == 8
    assert on_gpus(9).today.used == 8


def here(machine: Machine, *overrides: str) -> Plan:
    return make_plan(load_recipe("quickstart", "rollout.placement=colocated", *overrides), machine)


@pytest.fixture(autouse=True)
def _without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_on_a_cpu_the_plan_says_that_nothing_is_freed():
    plan = here(Machine(cpus=4, memory_gib=16.0))
    assert any(warning.startswith("rollout.placement = colocated without a GPU") for warning in plan.warnings)
    (worker,) = [process for process in plan.processes if process.role == "rollout worker"]
    assert (worker.gpus, worker.does) == (0.0, "vllm engine, float32, sleeps while the learner steps")


def test_on_a_gpu_the_plan_counts_it_once():
    plan = here(Machine(cpus=64, memory_gib=512.0, gpus=("H200, 143771 MiB",)))
    assert plan.gpus == 1
    assert not any("colocated" in warning for warning in plan.warnings)


def test_on_a_cluster_engines_reserve_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    plan = here(Machine(cpus=4, memory_gib=16.0))
    assert {process.role: process.gpus for process in plan.processes}["rollout worker"] == 0.0
    assert not any("colocated" in warning for warning in plan.warnings)
