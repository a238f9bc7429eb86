"""How far rounding moves log-probs, beside what the precision itself does."""

from pathlib import Path

import pytest
import torch

from rlkl.models.language_model import LanguageModel
from rlkl.models.rounding import rounded_otherwise
from tests.models import deep_qwen3

CPU = torch.device("cpu")


@torch.no_grad()
def logprobs(model: LanguageModel) -> torch.Tensor:
    ids_BT = torch.randint(8, 60, (4, 24), generator=torch.Generator().manual_seed(0))
    logprobs_BTV = model.head(model.hidden(ids_BT)[:, :-1]).float().log_softmax(-1)
    return logprobs_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_more_rounding_moves_log_probs_as_far_as_the_precision_does(dtype: torch.dtype, tmp_path: Path):
    path = str(deep_qwen3(tmp_path / "model"))
    model = LanguageModel(path, dtype=dtype, device=CPU, packed=True)
    plain = logprobs(model)
    with rounded_otherwise(model.model, model.model.config):
        moved = logprobs(model)
    better = LanguageModel(path, dtype=torch.float32 if dtype == torch.bfloat16 else torch.float64, device=CPU)
    better.model.load_state_dict(model.model.state_dict())
    exact = logprobs(better)

    wanted = float((plain - exact).square().mean().sqrt())
    found = float((moved - plain).square().mean().sqrt())
    assert 0.4 * wanted < found < 4 * wanted
    assert torch.equal(logprobs(model), plain), "the model is as before"


def test_the_same_seed_rounds_alike(tmp_path: Path):
    model = LanguageModel(str(deep_qwen3(tmp_path / "model")), dtype=torch.bfloat16, device=CPU)

    def rounded(seed: int) -> torch.Tensor:
        with rounded_otherwise(model.model, model.model.config, seed=seed):
            return logprobs(model)

    assert torch.equal(rounded(0), rounded(0))
    assert not torch.equal(rounded(0), rounded(1))
