"""PPO's critics, its steered coefficient and its state in the real learner; PAPO where no image can be corrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlkl.errors import MissingSignalError
from rlkl.learner.shards_on_disk import shapes_in
from rlkl.learner.state import NUMBERS_FILE, TENSORS_FOLDER
from rlkl.updates.base import HeadInput, ModelShape
from rlkl.updates.ppo.rule import Critic, Ppo
from rlkl.updates.settings import PpoSettings
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, examples, weights


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model"), tied=False, seed=0))


@pytest.mark.parametrize("critic", ["head", "model"])
def test_the_critic_learns_the_returns(model_path: str, critic: str) -> None:
    update = {"rule": "ppo", "critic": critic, "value_clip": None, "value_coef": 1.0, "kl_coef": 0.0}
    learner = build(model_path, update=update, learner={"lr": 3e-3})
    records = [learner.prepare(examples(), step=0) | learner.step(step) for step in range(12)]
    assert records[0]["update/value_explained_variance"] == 0.0
    assert records[-1]["loss/value"] < 0.5 * records[0]["loss/value"]
    assert records[-1]["update/value_explained_variance"] > 0.1


def test_the_value_clip_fraction_does_not_depend_on_the_cut(model_path: str) -> None:
    """Small values that hardly move are never clipped, whatever rounding each cut adds to them."""
    for tokens in (8192, 20, 1):
        learner = build(
            model_path,
            update={"rule": "ppo", "kl_coef": 0.0},
            learner={"lr": 1e-5, "epochs": 3, "micro_batch_tokens": tokens},
        )
        batches = [examples(step, reward_scale=1e-4) for step in range(3)]
        records = [learner.prepare(batch, step=step) | learner.step(step) for step, batch in enumerate(batches)]
        assert [record["update/value_clip_fraction"] for record in records] == [0.0] * 3, tokens


def test_without_critic_there_is_no_value_loss(model_path: str) -> None:
    learner = build(model_path, update={"rule": "ppo", "critic": "none", "gae_lambda": 1.0})
    record = learner.prepare(examples(), step=0) | learner.step(0)
    assert "loss/value" not in record
    assert "update/value_explained_variance" not in record
    assert record["loss/policy"] == pytest.approx(0.0, abs=1e-5)  # whitened advantages, all ratios 1
    assert record["optim/grad_norm"] > 0


@pytest.mark.parametrize("critic", ["head", "model"])
def test_a_restored_learner_goes_on_bit_for_bit_with_its_critic_and_coefficient(
    model_path: str, tmp_path: Path, critic: str
) -> None:
    sections = {
        "update": {"rule": "ppo", "critic": critic, "kl_target": 1e-3, "kl_horizon": 24, "kl_gain": 0.5},
        "learner": {"minibatches": 2},
    }
    whole = build(model_path, **{name: dict(section) for name, section in sections.items()})
    for step in range(2):
        whole.prepare(examples(step), step=step)
        whole.step(step)
    whole.save(tmp_path)
    wanted = whole.prepare(examples(7), step=2) | whole.step(2)

    resumed = build(model_path, **{name: dict(section) for name, section in sections.items()})
    resumed.restore(tmp_path)

    assert resumed.prepare(examples(7), step=2) | resumed.step(2) == wanted
    assert wanted["update/kl_coef"] not in (0.0, 0.05)
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(whole).items())


def test_the_coefficient_follows_the_logged_kl(model_path: str) -> None:
    learner = build(model_path, update={"rule": "ppo", "critic": "none", "kl_target": 1e-3, "kl_horizon": 120})
    first = learner.prepare(examples(0), step=0)
    learner.step(0)
    second = learner.prepare(examples(1), step=1)
    # The first step's KL is 0, one whole target too low: held to -0.2, over 12 of 120 sequences.
    assert first["update/kl_coef"] == 0.05
    assert first["kl/policy_to_reference"] == 0.0
    assert second["update/kl_coef"] == pytest.approx(0.05 * (1 - 0.2 * 12 / 120))


def test_a_separate_critic_sees_the_state_before_each_token(model_path: str) -> None:
    critic = Ppo(PpoSettings(critic="model")).build_heads(ModelShape(path=model_path, hidden_size=64, layers=2, seed=0))
    assert isinstance(critic, Critic)
    assert critic.reads is HeadInput.TOKENS
    torch.nn.init.ones_(critic.output.weight)
    ids_BT = torch.tensor([[3, 4, 5, 6, 7]])
    changed_BT = torch.tensor([[3, 4, 9, 6, 7]])
    with torch.no_grad():
        values_T, changed_T = critic(ids_BT)[0, :, 0], critic(changed_BT)[0, :, 0]
    assert values_T[0] == 0
    assert torch.equal(values_T[:3], changed_T[:3])
    assert (values_T[3:] != changed_T[3:]).all()


def test_a_critic_belongs_to_the_saved_state(model_path: str, tmp_path: Path) -> None:
    build(model_path, update={"rule": "ppo"}).save(tmp_path)
    saved = set(shapes_in(tmp_path / TENSORS_FOLDER))
    assert {"trained.heads.output.weight", "trained.heads.output.bias"} <= saved
    assert json.loads((tmp_path / NUMBERS_FILE).read_text())["update"] == {"kl_coef": 0.05, "kl_error": 0.0}


def test_papo_is_refused_at_set_up_where_no_image_can_be_corrupted(model_path: str) -> None:
    with pytest.raises(MissingSignalError, match="CORRUPTED_LOGPROBS"):
        build(model_path, update={"rule": "papo"})
