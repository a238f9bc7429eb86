from __future__ import annotations

import pytest

from rlkl.costs.gpus import GPUS, gpu_named
from rlkl.errors import InputError


def test_names_are_found_in_any_case():
    assert gpu_named("h100") is GPUS["H100"]


def test_an_unknown_gpu_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="--gpu H10 is not in the table; did you mean 'H100'"):
        gpu_named("H10")


@pytest.mark.parametrize(("name", "gib"), [("A100", 80), ("H100", 79.6), ("H200", 140.4), ("B200", 179), ("L40S", 45)])
def test_memory_is_that_of_nvidia_smi(name: str, gib: float):
    assert round(GPUS[name].gib, 1) == pytest.approx(gib, abs=0.1)


def test_float32_is_slower():
    assert all(gpu.peak("float32") < gpu.peak("bfloat16") for gpu in GPUS.values())
