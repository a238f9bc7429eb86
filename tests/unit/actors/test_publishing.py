"""A publish without Ray: the learner, a rollout worker on the hf engine, and the proof."""

import pickle
from pathlib import Path

import pytest
import torch

from rlkl.actors.shells import LearnerWorker, RolloutWorker
from rlkl.errors import WeightSyncError
from rlkl.learner.learner import LearnerSpec
from rlkl.recipe import Recipe
from rlkl.rollout.engine import EngineSettings
from rlkl.types import Probe
from rlkl.weights import Probes, Proof, WeightPackage, bounds_for
from rlkl.weights.movement import rounding_between
from tests.adapters import SCALE, SEQUENCES, base, logprobs, share, with_adapter
from tests.models import deep_qwen3, tiny_qwen3
from tests.unit.learner.test_learner import examples

PROBES = [Probe(token_ids=tuple(row)) for row in SEQUENCES.tolist()]


class Actors:
    """One learner and one worker; `train` is a step and its publish."""

    def __init__(self, path: Path, *, dtype: str, lr: float, lora: bool) -> None:
        model = {"path": str(path), "dtype": dtype} | ({"lora": {"rank": 16, "alpha": 16 * SCALE}} if lora else {})
        recipe = Recipe.model_validate(
            {"model": model, "data": {"source": "unused.jsonl"}, "learner": {"lr": lr, "threads": 1}}
        )
        self.learner, self.worker = LearnerWorker(), RolloutWorker()
        self.learner.start(LearnerSpec(recipe=recipe, model_path=str(path)))
        settings = EngineSettings(
            model_path=str(path),
            dtype=dtype,
            max_prompt_tokens=32,
            max_new_tokens=32,
            temperature=1.0,
            stop_token_ids=(1,),
            memory_fraction=0.5,
            kv_cache_gib=1,
            adapter=recipe.model.lora if recipe.model.publishes_adapters else None,
        )
        self.worker.start("hf", settings)
        layers, width = self.learner.size()
        self.proof = Proof(bounds_for(dtype, layers=layers, width=width))
        plain = self.learner.expect(Probes(current=PROBES[:2])).after.current
        self.proof.allow(rounding_between(plain, self.learner.probe_rounded(PROBES[:2])))
        self.kept: WeightPackage | None = None
        self.publish(0, Probes(current=PROBES[:2]))

    def publish(self, version: int, probes: Probes, *, stale: bool = False) -> float:
        package = pickle.loads(pickle.dumps(self.learner.pack(version)))  # the bits of now, as Ray sends them
        before = {"worker": self.worker.score(probes.kept)} if self.proof.wants_probes else {}
        sent = self.kept if stale and self.kept else package
        receipt = self.worker.receive(sent, probes)
        self.kept = sent
        expected = self.learner.expect(probes)
        if self.proof.wants_probes and expected.before is not None:
            self.proof.keep(probes.kept, expected.before, before)
        return self.proof.check(expected.after, {"worker": receipt}, version=receipt.version)

    def learn(self, step: int) -> None:
        self.learner.learn(examples(step), (), PROBES if self.proof.wants_probes else (), (step, False))

    def train(self, step: int, *, stale: bool = False) -> float:
        self.learn(step)
        return self.publish(step + 1, Probes(kept=PROBES), stale=stale)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deep_qwen3(tmp_path_factory.mktemp("models") / "deep")


def test_adapters_in_bfloat16_go_the_learners_way(model_path: Path):
    """Ten steps at the default learning rate, which weights merged in bfloat16 would lose."""
    actors = Actors(model_path, dtype="bfloat16", lr=1e-6, lora=True)
    actors.train(0)
    for step in range(1, 9):
        actors.learn(step)  # publishes between the first and the last would only take time
    actors.train(9)

    wanted = {
        name.replace("policy.model.", "base_model.model.", 1).replace(".default", ""): parameter.detach()
        for name, parameter in actors.learner._learner._optimization.trained.items()
    }
    readable = actors.worker._loop.call(lambda engine: list(engine.readable_weights()))
    held = {name: tensor.float() for name, tensor in readable}
    assert held.keys() == wanted.keys()
    start, learner = logprobs(base(model_path)), logprobs(with_adapter(model_path, wanted))
    assert share(logprobs(with_adapter(model_path, held)), start, learner) == pytest.approx(1, abs=0.01)
    assert share(logprobs(with_adapter(model_path, wanted, torch.bfloat16)), start, learner) < 0.2


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("models") / "tiny", tied=True, seed=0)


def test_steps_of_a_deep_model_that_move_nothing_are_proven(model_path: Path):
    actors = Actors(model_path, dtype="float32", lr=0.0, lora=True)
    for step in range(2):
        assert actors.train(step) < bounds_for("float32", layers=24, width=128).tolerance


FORMS = [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]


@pytest.mark.parametrize(("dtype", "lora"), FORMS)
def test_steps_that_move_nothing_and_steps_that_move_much_are_proven(tiny_path: Path, dtype: str, lora: bool):
    for lr in (0.0, 1e-3):
        actors = Actors(tiny_path, dtype=dtype, lr=lr, lora=lora)
        for step in range(3):
            assert actors.train(step) < bounds_for(dtype, layers=2, width=64).tolerance


@pytest.mark.parametrize(("dtype", "lora"), FORMS)
def test_a_worker_that_gets_the_weights_of_an_earlier_step_is_found(tiny_path: Path, dtype: str, lora: bool):
    actors = Actors(tiny_path, dtype=dtype, lr=1e-3, lora=lora)
    for step in range(2):
        actors.train(step)

    def train_on() -> None:
        for step in range(2, 12):
            actors.train(step, stale=True)

    with pytest.raises(WeightSyncError, match=r"worker (differs from|disagrees with) the learner"):
        train_on()
