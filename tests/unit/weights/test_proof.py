"""The verdict on a publish, from log-probs and receipts. Scores are synthetic; real ones: `tests.integration`."""

from dataclasses import replace

import numpy as np
import pytest

from rlkl.errors import ExportError, WeightSyncError
from rlkl.types import Image, Probe, Prompt
from rlkl.weights import ProbeScores, Proof, Receipt, bounds_for, build_probes, check_export
from rlkl.weights.movement import Rounding

WORKER = "rollout worker 0"
Rows = list[tuple[float, ...]]


def rows(*scores: float) -> Rows:
    return [scores]


def receipt(kept: Rows, *, current: Rows | None = None, unreached: tuple[str, ...] = ()) -> Receipt:
    scores = ProbeScores(current=current or [], kept=kept)
    return Receipt(version=3, damaged=(), unreached=unreached, scores=scores)


def started(dtype: str = "float32", *, layers: int = 2, width: int = 64, first: Rows | None = None) -> Proof:
    """A proof that has seen the first publish, with the engine's scores against the learner's."""
    proof = Proof(bounds_for(dtype, layers=layers, width=width))
    engine, learner = (first or rows(-1.0), rows(-1.0)) if first is None or len(first) == 1 else (first[:1], first[1:])
    proof.check(ProbeScores(current=learner), {WORKER: replace(receipt([], current=engine), version=0)}, version=0)
    return proof


def publish(proof: Proof, *, learner: Rows, engine: Rows) -> float:
    return proof.check(ProbeScores(current=[], kept=learner), {WORKER: receipt(engine)}, version=3)


def check(engine: float, learner: float, before: float) -> float:
    """One token, with the weights before and after a step."""
    proof = started()
    proof.keep([Probe(token_ids=(1, 2))], rows(before), {WORKER: rows(before)})
    return publish(proof, learner=rows(learner), engine=rows(engine))


def test_a_tensor_that_never_reached_the_engine_is_named():
    answer = receipt(rows(-1.0), unreached=("layers.1.down",))

    with pytest.raises(WeightSyncError, match=r"1 parameters that no tensor of version 3 reached.*layers\.1\.down"):
        started().check(ProbeScores(current=[], kept=rows(-1.0)), {WORKER: answer}, version=3)


def test_damaged_bytes_and_another_version_are_named():
    damaged = replace(receipt(rows(-1.0)), damaged=("a",))
    with pytest.raises(WeightSyncError, match=r"rollout worker 0 received other bytes .* a"):
        started().check(ProbeScores(current=[], kept=rows(-1.0)), {WORKER: damaged}, version=3)
    with pytest.raises(WeightSyncError, match="took in version 3 of the weights; version 4 was published"):
        started().check(ProbeScores(current=[], kept=rows(-1.0)), {WORKER: receipt(rows(-1.0))}, version=4)


def test_the_first_publish_may_differ_by_twice_what_rounding_does():
    def first(gap: float, **rounding: float) -> None:
        proof = Proof(bounds_for("bfloat16", layers=24, width=128))
        proof.allow(Rounding(**rounding))
        answer = replace(receipt([], current=rows(-2.0, -1.0 - gap)), version=0)
        proof.check(ProbeScores(current=rows(-2.0, -1.0)), {WORKER: answer}, version=0)

    first(1.9, largest=1.0, mean=0.7)
    with pytest.raises(WeightSyncError, match=r"by 2\.1 nats .* at most 2 \(1\.4\) is allowed"):
        first(2.1, largest=1.0, mean=0.7)
    with pytest.raises(WeightSyncError, match=r"at most 2 \(0\.4\) is allowed"):
        first(1.9, largest=1.0, mean=0.2)


def test_a_rounding_that_is_not_finite_raises_no_limit():
    proof = Proof(bounds_for("bfloat16", layers=24, width=128))
    proof.allow(Rounding(largest=float("inf"), mean=1.0))
    proof.allow(Rounding(largest=1.0, mean=float("nan")))
    answer = replace(receipt([], current=rows(-2.1)), version=0)
    with pytest.raises(WeightSyncError, match=r"at most 1 \(0\.25\)"):
        proof.check(ProbeScores(current=rows(-1.0)), {WORKER: answer}, version=0)


def test_a_tolerance_of_the_recipe_is_not_widened():
    proof = Proof(bounds_for("bfloat16", layers=24, width=128, tolerance=0.5))
    assert not proof.wants_rounding
    proof.allow(Rounding(largest=10.0, mean=10.0))
    answer = replace(receipt([], current=rows(-1.6)), version=0)
    with pytest.raises(WeightSyncError, match=r"at most 0\.5"):
        proof.check(ProbeScores(current=rows(-1.0)), {WORKER: answer}, version=0)


def test_agreement_returns_the_largest_gap_of_the_current_probes():
    assert check(-1.00002, -1.0, before=-2.0) == pytest.approx(2e-5)

    answer = receipt(rows(-1.0), current=rows(-3.00004, -1.0))
    gap = started().check(ProbeScores(current=rows(-3.0, -1.0), kept=rows(-1.0)), {WORKER: answer}, version=3)
    assert gap == pytest.approx(4e-5)


def test_disagreement_above_the_tolerance_gives_the_figures():
    with pytest.raises(WeightSyncError, match=r"disagrees with the learner by 0\.5 nats .* at most 0\.001"):
        check(-1.5, -1.0, before=-1.5)


def test_not_a_number_is_a_disagreement():
    with pytest.raises(WeightSyncError, match="by nan nats"):
        check(float("nan"), -1.0, before=-1.5)


def test_stale_weights_are_found_although_the_step_was_smaller_than_the_tolerance():
    with pytest.raises(WeightSyncError, match=r"it has gone 0\.0% of the way.*some weights are still the old ones"):
        check(-1.0, -1.0002, before=-1.0)


def test_rounding_is_not_taken_for_stale_weights():
    assert check(-1.000003, -1.000001, before=-1.0) < 1e-5


def test_limits_follow_the_size_of_the_model_and_the_first_publish():
    small, large = (bounds_for("float32", layers=layers, width=width) for layers, width in ((24, 512), (80, 8192)))
    assert small.tolerance == 1e-3
    assert large.tolerance == pytest.approx(1e-3 * 80 * 8192 / (24 * 1024))
    assert bounds_for("float32", layers=80, width=8192, tolerance=1e-5).tolerance == 1e-5

    far = rows(-1.0, *[-2.0] * 99), rows(-1.003, *[-2.0] * 99)
    with pytest.raises(WeightSyncError, match=r"at most 0\.001"):
        publish(started(), learner=far[0], engine=far[1])
    first = [far[0][0], (-1.0009, *[-2.0] * 99)]
    assert publish(started(first=first), learner=far[0], engine=far[1]) == pytest.approx(3e-3)


class Deep:
    """A deep float32 model's scores: 8 sequences of 250 tokens, each score rounded by up to 9e-5 nats."""

    def __init__(self, dtype: str = "float32", *, seed: int = 0, noise: float = 2e-5) -> None:
        self._random, self._noise = np.random.default_rng(seed), noise
        self.old = self._random.uniform(-9, -7, (8, 250))
        first = [self.scores(self.old)[0], self.scores(self.old)[0]]
        self.proof = started(dtype, layers=24, width=512, first=first)
        self.proof.keep([Probe(token_ids=(1, 2))] * 8, self.scores(self.old), {WORKER: self.scores(self.old)})

    def scores(self, true: np.ndarray) -> Rows:
        noise = self._random.normal(0, self._noise, true.shape).clip(-4.5 * self._noise, 4.5 * self._noise)
        return [tuple(row) for row in true + noise]

    def direction(self, size: float) -> np.ndarray:
        return self._random.standard_t(5, self.old.shape) * size

    def publish(self, learner: np.ndarray, engine: np.ndarray) -> float:
        return publish(self.proof, learner=self.scores(learner), engine=self.scores(engine))


@pytest.mark.parametrize("movement", [0.0, 1e-6, 1e-5, 1e-4, 1e-2])
def test_a_deep_models_rounding_is_never_taken_for_stale_weights(movement: float):
    """Steps that move nothing, or less than the rounding, and then steps that move something."""
    for seed in range(4):
        deep = Deep(seed=seed)
        now = deep.old
        for _ in range(5):
            now = now + deep.direction(movement)
            assert deep.publish(now, now) < 5e-4


def saturated(moved: list[float], share: float) -> None:
    """Publish a step that moved the kept tokens so far; the engine has gone ``share`` of the way."""
    before = [-20.0, *[-1e-4] * (len(moved) - 1)]
    proof = started()
    proof.keep([Probe(token_ids=(1, 2))], rows(*before), {WORKER: rows(*before)})
    learner, engine = ([b + part * m for b, m in zip(before, moved, strict=True)] for part in (1.0, share))
    publish(proof, learner=rows(*learner), engine=rows(*engine))


def test_rounding_of_the_one_token_that_moved_is_not_taken_for_stale_weights():
    """A policy that is sure of its answers moves unlikely tokens alone, and rounding hits these hardest."""
    saturated([4.5e-4, *[0.0] * 29], share=0.953)
    with pytest.raises(WeightSyncError, match=r"it has gone 95\.3% of the way"):
        saturated([8.2e-5] * 30, share=0.953)


@pytest.mark.parametrize("movement", [6e-4, 1e-2])
def test_one_stale_layer_of_twenty_four_is_found(movement: float):
    for seed in range(4):
        deep = Deep(seed=seed)
        layers = [deep.direction(movement / 24**0.5) for _ in range(24)]
        with pytest.raises(WeightSyncError, match=r"rollout worker 0 (differs from|disagrees with) the learner"):
            deep.publish(deep.old + sum(layers), deep.old + sum(layers[1:]))


def test_weights_that_stop_arriving_late_in_a_run_are_found():
    for seed in range(4):
        deep = Deep(seed=seed)
        now = deep.old
        for _ in range(10):
            now = now + deep.direction(1e-4)
            deep.publish(now, now)
        with pytest.raises(WeightSyncError, match="Movement is counted from the publish before"):
            deep.publish(now + deep.direction(1e-4).clip(-5e-4, 5e-4), now)


def test_a_little_that_is_lost_at_every_publish_adds_up():
    """Each step is drowned by bfloat16's rounding; together they are not. Merged adapters lose like this."""
    deep = Deep("bfloat16", noise=0.02)
    direction = deep.direction(0.01)
    deep.publish(deep.old + direction, deep.old + 0.7 * direction)  # one step alone is no evidence

    def train() -> None:
        for step in range(2, 40):
            deep.publish(deep.old + step * direction, deep.old + step * 0.7 * direction)

    with pytest.raises(WeightSyncError, match="Movement is counted from the first step of this run"):
        train()


@pytest.mark.parametrize("movement", [0.0, 0.002, 0.02, 0.1, 0.5])
def test_bfloat16_rounding_is_not_taken_for_stale_weights(movement: float):
    for seed in range(8):
        deep = Deep("bfloat16", seed=seed, noise=0.02)
        now = deep.old
        for _ in range(5):
            now = now + deep.direction(movement)
            assert deep.publish(now, now) < 1.0


@pytest.mark.parametrize("movement", [0.06, 0.1])
def test_stale_bfloat16_weights_are_found_within_the_tolerance(movement: float):
    for seed in range(8):
        deep = Deep("bfloat16", seed=seed, noise=0.02)
        with pytest.raises(WeightSyncError, match="of the way"):
            deep.publish(deep.old + deep.direction(movement).clip(-0.3, 0.3), deep.old)


def test_a_policy_that_moves_twice_as_far_is_not_the_learners():
    deep = Deep()
    moved = deep.direction(1e-4)
    with pytest.raises(WeightSyncError, match=r"it has gone (19|20)\d\.\d% of the way"):
        deep.publish(deep.old + moved, deep.old + 2 * moved)


def test_a_second_worker_is_judged_by_its_own_scores():
    proof = started()
    proof.keep([Probe(token_ids=(1, 2))], rows(-1.0), {WORKER: rows(-1.0), "rollout worker 1": rows(-1.00001)})
    receipts = {WORKER: receipt(rows(-1.0002)), "rollout worker 1": receipt(rows(-1.00001))}

    with pytest.raises(WeightSyncError, match="rollout worker 1 differs from the learner"):
        proof.check(ProbeScores(current=[], kept=rows(-1.0002)), receipts, version=3)


@pytest.mark.parametrize(("share", "right"), [(1.0, True), (0.71, False), (0.03, False)])
def test_an_export_must_hold_all_of_the_movement(share: float, right: bool):
    """0.71 and 0.03 are the shares that merging adapters into bfloat16 weights has kept; in float32 they are seen."""
    deep = Deep("bfloat16")
    moved = deep.direction(1e-4)
    before, learner, exported = (deep.scores(deep.old + part * moved) for part in (0.0, 1.0, share))
    bounds = bounds_for("float32", layers=2, width=64)
    if right:
        check_export(before, learner, learner, bounds)
    else:
        with pytest.raises(ExportError, match="of the way"):
            check_export(before, learner, exported, bounds)


def test_an_export_of_other_weights_is_refused_though_nothing_moved():
    with pytest.raises(ExportError, match=r"differs from the learner by 0\.1 nats on the probes; at most 0\.001"):
        check_export(None, rows(-1.0), rows(-1.1), bounds_for("float32", layers=2, width=64))


def test_probes_hold_prompt_and_completion_and_are_cut():
    picture = Image(data=b"", width=1, height=1, key="k")
    two = Prompt(id="two", text="", token_ids=(1, 2), images=(picture,))
    one = Prompt(id="one", text="", token_ids=(3,))
    long = Prompt(id="long", text="", token_ids=tuple(range(400)))

    assert build_probes([two, one], [(4,), ()], engine_limit=8) == [Probe(token_ids=(1, 2, 4), images=(picture,))]
    assert [len(probe.token_ids) for probe in build_probes([long], [(1,)], engine_limit=500)] == [256]
    cut = build_probes([two], [(3, 4)], engine_limit=4)  # scoring needs room for one more
    assert cut == [Probe(token_ids=(1, 2, 3), images=(picture,))]
