"""What both parties compute from opened words must not depend on the host: one bit of difference makes their sum random."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from privtensors.backends.mpc.protocols.activation import activation, exponential_series
from privtensors.backends.mpc.protocols.angles import cos_sin, cos_sin_by_row
from privtensors.backends.mpc.protocols.fourier import weights_of_opened, weights_of_pieces
from privtensors.backends.mpc.protocols.normalise import unit_fit
from privtensors.backends.mpc.protocols.softmax import scale_of

# As another host would print it: other vector instructions, without fused multiply-add, another number of threads.
_PRINT = """
from tests.unit.backends.mpc.test_mpc_unlike_hosts import public_numbers
print(public_numbers())
"""


def public_numbers() -> str:
    """Digest of what a party multiplies its shares by: in bulk series on a third of all opened words, in pieces on samples."""
    digest = hashlib.sha256()
    for plan in (activation("gelu").plan, activation("tanh").plan, scale_of(0.25).plan):
        for words in torch.arange(0, 1 << plan.period_bits, 3, dtype=torch.int32).split(1 << 16):
            for first, second in weights_of_opened(words, plan):
                digest.update(torch.stack([first, second]).numpy().tobytes())
    words = torch.arange(-(1 << 13), 1 << 13) * ((1 << 49) - 12345)
    for series, bits in ((unit_fit(-0.5), (9, 23, 61)), (exponential_series(), (24,))):
        digest.update(weights_of_pieces(words, (series,) * len(bits), bits, 54).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("capability", "threads"), [("default", "1"), ("avx2", "2")])
def test_public_numbers_are_the_same_on_unlike_hosts(capability: str, threads: str) -> None:
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads, "NPY_DISABLE_CPU_FEATURES": "AVX512F FMA3 AVX2"}
    other = subprocess.run([sys.executable, "-c", _PRINT], capture_output=True, text=True, env=env, timeout=300)
    assert other.stdout.strip() == public_numbers(), other.stderr


@pytest.mark.parametrize("bits", [10, 14, 20])
def test_cos_sin_of_every_word(bits: int) -> None:
    words = torch.arange(-(1 << bits), 2 << bits, dtype=torch.int32)
    angle = words.double() * (2 * torch.pi / 2.0**bits)
    for dtype, bound in ((torch.float32, 1.3e-7), (torch.float64, 1e-11)):  # the reference's own argument is rounded
        for found, true in zip(cos_sin(words, bits, dtype), (angle.cos(), angle.sin()), strict=True):
            assert found.dtype == dtype and float((found.double() - true).abs().max()) < bound


def test_cos_sin_over_several_periods() -> None:
    words = torch.randint(-(1 << 62), 1 << 62, (1, 3, 500), generator=torch.Generator().manual_seed(0))
    periods = (1, 7, 10, 11, 33, 62)
    cos, sin = cos_sin_by_row(words, periods)
    for row, bits in enumerate(periods):
        angle = (words[0] & ((1 << bits) - 1)).double() * (2 * torch.pi / 2.0**bits)
        assert float((cos[row] - angle.cos()).abs().max()) < 2e-15 and float((sin[row] - angle.sin()).abs().max()) < 2e-15
