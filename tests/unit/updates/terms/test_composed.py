"""A rule with further terms: names of curves, and how many tokens the exact KLs compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.errors import LearnerError
from rlkl.functional.kl import exact_kl, top_k_and_tail
from rlkl.functional.logprobs import Head
from rlkl.functional.reduce import masked
from rlkl.learner.live import live_signals
from rlkl.learner.signals import Models, SignalSettings
from rlkl.signals import Signal, Signals
from rlkl.types import Completion, Example, Prompt, Rollout
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.settings import RuleSettings
from rlkl.updates.terms.composed import WithTerms
from rlkl.updates.terms.entropy import Entropy
from rlkl.updates.terms.kl import Kl
from rlkl.updates.terms.settings import EntropySettings, KlSettings
from tests.builders import make_batch

VOCABULARY = 50


class OnTwoTokens(PolicyUpdate):
    """The exact KL to the reference, over two tokens and a tail."""

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.KL_POLICY_TO_REFERENCE})

    @property
    def kl_top_k(self) -> int:
        return 2

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        kl = masked(signals[Signal.KL_POLICY_TO_REFERENCE], batch.response_BT).sum() / batch.denominators.tokens
        return LossOutput(loss=kl, terms={"kl": kl.detach()}, metrics={})


class Table:
    """A model whose next-token distribution depends on the last token alone."""

    def __init__(self, seed: int) -> None:
        self.logits_VV = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))

    def hidden(self, token_ids_BT: Tensor, images: object = None, packing: object = None) -> Tensor:
        return self.logits_VV[token_ids_BT]

    layers = hidden

    def head(self, hidden_NH: Tensor) -> Tensor:
        return hidden_NH

    @property
    def output_head(self) -> Head:
        return self.head


@pytest.mark.parametrize(("top_k", "compared"), [(None, VOCABULARY), (5, 5)])
def test_a_term_without_top_k_compares_the_vocabulary_whatever_the_rule_compares(top_k: int | None, compared: int):
    batch = make_batch(lengths=[3, 1], rewards=[1.0, 0.0], groups=[0, 0])
    policy, reference = Table(1), Table(2)
    update = WithTerms(OnTwoTokens(RuleSettings()), {"near": Kl(KlSettings(coef=1.0, top_k=top_k))})
    settings = SignalSettings(temperature=1.0, chunk_tokens=64, micro_batch_tokens=64)
    models = Models(policy=policy, frozen={"reference": reference}, heads=None)

    output = update.loss(batch, live_signals(models, batch, settings, update).signals)

    before_N = batch.token_ids_BT[:, :-1][batch.response_BT[:, 1:]]
    p_NV, q_NV = (model.logits_VV[before_N].log_softmax(-1) for model in (policy, reference))
    assert output.terms["kl"].item() == pytest.approx(float(exact_kl(*top_k_and_tail(p_NV, q_NV, 2)).mean()), rel=1e-4)
    wanted = float(exact_kl(*top_k_and_tail(p_NV, q_NV, compared)).mean())
    assert output.terms["near"].item() == pytest.approx(wanted, rel=1e-4)
    assert output.loss.item() == pytest.approx(sum(term.item() for term in output.terms.values()), rel=1e-5)


def test_a_custom_rule_that_declares_no_terms_is_checked_at_its_first_loss():
    batch = make_batch(lengths=[3, 1], rewards=[1.0, 0.0], groups=[0, 0])
    update = WithTerms(OnTwoTokens(RuleSettings()), {"kl": Kl(KlSettings(top_k=2))})
    kl_BT = batch.response_BT.float()
    signals = batch.signals.merged(Signals(dict.fromkeys(update.needs, kl_BT)))
    with pytest.raises(LearnerError, match=r"both would share the curve\s+loss/kl; give the added term another name"):
        update.loss(batch, signals)


def replayed_example(group: int) -> Example:
    completion = Completion(token_ids=(4, 1), logprobs=None, finish_reason="stop")
    rollout = Rollout(sample_index=0, completion=completion, reward=0.0, components={}, weights_version=0)
    return Example(prompt=Prompt(id="r", text="", token_ids=(3,)), rollout=rollout, group=group, role="replay")


class Replays(Entropy):
    """A term with ``count`` sequences of its own a step."""

    role = "replay"

    def __init__(self, count: int = 1) -> None:
        super().__init__(EntropySettings())
        self.count = count

    def replayed(self, *, seed: int, step: int, first_group: int) -> list[Example]:
        return [replayed_example(first_group + number) for number in range(self.count)]


class ReplaysItself(OnTwoTokens):
    """A rule with a sequence of its own a step."""

    def replayed(self, step: int, first_group: int) -> list[Example]:
        return [replayed_example(first_group)]


def test_two_sources_of_replayed_sequences_are_refused():
    """Each term of the role ``replay`` trains on all of them, also on those of which it knows nothing."""
    one = WithTerms(OnTwoTokens(RuleSettings()), {"keep": Replays(2), "reader": Replays(0)})
    assert [example.group for example in one.replayed(0, 5)] == [5, 6]
    two = WithTerms(
        OnTwoTokens(RuleSettings()), {"keep": Replays(), "entropy": Entropy(EntropySettings()), "b": Replays()}
    )
    with pytest.raises(LearnerError, match=r"^update\.terms: the term keep and the term b both add .* Remove one of"):
        two.replayed(0, 5)
    rule = WithTerms(ReplaysItself(RuleSettings()), {"keep": Replays()})
    with pytest.raises(LearnerError, match=r"^update\.terms: the rule .* and the term keep both add"):
        rule.replayed(0, 5)
    assert len(WithTerms(ReplaysItself(RuleSettings()), {"reader": Replays(0)}).replayed(0, 5)) == 1
