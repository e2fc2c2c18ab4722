"""The mpc backend's kernels, one table. Read :data:`KERNELS` as the backend's table of contents."""

from __future__ import annotations

from typing import Final

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.kernels import arithmetic, backward, backward_fused, linear, lookup, losses, optimizers, pooling, shape
from privtensors.backends.mpc.kernels import nonlinear as n
from privtensors.backends.mpc.kernels.arithmetic import absolute, addcmul, choose, div, fill, pow_, reciprocal_of, root, ulps
from privtensors.backends.mpc.kernels.promotion import promoting
from privtensors.core.kernel import Kernel, KernelTable, kernel_table

_COMPARISONS: Final = tuple(
    Kernel(name, kinds, n.comparison_kernel(strict, less), costs.compared)
    for name, strict, less in (("gt", True, False), ("ge", False, False), ("lt", True, True), ("le", False, True))
    for kinds in ("A", "AA", "AP", "PA")
)

_EXTREMES: Final = tuple(
    Kernel(name, kinds, run, costs.maximum, absolute(2**-11))
    for name, run in (("maximum", n.maximum), ("minimum", n.minimum))
    for kinds in ("AA", "AP", "PA")
)

_NONLINEAR: Final = (
    Kernel("amax", "A", n.amax, costs.row_maximum, absolute(2**-9)),
    Kernel("argmax", "A", n.argmax_, costs.argmax),
    Kernel("abs", "A", n.abs_, costs.sign, absolute(2**-10)),
    Kernel("relu", "A", n.relu, costs.sign, absolute(2**-11)),
    Kernel("clamp", "A", n.clamp_, costs.clamped, absolute(2**-11)),
    Kernel("exp", "A", n.exp, costs.exponential, absolute(8e-3)),
    Kernel("tanh", "A", n.activation_kernel("tanh"), costs.activation(False, 2), absolute(1e-3)),
    Kernel("sigmoid", "A", n.activation_kernel("sigmoid"), costs.activation(False, 1), absolute(1e-3)),
    Kernel("erf", "A", n.activation_kernel("erf"), costs.activation(False, 2), absolute(1e-3)),
    Kernel("silu", "A", n.activation_kernel("silu"), costs.activation(True, 0), absolute(2e-3)),
    Kernel("gelu", "A", n.gelu, costs.activation(True, 0), absolute(1e-3)),
    Kernel("rsqrt", "A", lambda backend, x: root(backend, x, inverse=True), costs.root(True), absolute(2e-3)),
    Kernel("sqrt", "A", lambda backend, x: root(backend, x, inverse=False), costs.root(False), absolute(2e-3)),
    Kernel("reciprocal", "A", reciprocal_of, costs.reciprocal, absolute(2e-3)),
    Kernel("div", "AA", div, costs.quotient, absolute(1e-2)),
    Kernel("div", "PA", div, costs.quotient, absolute(1e-2)),
    Kernel("pow", "A", pow_, costs.whole_power, ulps(64)),
    *(Kernel("addcmul", kinds, addcmul, costs.added_product, ulps(2)) for kinds in ("AAA", "AAP", "APA", "PAA", "PAP", "PPA", "APP")),
    *(Kernel("where", kinds, choose, costs.chosen, ulps(2)) for kinds in ("AAA", "AAP", "APA", "APP", "AA", "AP")),
    *(Kernel("masked_fill", kinds, fill, costs.filled, ulps(2)) for kinds in ("AA", "PA")),
)

_FUSED: Final = (
    Kernel("softmax", "A", n.softmax_, costs.softmax, absolute(6e-3)),
    *(
        Kernel("layer_norm", kinds, n.layer_norm_, costs.layer_norm, absolute(4e-3))
        for kinds in ("AAA", "AA", "A", "APP", "AP", "AAP", "APA", "PAA", "PAP", "PPA", "PA")
    ),
    *(Kernel("batch_norm", kinds, n.batch_norm, costs.batch_norm, absolute(4e-3)) for kinds in ("AAAPP", "AAAAA", "APP", "AAA", "APPPP")),
    *(Kernel("attention", kinds, n.sdpa, costs.attention, absolute(2e-2)) for kinds in ("AAA", "AAP", "APA", "PAA", "APP", "PAP", "PPA")),
)

_TRAINING: Final = (*backward.KERNELS, *backward_fused.KERNELS, *pooling.KERNELS, *losses.KERNELS, *optimizers.KERNELS)

KERNELS: Final[KernelTable] = kernel_table(
    map(
        promoting,
        [
            *shape.KERNELS,
            *lookup.KERNELS,
            *arithmetic.KERNELS,
            *linear.KERNELS,
            *_COMPARISONS,
            *_EXTREMES,
            *_NONLINEAR,
            *_FUSED,
            *_TRAINING,
        ],
    )
)
