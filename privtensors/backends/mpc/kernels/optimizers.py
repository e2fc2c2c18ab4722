"""Kernels that stock optimizers need beyond arithmetic: moving averages and Adam's quotient, over the range gradients have."""

from __future__ import annotations

from typing import Final

import torch

from privtensors.backends.mpc import costs_backward as costs
from privtensors.backends.mpc.kernels.arithmetic import absolute, add, mul, scale, sub, ulps
from privtensors.backends.mpc.kernels.backward import Operand, shared
from privtensors.backends.mpc.protocols.octaves import span, wide_quotient
from privtensors.backends.mpc.runtime import Host
from privtensors.backends.mpc.shares import Shares
from privtensors.core.kernel import Kernel

QUOTIENT_LOW: Final = -22  # smallest divisor told apart: 2.4e-7
QUOTIENT_HIGH: Final = 10
NUMERATOR_FRAC: Final = 42


def lerp(backend: Host, x: Operand, end: Operand, weight: float) -> Shares:
    """x + weight · (end - x)."""
    return add(backend, x, scale(backend, sub(backend, end, x), float(weight)))


def addcdiv(backend: Host, x: Operand, numerator: Operand, divisor: Operand, *, value: float = 1) -> Shares:
    """x + value · numerator / divisor, for a shared divisor in [2^-22, 2^10] (what lies outside counts as the nearer end).

    Quotients must stay below 2^9 in size, and numerators below 2^20.
    """
    if not isinstance(divisor, Shares):
        if not isinstance(numerator, Shares):
            return add(backend, x, numerator / divisor, alpha=value)
        return add(backend, x, mul(backend, numerator, 1.0 / divisor.to(torch.float64)), alpha=value)
    where = span(divisor.frac, QUOTIENT_LOW, QUOTIENT_HIGH)
    quotient = backend.run(wide_quotient(backend.runtime, shared(backend, numerator), divisor, where, NUMERATOR_FRAC))
    return add(backend, x, quotient, alpha=value)


KERNELS: Final = (
    *(Kernel("lerp", kinds, lerp, error=ulps(1)) for kinds in ("AA", "AP", "PA")),
    *(Kernel("addcdiv", kinds, addcdiv, costs.addcdiv, absolute(1e-2)) for kinds in ("AAA", "AAP", "APA", "PAA", "APP", "PAP", "PPA")),
)
