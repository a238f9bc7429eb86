"""Loss terms: their numbers, and adding them to any rule."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.errors import RecipeError
from rlkl.recipe.io import recipe_from
from rlkl.signals import Signal, Signals
from rlkl.updates import RULES, build_update
from rlkl.updates.terms import build_terms
from rlkl.updates.terms.entropy import Entropy
from rlkl.updates.terms.kl import Kl
from rlkl.updates.terms.masked_kl.settings import MaskedKlSettings
from rlkl.updates.terms.masked_kl.term import MaskedKl
from rlkl.updates.terms.settings import EntropySettings, KlSettings
from tests.builders import make_batch, random_logprobs, with_frozen, with_policy

EXAMPLE = Path(__file__).parents[4] / "recipes" / "term_example.py"
TEACHER = Signal("logprobs", "teacher", moment="step_start")


def batch_of(lengths: tuple[int, ...] = (3, 1)) -> Batch:
    batch = make_batch(lengths=list(lengths), rewards=[1.0, 0.0], groups=[0, 0])
    return with_frozen(batch, {TEACHER: random_logprobs(batch.response_BT, seed=8)})


def policy_of(batch: Batch) -> Tensor:
    return random_logprobs(batch.response_BT, seed=9).requires_grad_()


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        ("k1", lambda p, q: p - q, lambda p, q: p - q),  # the gradient is k2's
        ("k2", lambda p, q: (p - q) ** 2 / 2, lambda p, q: p - q),
        ("k3", lambda p, q: math.exp(q - p) - 1 - (q - p), lambda p, q: 1 - math.exp(q - p)),
    ],
)
def test_sampled_estimators_by_hand(estimator: str, value, slope):
    batch = batch_of()
    policy_BT = policy_of(batch)
    term = Kl(KlSettings.model_validate({"to": "teacher", "coef": 0.5, "estimator": estimator}))
    assert term.needs == {Signal.POLICY_LOGPROBS, TEACHER}

    loss = term.loss(batch, with_policy(batch, policy_BT))
    loss.backward()

    pairs = list(
        zip(policy_BT[batch.response_BT].tolist(), batch.signals[TEACHER][batch.response_BT].tolist(), strict=True)
    )
    assert len(pairs) == 4
    assert loss.item() == pytest.approx(0.5 * sum(value(p, q) for p, q in pairs) / 4, rel=1e-5)
    assert policy_BT.grad is not None
    wanted = [0.5 * slope(p, q) / 4 for p, q in pairs]
    assert policy_BT.grad[batch.response_BT].tolist() == pytest.approx(wanted, rel=1e-4)
    assert policy_BT.grad[~batch.response_BT].abs().sum() == 0


@pytest.mark.parametrize(
    ("direction", "quantity"), [("policy_to_model", "kl_from_policy"), ("model_to_policy", "kl_to_policy")]
)
def test_the_exact_kl_has_free_nats_and_a_mean_over_tokens(direction: str, quantity):
    batch = batch_of()
    signal = Signal(quantity, "teacher", top_k=8)
    settings = {"to": "teacher", "coef": 2.0, "direction": direction, "top_k": 8, "free_nats": 0.3}
    term = Kl(KlSettings.model_validate(settings))
    assert term.needs == {signal}
    kl_BT = torch.full(batch.response_BT.shape, 9.0)
    kl_BT[batch.response_BT] = torch.tensor([0.1, 0.5, 0.3, 1.3])
    kl_BT.requires_grad_()
    signals = batch.signals.merged(Signals({signal: kl_BT}))

    loss = term.loss(batch, signals)
    loss.backward()

    assert loss.item() == pytest.approx(2 * (0.2 + 1.0) / 4)
    assert kl_BT.grad is not None
    assert kl_BT.grad[batch.response_BT].tolist() == pytest.approx([0.0, 0.5, 0.0, 0.5])
    assert term.metrics(batch, signals)["nats"].item() == pytest.approx(2.2 / 4)


def test_the_coefficient_is_steered_and_survives_a_resume():
    settings = KlSettings.model_validate({"coef": 0.1, "target": 2.0, "horizon": 100})
    term, resumed = Kl(settings), Kl(settings)
    for observed in (4.0, 4.0, 1.0):
        term.observe({"nats_per_sequence": observed, "sequences": 50})
    assert term.coef == pytest.approx(0.1 * 1.1 * 1.1 * 0.9)
    resumed.load_state(term.state())
    assert resumed.coef == term.coef
    batch = batch_of()
    signals = batch.signals.merged(Signals({term.signal: batch.response_BT.float()}))
    found = term.metrics(batch, signals)
    assert found["nats_per_sequence"].item() == pytest.approx(4 / 2)
    assert found["coef"].item() == pytest.approx(term.coef)


@pytest.mark.parametrize(("keep", "wanted"), [("others", 0.3), ("named", 0.7)])
def test_a_masked_kl_counts_some_tokens_only(keep: str, wanted: float):
    batch = batch_of()
    ids_BT = batch.token_ids_BT.clone()
    ids_BT[batch.response_BT] = torch.tensor([7, 8, 9, 7])
    batch = replace(batch, token_ids_BT=ids_BT)
    settings = {"coef": 4.0, "token_ids": [7], "keep": keep}
    term = MaskedKl(MaskedKlSettings.model_validate(settings))
    kl_BT = torch.zeros(batch.response_BT.shape)
    kl_BT[batch.response_BT] = torch.tensor([0.5, 0.1, 0.2, 0.2])
    signals = batch.signals.merged(Signals({Signal.KL_REFERENCE_TO_POLICY: kl_BT}))

    assert term.needs == {Signal.KL_REFERENCE_TO_POLICY}
    assert term.loss(batch, signals).item() == pytest.approx(wanted)
    assert term.metrics(batch, signals)["kept"].item() == 0.5


def test_a_sequences_weight_scales_its_part():
    batch = batch_of()
    signals = batch.signals.merged(Signals({Signal.KL_POLICY_TO_REFERENCE: batch.response_BT.float()}))
    term = Kl(KlSettings(coef=1.0))
    assert term.loss(replace(batch, weight_B=torch.tensor([0.0, 2.0])), signals).item() == pytest.approx(2 / 4)


def test_terms_are_built_by_the_names_of_their_curves():
    terms = build_terms([KlSettings(), KlSettings(coef=0.2), KlSettings(to="teacher", name="near"), EntropySettings()])
    assert {name: (type(term), term.settings.coef) for name, term in terms.items()} == {
        "kl_reference": (Kl, 0.1),
        "kl_reference_2": (Kl, 0.2),
        "near": (Kl, 0.1),
        "entropy_bonus": (Entropy, 0.01),
    }


@pytest.mark.parametrize(
    "own",
    [
        *({"rule": rule} for rule in RULES if rule != "distill"),  # see tests/invariants
        {"rule": "grpo", "kl_coef": 0.1},
        {"rule": "grpo", "kl_coef": 0.1, "kl_placement": "reward"},
        {"rule": "papo", "kl_coef": 0.0},
        {"rule": "ppo", "critic": "none"},
        {"rule": "superhf", "kl_coef": 0.0},
        {"rule": "sparsepo", "l1_kl": 0.1},
        {"rule": "sparsepo", "l1_kl": 0.1, "mask": "none"},
    ],
    ids=lambda own: " ".join(map(str, own.values())),
)
def test_every_rule_takes_terms_and_the_gradient_is_the_sum(own: dict):
    batch = make_batch(lengths=[3, 1, 4], rewards=[1.0, 0.0, 0.5], groups=[0, 0, 0], corrupted=[0])
    batch = replace(batch, list_B=torch.tensor([0, 0, -1]), rank_B=torch.tensor([0, 1, 0])).recounted()
    batch = with_frozen(batch, {Signal.PROXIMAL_HEADS: torch.ones(*batch.response_BT.shape, 2)})
    update = {**own, "filter": None}
    entropy = {"term": "entropy", "coef": 0.3}
    settings = [recipe(update).update, recipe(update | {"terms": [entropy]}).update]
    gradients, outputs = [], []
    for one in settings:
        learned = learned_signals(batch)
        built = build_update(one)
        output = built.loss(built.credit(batch).recounted(), batch.signals.merged(Signals(learned)))
        output.loss.backward()
        gradients.append({signal: x.grad for signal, x in learned.items()})
        outputs.append(output)
    plain, with_term = outputs
    assert plain.terms.keys() == settings[0].own_terms, "the rule declares its terms"
    entropy_BT = learned_signals(batch)[Signal.POLICY_ENTROPY]
    wanted = -0.3 * float(entropy_BT.detach()[batch.response_BT].mean())
    assert with_term.terms.keys() - plain.terms.keys() == {"entropy_bonus"}
    assert with_term.terms["entropy_bonus"].item() == pytest.approx(wanted, rel=1e-5)
    assert with_term.loss.item() == pytest.approx(plain.loss.item() + wanted, rel=1e-5)
    for signal, gradient in gradients[0].items():
        if signal is not Signal.POLICY_ENTROPY and gradient is not None:
            assert torch.equal(gradients[1][signal], gradient)
    assert gradients[1][Signal.POLICY_ENTROPY][batch.response_BT].tolist() == pytest.approx([-0.3 / 8] * 8)


def learned_signals(batch: Batch) -> dict[Signal, Tensor]:
    names = (Signal.POLICY_LOGPROBS, Signal.POLICY_ENTROPY, Signal.KL_REFERENCE_TO_POLICY, Signal.CORRUPTED_LOGPROBS)
    found = {signal: random_logprobs(batch.response_BT, seed=20 + n).abs() for n, signal in enumerate(names)}
    found[Signal.HEADS] = random_logprobs(batch.response_BT, seed=30).abs().unsqueeze(-1).repeat(1, 1, 2)
    return {signal: x.requires_grad_() for signal, x in found.items()}


def recipe(update: dict, **more: object):
    return recipe_from({"model": {"path": "m"}, "data": {"source": "d"}, "update": update, **more})


def test_the_state_of_terms_is_kept_beside_the_rules_own():
    settings = recipe({"rule": "ppo", "kl_target": 3.0, "terms": [{"term": "kl", "target": 2.0}]}).update
    update, resumed = build_update(settings), build_update(settings)
    metrics = {
        "update/trained_sequences": 8.0,
        "kl/policy_to_reference": 9.0,
        "term/sequences": 8.0,
        "term/kl_reference_nats_per_sequence": 9.0,
    }
    update.observe(metrics)
    assert update.state().keys() == {"kl_coef", "kl_error", "term/kl_reference/coef", "term/kl_reference/error"}
    assert update.state()["term/kl_reference/coef"] > 0.1
    resumed.load_state(update.state())
    assert resumed.state() == update.state()


def test_a_term_of_ones_own_is_twenty_five_lines_and_travels_with_its_file(tmp_path: Path):
    """The example of docs/your_own_rule.md, also as another machine gets it: without the file."""
    assert len(EXAMPLE.read_text().splitlines()) <= 25
    file = tmp_path / "term_example.py"
    file.write_text(EXAMPLE.read_text())
    update = recipe({"rule": "grpo", "terms": [{"term": f"{file}:Floor", "floor": -1.5, "coef": 2.0}]}).update
    sent = pickle.dumps(update)
    rule = tmp_path / "rule_example.py"
    rule.write_text((EXAMPLE.parent / "rule_example.py").read_text())
    terms = [{"term": f"{file}:Floor", "floor": -1.5}, {"term": "kl"}]
    both = pickle.dumps(recipe({"rule": f"{rule}:Reinforce", "terms": terms}).update)
    file.unlink()
    rule.unlink()
    assert list(build_update(pickle.loads(both)).terms) == ["floor", "kl_reference"]  # pyright: ignore
    built = build_update(pickle.loads(sent))
    batch = batch_of()
    policy_BT = policy_of(batch)

    output = built.loss(batch, with_policy(batch, policy_BT))

    below = [max(-1.5 - p, 0.0) for p in policy_BT[batch.response_BT].tolist()]
    assert sum(below) > 0
    assert output.terms["floor"].item() == pytest.approx(2.0 * sum(below) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            {"term": "kl", "estimator": "k3", "top_k": 3},
            r"^recipe: update\.terms\[0\]: top_k = 3 is for estimator = exact",
        ),
        ({"term": "kl", "estimator": "k2", "direction": "model_to_policy"}, "Take estimator: exact"),
        ({"term": "kl", "target": 1.0, "coef": 0.0}, "it has to start above 0"),
        (
            {"term": "kl", "estimator": "k1", "free_nats": 0.5},
            r"terms\[0\]: free_nats = 0\.5 with estimator = k1.*exact",
        ),
        ({"term": "kl", "estimator": "k1", "free_nats_per_sequence": 2.0}, r"free_nats_per_sequence = 2 with.*k1"),
        ({"term": "kl", "free_nats": 0.1, "free_nats_per_sequence": 2.0}, "two allowances for one KL"),
        ({"term": "kl", "estimator": "cauchy_schwarz", "top_k": 3}, "reads the whole vocabulary"),
        ({"term": "kl", "estimator": "cauchy_schwarz", "direction": "model_to_policy"}, "symmetric"),
        ({"term": "kl", "to": "averge"}, r"terms\[0\]\.to = 'averge' names no model of models; did you mean 'average'"),
        ({"term": "consistency", "noise_std": -0.1}, r"terms\[0\]\.noise_std = -0\.1: expected a number >= 0"),
        ({"term": "masked_kl"}, "token_ids is empty, and vocabulary_ids too"),
        ({"term": "masked_kl", "vocabulary_ids": [3], "keep": "named"}, "keep = named with an empty token_ids"),
        ({"term": "masked_kl", "vocabulary_ids": [3, -1]}, r"vocabulary_ids = \[3, -1\]: a token id is 0 or more"),
        ({"term": "masked_kl", "token_ids": [3], "vocabulary_keep": "named"}, "with an empty vocabulary_ids"),
        ({"term": "masked_kl", "vocabulary_ids": [3, 3], "vocabulary_keep": "named"}, "the KL is always 0"),
        ({"term": "masked_kl", "vocabulary_ids": [3], "renormalise": False, "top_k": 4}, "top_k = 4 with renormalise"),
        (
            {"term": "kll"},
            r"^recipe: update\.terms\[0\]\.term = 'kll': expected kl, masked_kl, entropy, marginal_kl, "
            r"consistency, rewording, replay, span, or FILE\.py:Class "
            r"or package\.module:Class for a term of your own\. Did you mean kl\?$",
        ),
        ({"coef": 0.1}, r"update\.terms\[0\]\.term is missing: expected kl, masked_kl, entropy, marginal_kl"),
        ({"term": "span", "break_ids": [3, -1]}, r"break_ids = \[3, -1\]: a token id is 0 or more"),
        ({"term": "span", "to": "averge"}, r"terms\[0\]\.to = 'averge' names no model of models"),
        ({"term": "marginal_kl", "token_ids": [5]}, "two answers or more"),
        ({"term": "marginal_kl", "token_ids": [5, 5]}, "each once"),
        ({"term": "marginal_kl", "token_ids": [5, 6], "prior": [1.0]}, "one share above 0 for each of the 2"),
        (
            {"term": "kl", "coeff": 0.1},
            r"update\.terms\[0\]\.coeff: unknown key\. Did you mean update\.terms\[0\]\.coef",
        ),
        (
            {"term": f"{EXAMPLE}:Floor", "floor": 3.0},
            r"^recipe: update\.terms\[0\]\.floor = 3\.0: expected a number <= 0$",
        ),
        (
            {"term": f"{EXAMPLE}:Floor", "florr": -3.0},
            r"^recipe: update\.terms\[0\]\.florr: unknown key\. Did you mean update\.terms\[0\]\.floor\?$",
        ),
        (
            {"term": f"{EXAMPLE}:Floor", "florr": -3.0, "coef": "x"},
            r"^recipe: 2 problems\n  update\.terms\[0\]\.coef = 'x': expected a number\n  update\.terms\[0\]\.florr: ",
        ),
        (
            {"term": f"{EXAMPLE}:Flor"},
            r"^recipe: update\.terms\[0\]\.term = '[^']*:Flor': 'Flor' does not exist in .*; did you mean 'Floor'\?",
        ),
        ({"term": "json:loads"}, r"^recipe: update\.terms\[0\]\.term = 'json:loads': .* is no subclass of rlkl"),
    ],
)
def test_wrong_settings_are_refused_with_their_key(term: dict, message: str):
    for rule in ("grpo", f"{EXAMPLE.with_name('rule_example.py')}:Reinforce"):
        with pytest.raises(RecipeError, match=message):
            recipe({"rule": rule, "terms": [term]})


@pytest.mark.parametrize("name", ["policy", "reference", "Teacher", "2b"])
def test_a_frozen_model_has_a_plain_name_of_its_own(name: str):
    with pytest.raises(RecipeError, match="cannot name a model"):
        recipe({"rule": "grpo"}, models={name: {"path": "p"}})
