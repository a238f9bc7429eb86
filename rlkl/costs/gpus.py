"""The GPUs that `rlkl plan` knows.

Sources: NVIDIA's data sheets (dense bfloat16 and float32 rates, memory bandwidth, NVLink or PCIe rate in one
direction); memory as nvidia-smi reports it, which can be less than the name says.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkl.errors import InputError, did_you_mean

GPUS_PER_NODE = 8
"""GPUs of one machine; a larger plan spans several machines."""
NETWORK = 50e9
"""Bytes per second and GPU between machines: 400 Gb/s InfiniBand or RoCE for each GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU. Rates are peaks in operations or bytes per second."""

    name: str
    mib: int
    bfloat16: float
    float32: float
    bandwidth: float
    link: float
    """To the other GPUs of the machine."""

    @property
    def bytes(self) -> int:
        return self.mib * 2**20

    @property
    def gib(self) -> float:
        return self.mib / 1024

    def peak(self, dtype: str) -> float:
        """Return the peak operations per second of matrix products in a precision of ``model.dtype``."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100", mib=81_920, bfloat16=312e12, float32=19.5e12, bandwidth=2.04e12, link=300e9),
        Gpu(name="H100", mib=81_559, bfloat16=989e12, float32=67e12, bandwidth=3.35e12, link=450e9),
        Gpu(name="H200", mib=143_771, bfloat16=989e12, float32=67e12, bandwidth=4.8e12, link=450e9),
        Gpu(name="B200", mib=183_359, bfloat16=2250e12, float32=75e12, bandwidth=8e12, link=900e9),
        Gpu(name="L40S", mib=46_068, bfloat16=362e12, float32=91.6e12, bandwidth=0.864e12, link=32e9),
    )
}


def gpu_named(name: str) -> Gpu:
    """Return a GPU of the table; raises `InputError` for another name."""
    if name.upper() not in GPUS:
        raise InputError(f"--gpu {name} is not in the table; {did_you_mean(name.upper(), GPUS)}")
    return GPUS[name.upper()]
