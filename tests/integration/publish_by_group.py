"""Run as a script: an engine takes in weights by host and by group in turn, from a learner in another process.

python -m tests.integration.publish_by_group CASE.json ANSWERS.json
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkl.errors import WeightSyncError
from rlkl.learner.ranks import LOOPBACK, open_store
from rlkl.models.policy import Policy
from rlkl.recipe import LoraSection, ModelSection
from rlkl.rollout.engine import EngineSettings, Request, engine_class
from rlkl.types import Probe
from rlkl.weights.buckets import Manifest
from rlkl.weights.group import Place, PublishGroup, send

LENGTHS = (40, 31, 8)
BUCKET_BYTES = 2_000
DEADLINE_S = 60.0


def make_settings(case: dict[str, Any]) -> EngineSettings:
    return EngineSettings(
        model_path=case["model"],
        dtype=case["dtype"],
        max_prompt_tokens=48,
        max_new_tokens=8,
        temperature=1.0,
        stop_token_ids=(1,),
        memory_fraction=0.3,
        kv_cache_gib=1,
        tensor_parallel=case.get("tensor_parallel", 1),
        adapter=_adapter(case) if case["dtype"] == "bfloat16" else None,
    )


def _adapter(case: dict[str, Any]) -> LoraSection | None:
    return LoraSection(rank=4, alpha=12) if case.get("lora") else None


class Moved:
    """A policy that moves to one of several places."""

    def __init__(self, case: dict[str, Any]) -> None:
        section = ModelSection.model_validate({"path": case["model"], "dtype": case["dtype"], "lora": _adapter(case)})
        self.policy = Policy(case["model"], section, device=torch.device("cpu"), seed=0)
        self._start = {name: parameter.detach().clone() for name, parameter in self.policy.named_parameters()}

    @torch.no_grad()
    def published(self, where: int) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(where)
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(self._start[name] + torch.randn(parameter.shape, generator=generator) * 0.03)
        return self.policy.published()

    def manifest(self, version: int) -> Manifest:
        return Manifest(version=version, tensors=tuple(self.policy.outlines()), bucket_bytes=BUCKET_BYTES)


def learn(case: dict[str, Any], orders: Connection) -> None:
    """Join the group once, and send a version at each order; the learner's process."""
    torch.set_num_threads(1)
    moved, store = Moved(case), open_store(LOOPBACK, size=1, timeout_s=DEADLINE_S)
    orders.send(store.port)
    group = PublishGroup(orders.recv(), store=store)
    while (version := orders.recv()) is not None:
        try:
            orders.send(
                send(moved.published(version), moved.manifest(version), group=group, sum_=lambda tensor: tensor)
            )
        except WeightSyncError as error:
            orders.send(error)


class Publisher:
    """The engine's side: the same weights by host or by group."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.engine: Any = engine_class(case["engine"])(make_settings(case))
        self._moved = Moved(case)
        self._orders, theirs = multiprocessing.get_context("spawn").Pipe()
        self._learner = multiprocessing.get_context("spawn").Process(target=learn, args=(case, theirs), daemon=True)
        self._learner.start()
        port, size = self._orders.recv(), case.get("tensor_parallel", 1)
        members = ("the learner", *(f"engine, process {number}" for number in range(size)))
        self._orders.send(self._place(port, members, 0))
        self.engine.join_group(self._place(port, members, 1))

    @staticmethod
    def _place(port: int, members: tuple[str, ...], rank: int) -> Place:
        return Place(host=LOOPBACK, port=port, name="publish-0", members=members, rank=rank, timeout_s=DEADLINE_S)

    def by_host(self, version: int) -> None:
        unreached = self.engine.load_weights(list(self._moved.published(version)))
        assert not unreached, unreached

    def by_group(self, version: int) -> list[list[Any]]:
        """Return what was sent, and what arrived in each process: the sums of bits."""
        manifest = self._moved.manifest(version)
        self._orders.send(version)
        arrivals = self.engine.receive_from_group(manifest)
        sent = self._orders.recv()
        assert len(manifest.buckets()) > 3
        assert [arrival.unreached for arrival in arrivals] == [()] * len(arrivals)
        return [sorted(sent.items()), *(sorted(arrival.checksums.items()) for arrival in arrivals)]

    def close(self) -> None:
        self._orders.send(None)
        self._learner.join(60)

    def look(self) -> dict[str, Any]:
        """Return log-probs, sampled tokens, and the weights that can be read back."""
        generator = torch.Generator().manual_seed(0)
        probes = [Probe(token_ids=tuple(torch.randint(3, 90, (n,), generator=generator).tolist())) for n in LENGTHS]
        requests = [Request(prompt_token_ids=(5, 6, 7), seed=seed) for seed in range(8)]
        drawn = self.engine.generate(requests)
        return {
            "scores": self.engine.score(probes),
            "tokens": [completion.token_ids for completion in drawn],
            "logprobs": [completion.logprobs for completion in drawn],
            "weights": {name: tensor.double().flatten().tolist() for name, tensor in self.engine.readable_weights()},
        }


def main(case_file: str, answers: str) -> None:
    """Write what the engine shows after each publish."""
    case = json.loads(Path(case_file).read_text())
    publisher = Publisher(case)
    publisher.by_host(1)  # an engine with adapters cannot sample before it has one
    shown = {"host 1": publisher.look()}
    sums = publisher.by_group(2)
    shown["group 2"] = publisher.look()
    publisher.by_host(2)
    shown["host 2"] = publisher.look()
    sums += publisher.by_group(1)
    shown["group 1"] = publisher.look()
    publisher.close()
    children = [child.pid for child in multiprocessing.active_children()]
    report = {"shown": shown, "sums": sums, "children": children}
    Path(answers).write_text(json.dumps(report))
    if case.get("is_killed"):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
