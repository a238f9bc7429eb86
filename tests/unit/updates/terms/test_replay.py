"""The term ``replay`` without a model: numbers by hand, invariants, the weight, settings, the folder of states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.data.packing import minibatches, pack
from rlkl.errors import RecipeError
from rlkl.functional.margin import HIGH, LOW, MIDDLE, packed_classes
from rlkl.recipe import Recipe
from rlkl.recipe.changes import with_absolute_paths
from rlkl.recipe.io import dump_recipe, load_recipe, recipe_from
from rlkl.signals import Signal, Signals
from rlkl.types import Completion, Example, Prompt, Rollout
from rlkl.updates import build_update
from rlkl.updates.terms.replay.settings import ReplaySettings
from rlkl.updates.terms.replay.states import (
    HEADER_FILE,
    TENSORS_FILE,
    ReplayStates,
    StatesHeader,
    read_states,
    write_states,
)
from rlkl.updates.terms.replay.term import Replay
from tests.builders import FACTS

HIDDEN = Signal("hidden")
KL = Signal("kl_to_policy", "reference")
WIDTH = 5
LENGTHS = (3, 2, 4, 2, 6, 3)


def states() -> ReplayStates:
    tokens = sum(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    classes_NH = torch.randint(0, 3, (tokens, WIDTH), generator=generator).to(torch.uint8)
    return ReplayStates(
        token_ids_N=torch.randint(2, 9, (tokens,), generator=generator).int(),
        lengths_S=torch.tensor(LENGTHS, dtype=torch.int32),
        classes_NP=packed_classes(classes_NH),
        low_H=-torch.ones(WIDTH),
        high_H=torch.ones(WIDTH),
        slack_H=torch.zeros(WIDTH),
    )


def header(**changes: Any) -> StatesHeader:
    values = {
        "model": "m",
        "model_fingerprint": "f",
        "tokenizer_fingerprint": "t",
        "dtype": "float32",
        "hidden_size": WIDTH,
        "data": "d",
        "samples": len(LENGTHS),
        "tokens": sum(LENGTHS),
    }
    return StatesHeader(**{**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "states"
    write_states(path, states(), header())
    return path


def term_of(folder: Path, **settings: Any) -> Replay:
    return Replay(ReplaySettings.model_validate({"states": str(folder), "sequences": 4, **settings}))


def main_example(group: int) -> Example:
    completion = Completion(token_ids=(4, 5, 1), logprobs=(-1.0,) * 3, finish_reason="stop")
    rollout = Rollout(sample_index=0, completion=completion, reward=1.0, components={}, weights_version=0)
    return Example(prompt=Prompt(id=str(group), text="", token_ids=(3, 4)), rollout=rollout, group=group)


def batch_with(term: Replay, *, step: int = 0) -> Batch:
    """Two sequences of the rule and the term's samples."""
    replayed = term.replayed(seed=7, step=step, first_group=2)
    return pack([main_example(0), main_example(1), *replayed], completion_limit=8)


def inputs(batch: Batch, padding: int = 0) -> dict[Signal, Tensor]:
    """Random numbers; NaN where nothing may be read."""
    generator = torch.Generator().manual_seed(3)
    length = batch.token_ids_BT.shape[1] - padding
    hidden_BTH = 2 * torch.randn(batch.size, length, WIDTH, generator=generator)
    kl_BT, logprobs_BT = (torch.rand(batch.size, length, generator=generator) for _ in range(2))
    found = {HIDDEN: hidden_BTH, KL: kl_BT, Signal.POLICY_LOGPROBS: -logprobs_BT}
    for signal, x in found.items():
        mask = batch.attention_BT if signal == HIDDEN else batch.response_BT
        width = (0, 0, 0, padding) if signal == HIDDEN else (0, padding)
        padded = torch.nn.functional.pad(x, width)
        found[signal] = torch.where(
            mask.unsqueeze(-1) if signal == HIDDEN else mask, padded, torch.nan
        ).requires_grad_()
    return found


def run(term: Replay, batch: Batch, values: dict[Signal, Tensor], parts: list[list[int]]) -> dict[str, Tensor]:
    """Sum loss, metrics and gradients over parts of the rows, as micro-batches and ranks do."""
    total: dict[str, Tensor] = {}
    for x in values.values():
        x.grad = None
    for rows in parts:
        rows_B = torch.tensor(rows)
        part = batch.rows(rows_B).only("replay")
        signals = Signals({s: x[rows_B, : part.token_ids_BT.shape[1]] for s, x in values.items()})
        loss = term.loss(part, signals)
        loss.backward()
        for key, value in {"loss": loss.detach(), **term.metrics(part, signals)}.items():
            total[key] = total.get(key, torch.zeros(())) + value
    for signal, x in values.items():
        total[signal.name] = torch.zeros_like(x) if x.grad is None else x.grad
    return total


def test_the_loss_by_hand():
    """One sample of two tokens, two dimensions; 3 of 4 numbers are outside, by 1, 2 and 0.5."""
    term = term_of(Path("unused"), sequences=1, coef=100.0)
    term._read = ReplayStates(
        token_ids_N=torch.tensor([5, 6]),
        lengths_S=torch.tensor([2]),
        classes_NP=packed_classes(torch.tensor([[LOW, MIDDLE], [HIGH, MIDDLE]], dtype=torch.uint8)),
        low_H=torch.tensor([-1.0, -1.0]),
        high_H=torch.tensor([1.0, 1.0]),
        slack_H=torch.zeros(2),
    )
    batch = batch_with(term)
    values = {
        HIDDEN: torch.tensor([[[9.0, 9.0]] * 5, [[9.0, 9.0]] * 5, [[0.0, 3.0], [0.5, 0.5], *[[9.0, 9.0]] * 3]]),
        Signal.POLICY_LOGPROBS: -torch.ones(3, 5),
    }
    values = {signal: x.requires_grad_() for signal, x in values.items()}
    found = run(term, batch, values, [[0, 1, 2]])
    assert found["excess"] == pytest.approx(3.5 / 4)
    assert found["violation_rate"] == pytest.approx(3 / 4)
    assert found["cross_entropy"] == pytest.approx(1.0)
    assert found["loss"] == pytest.approx(100 * 3.5 / 4)  # nothing outside at the start: divided by all numbers

    logged = term.begin_replay({"excess": 3.5 / 4, "violation_rate": 0.75, "cross_entropy": 1.0})
    assert logged == {"margin": pytest.approx(3.5 / 3)}
    found = run(term, batch, values, [[0, 1, 2]])
    assert found["loss"] == pytest.approx(100 * 3.5 / 3)  # the paper's: divided by the numbers outside
    assert found[HIDDEN.name][2, 0].tolist() == pytest.approx([100 / 3, 100 / 3])

    dynamic = term_of(Path("unused"), sequences=1, coef=2.0, weight="dynamic")
    dynamic._read, dynamic._samples = term._read, term._samples
    logged = dynamic.begin_replay({"excess": 3.5 / 4, "violation_rate": 0.75, "cross_entropy": 1.7})
    found = run(dynamic, batch, values, [[0, 1, 2]])
    assert found["loss"] == pytest.approx(2 * 1.7)  # as large as the cross-entropy
    assert logged["weight"] == pytest.approx(2 * 1.7 / (3.5 / 3))


SETTINGS: dict[str, dict[str, Any]] = {
    "margin": {},
    "margin and cross-entropy": {"cross_entropy_coef": 0.3},
    "dynamic": {"weight": "dynamic"},
    "kl": {"loss": "kl"},
    "cross-entropy": {"loss": "cross_entropy"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_depends_on_no_cut_no_padding_and_no_order_and_reads_replayed_rows_alone(folder: Path, name: str):
    term = term_of(folder, **SETTINGS[name])
    batch = batch_with(term)
    if name == "dynamic":
        term.begin_replay({"excess": 0.2, "violation_rate": 0.4, "cross_entropy": 1.5})
    whole = run(term, batch, inputs(batch), [[0, 1, 2, 3, 4, 5]])
    assert whole["loss"].isfinite()
    assert whole["loss"] != 0
    assert all(whole[signal.name][:2].abs().sum() == 0 for signal in inputs(batch))
    read = [whole[signal.name] for signal in term.needs if whole[signal.name].abs().sum() > 0]
    assert read
    for x in read:
        outside = ~(batch.attention_BT if x.ndim == 3 else batch.response_BT)
        assert x[outside].abs().sum() == 0
    for parts in ([[0], [1], [2], [3], [4], [5]], [[5, 0, 3], [4, 2, 1]]):
        found = run(term, batch, inputs(batch), parts)
        for key, value in whole.items():
            torch.testing.assert_close(found[key], value, msg=f"{key} of {parts}")
    wide = {
        n: torch.nn.functional.pad(getattr(batch, n), (0, 3))
        for n in ("token_ids_BT", "attention_BT", "response_BT", "rollout_logprobs_BT", "advantages_BT", "returns_BT")
    }
    padded = run(term, replace(batch, **wide), inputs(replace(batch, **wide), padding=3), [[0, 1, 2, 3, 4, 5]])
    for key, value in whole.items():
        torch.testing.assert_close(padded[key][:, : value.shape[1]] if value.ndim else padded[key], value)


def test_a_micro_batch_without_a_replayed_sequence_adds_nothing(folder: Path):
    term = term_of(folder)
    batch = batch_with(term)
    found = run(term, batch, inputs(batch), [[0, 1]])
    assert (found["loss"], found["excess"], found["violation_rate"], found["cross_entropy"]) == (0, 0, 0, 0)


def test_the_dynamic_weight_is_a_constant(folder: Path):
    """The gradient is that of the margin times a number: nothing flows through the weight."""
    fixed, dynamic = term_of(folder), term_of(folder, weight="dynamic")
    before = {"excess": 0.2, "violation_rate": 0.4, "cross_entropy": 1.5}
    fixed.begin_replay(before)
    dynamic.begin_replay(before)
    batch, _ = batch_with(fixed), batch_with(dynamic)
    rows = [[0, 1, 2, 3, 4, 5]]
    plain, weighed = run(fixed, batch, inputs(batch), rows), run(dynamic, batch, inputs(batch), rows)
    factor = 1.5 / (0.2 / 0.4)
    torch.testing.assert_close(weighed[HIDDEN.name], factor * plain[HIDDEN.name])
    assert weighed[Signal.POLICY_LOGPROBS.name].abs().sum() == 0


def test_the_draw_depends_on_seed_and_step_alone_and_holds_no_sample_twice(folder: Path):
    def drawn(**arguments: int) -> list[tuple[int, ...]]:
        found = term_of(folder).replayed(**{"seed": 7, "step": 3, "first_group": 9, **arguments})
        assert [example.group for example in found] == list(range(found[0].group, found[0].group + 4))
        assert {example.role for example in found} == {"replay"}
        return [example.prompt.token_ids + example.rollout.completion.token_ids for example in found]

    samples = [states().token_ids(sample) for sample in range(len(LENGTHS))]
    assert drawn() == drawn() == drawn(first_group=50)
    assert len({samples.index(ids) for ids in drawn()}) == 4
    assert drawn() != drawn(step=4)
    assert drawn() != drawn(seed=8)
    seen = {samples.index(ids) for step in range(20) for ids in drawn(step=step)}
    assert seen == set(range(len(LENGTHS)))


def test_each_optimizer_step_gets_its_share_of_replayed_sequences(folder: Path):
    batch = batch_with(term_of(folder))
    parts = minibatches(batch, 2, seed=0, step=0, epoch=0)
    assert [batch.role_B[rows_B].tolist() for rows_B in parts] == [[0, 1, 1], [0, 1, 1]]


def test_more_sequences_than_samples_are_refused(folder: Path):
    with pytest.raises(RecipeError, match=r"sequences = 7, but .* holds 6 samples. Lower sequences"):
        term_of(folder, sequences=7).replayed(seed=0, step=0, first_group=0)


# ------------------------------------------------------------------------------------------------------- settings


def recipe(*terms: dict[str, Any], **sections: Any) -> Recipe:
    values = {"model": {"path": "m"}, "data": {"source": "d"}, **sections}
    return recipe_from({**values, "update": {"rule": "grpo", "terms": list(terms)}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"states is not set: name the folder that `rlkl replay-states"),
        ({"states": "s", "loss": "kl", "weight": "dynamic"}, r"weight = dynamic with loss = kl"),
        ({"states": "s", "loss": "cross_entropy", "cross_entropy_coef": 0.1}, r"cross_entropy_coef = 0\.1 with loss"),
        ({"states": "s", "sequences": 0}, r"sequences"),
        ({"states": "s", "coef": -1}, r"coef"),
        ({"states": "s", "loss": "l2"}, r"loss"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        recipe({"term": "replay", **settings})


def test_two_of_them_are_refused():
    with pytest.raises(RecipeError, match=r"update\.terms\[0\] and update\.terms\[2\] are both replay"):
        recipe({"term": "replay", "states": "a"}, {"term": "entropy"}, {"term": "replay", "states": "b"})


def test_every_setting_reads_back_from_a_runs_recipe_and_the_folder_becomes_absolute(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {
        "term": "replay",
        "name": "keep",
        "coef": 3.0,
        "states": folder.name,
        "loss": "margin",
        "weight": "dynamic",
        "sequences": 5,
        "cross_entropy_coef": 0.25,
    }
    monkeypatch.chdir(folder.parent)
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump_recipe(with_absolute_paths(recipe(settings))))
    (term,) = load_recipe(str(stored)).update.terms
    assert term.model_dump() == {**settings, "states": str(folder)}
    assert list(build_update(load_recipe(str(stored)).update).terms) == ["keep"]  # pyright: ignore[reportAttributeAccessIssue]


def test_only_the_kl_needs_the_reference():
    margin, kl = (recipe({"term": "replay", "states": "s", "loss": loss}).update for loss in ("margin", "kl"))
    assert not margin.has_term_to_reference
    assert kl.has_term_to_reference
    assert {signal.model for signal in build_update(kl).needs} == {"policy", "reference"}


def test_warnings():
    terms = recipe({"term": "replay", "states": "s", "coef": 0.0, "sequences": 2}).update.terms
    rule = recipe().update
    found = list(terms[0].warnings(replace(FACTS, minibatches=4), rule))
    assert [text.split(":")[0].split(" is")[0] for text in found] == ["coef = 0", "sequences = 2"]
    assert not list(ReplaySettings(states="s", coef=0.0, cross_entropy_coef=0.1).warnings(FACTS, rule))


@pytest.mark.parametrize("several", [{"minibatches": 2}, {"epochs": 2}], ids=["minibatches", "epochs"])
def test_a_margin_divided_by_the_share_of_an_earlier_optimizer_step_is_warned_about(several: dict[str, int]):
    rule, facts = recipe().update, replace(FACTS, **several)
    (told,) = ReplaySettings(states="s").warnings(facts, rule)
    assert told.startswith("loss = margin with learner.epochs * learner.minibatches = 2 optimizer steps a batch: ")
    assert len(list(ReplaySettings(states="s", weight="dynamic").warnings(facts, rule))) == 1
    for settings in (ReplaySettings(states="s"), ReplaySettings(states="s", coef=0.0, cross_entropy_coef=0.1)):
        assert not list(settings.warnings(FACTS if settings.coef else facts, rule))
    for loss in ("kl", "cross_entropy"):
        assert not list(ReplaySettings(states="s", loss=loss).warnings(facts, rule))


# --------------------------------------------------------------------------------------------------------- states


def test_the_folder_comes_back(folder: Path):
    found, wanted = read_states(folder, "key"), states()
    for name in ReplayStates.__slots__:
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert (folder / TENSORS_FILE).stat().st_size < 1000 + 20 * sum(LENGTHS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / HEADER_FILE).unlink(), r"holds no states\.json; write it with: rlkl replay-states"),
        (lambda path: (path / HEADER_FILE).write_text("{"), r"states\.json cannot be read"),
        (lambda path: (path / HEADER_FILE).write_text('{"format": 1}'), r"states\.json cannot be read"),
        (lambda path: (path / HEADER_FILE).write_text('{"format": 2}'), r"has format 2, and this rlkl reads 1"),
        (lambda path: (path / TENSORS_FILE).unlink(), r"states\.safetensors cannot be read"),
        (lambda path: (path / TENSORS_FILE).write_bytes(b"12345678"), r"is not the file that states\.json was"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_key(tmp_path: Path, spoil: Any, message: str):
    write_states(tmp_path, states(), header())
    spoil(tmp_path)
    with pytest.raises(RecipeError, match=message) as caught:
        read_states(tmp_path, "update.terms[].states")
    assert "update.terms[].states" in str(caught.value)
