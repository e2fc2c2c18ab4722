"""The kernels of the dp backend. Kinds: R rows of units, A an aggregate over units with its sensitivity, P public.

An entry of a row may become any function of that row; only sums over rows make aggregates, and only maps under which a
change grows by a known factor go on from there. What is missing would have no bound that holds for all data.
"""

from __future__ import annotations

from typing import Final

from privtensors.backends.dp.kernels import aggregates, counting, entrywise, linear, reductions, structure
from privtensors.core.kernel import KernelTable, kernel_table

KERNELS: Final[KernelTable] = kernel_table(
    k for module in (structure, entrywise, reductions, linear, counting, aggregates) for k in module.kernels()
)
