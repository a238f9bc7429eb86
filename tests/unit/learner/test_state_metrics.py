"""The KL to the reference is that of the policy, also on tokens that older weights have sampled."""

from dataclasses import replace

import pytest
import torch

from rlkl.learner.state_metrics import StateMetrics
from tests.builders import make_batch


@pytest.mark.parametrize("lag", [0.0, 0.7])
def test_the_kl_on_tokens_of_an_older_policy_is_the_policys(lag: float):
    """One token a response, drawn from an old policy over three words in exact proportions."""
    policy_V = torch.tensor([0.5, 0.3, 0.2])
    reference_V = torch.tensor([0.2, 0.3, 0.5])
    old_V = policy_V * (1 - lag) + reference_V * lag
    drawn_B = torch.repeat_interleave(torch.arange(3), (1000 * old_V).round().int())
    count = len(drawn_B)
    batch = make_batch(lengths=[1] * count, rewards=[0.0] * count, groups=list(range(count)))

    def at_response(x_V: torch.Tensor) -> torch.Tensor:
        return torch.where(batch.response_BT, x_V.log()[drawn_B][:, None], 0.0)

    metrics = StateMetrics(
        batch=replace(batch, rollout_logprobs_BT=at_response(old_V)),
        sampled=True,
        reference_BT=at_response(reference_V),
        stale=True,
    ).compute(at_response(policy_V), torch.zeros(batch.response_BT.shape))
    exact = float((policy_V * (policy_V / reference_V).log()).sum())
    assert metrics["kl/policy_to_reference"] == pytest.approx(exact, rel=1e-2)
