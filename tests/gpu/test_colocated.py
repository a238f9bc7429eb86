"""Engines that really sleep: the memory that they free on a GPU, and a run whose engine shares it with the learner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from safetensors.torch import load_file

import rlkl
from rlkl.actors.shells import RolloutWorker
from rlkl.errors import RolloutError
from rlkl.rollout.engine import EngineSettings
from rlkl.types import Probe
from rlkl.weights import HostMemoryChannel, Probes
from tests.gpu.learners import write_model
from tests.integration.runs import make_recipe, records
from tests.models import tiny_qwen3

PROBES = [Probe(token_ids=tuple(range(3, 20)))]
FRACTION = 0.3
ENGINE_DEADLINE_S = 600


def used_gib() -> float:
    """Memory in use on the first GPU, by all processes."""
    code = "import torch; free, whole = torch.cuda.mem_get_info(); print((whole - free) / 2**30)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    """A rollout worker with a sleeping vLLM, in a process of its own."""
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, _node_ip_address="127.0.0.1")
    actor = ray.remote(RolloutWorker).options(num_gpus=1).remote()
    settings = EngineSettings(
        model_path=write_model(tmp_path / "model"),
        dtype="bfloat16",
        max_prompt_tokens=64,
        max_new_tokens=64,
        temperature=1.0,
        stop_token_ids=(2,),
        memory_fraction=FRACTION,
        kv_cache_gib=1,
        sleeps=True,
    )
    ray.get(actor.start.remote("vllm", settings), timeout=ENGINE_DEADLINE_S)
    yield actor
    ray.shutdown()


def test_a_sleeping_engine_frees_its_memory_and_a_publish_brings_its_log_probs_back(worker: Any, tmp_path: Path):
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    package = HostMemoryChannel().pack(((name, tensor.bfloat16()) for name, tensor in tensors.items()), 1)
    before: Any = ray.get(worker.receive.remote(package, Probes(current=PROBES)))
    awake = used_gib()

    ray.get(worker.sleep.remote())
    asleep = used_gib()
    assert awake - asleep > 0.2 * awake, "weights and key-value cache are still on the GPU"
    with pytest.raises(RayTaskError, match="asleep") as refused:
        ray.get(worker.score.remote(PROBES))
    assert isinstance(refused.value.cause, RolloutError)

    ray.get(worker.wake_weights.remote())
    assert used_gib() < awake - 0.1 * (awake - asleep), "the cache must wait for the publish"
    after: Any = ray.get(worker.receive.remote(package, Probes(current=PROBES)))
    assert after.scores == before.scores
    assert after.unreached == ()
    assert used_gib() == pytest.approx(awake, rel=0.05)


@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_a_run_on_one_gpu_in_turns_follows_its_learner(tmp_path: Path, offload: str):
    model = tiny_qwen3(tmp_path / "model", tied=True, seed=0)
    done = rlkl.train(
        make_recipe(
            tmp_path / "run",
            model,
            rollout={"placement": "colocated", "vllm": {"memory_fraction": FRACTION}},
            learner={"offload": offload},
        )
    )
    lines = records(done.run_dir)
    assert done.status == "done"
    assert all(line["weights/verified"] == 1 for line in lines), json.dumps(lines[-1])
    assert max(line["rollout/mismatch_max"] for line in lines) < 1e-2
