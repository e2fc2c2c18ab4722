"""The mpc backend's kernels, one table. Read :data:`KERNELS` as the backend's table of contents."""

from __future__ import annotations

from typing import Final

from privtensors.backends.mpc.kernels import arithmetic, linear, shape
from privtensors.backends.mpc.kernels import nonlinear as n
from privtensors.backends.mpc.kernels.arithmetic import addcmul, reciprocal_of, root
from privtensors.core.kernel import Kernel, KernelTable, kernel_table

_NONLINEAR = [
    *(Kernel(name, kinds, n._compare(strict, less)) for name, strict, less in (("gt", True, False), ("ge", False, False), ("lt", True, True), ("le", False, True)) for kinds in ("A", "AA", "AP", "PA")),
    *(Kernel("maximum", kinds, n.maximum) for kinds in ("AA", "AP", "PA")),
    *(Kernel("minimum", kinds, n.minimum) for kinds in ("AA", "AP", "PA")),
    Kernel("amax", "A", n.amax),
    Kernel("max_pool2d", "A", n.max_pool2d),
    Kernel("abs", "A", n.abs_),
    Kernel("relu", "A", n.relu),
    Kernel("clamp", "A", n.clamp_),
    Kernel("exp", "A", n.exp),
    *(Kernel(name, "A", n._activation(name)) for name in ("tanh", "sigmoid", "silu", "erf")),
    Kernel("gelu", "A", n.gelu),
    Kernel("rsqrt", "A", lambda backend, x: root(backend, x, inverse=True)),
    Kernel("sqrt", "A", lambda backend, x: root(backend, x, inverse=False)),
    Kernel("reciprocal", "A", reciprocal_of),
    *(Kernel("div", kinds, n.div_shared) for kinds in ("AA", "PA")),
    Kernel("pow", "A", n.pow_kernel),
    *(Kernel("addcmul", kinds, addcmul) for kinds in ("AAA", "AAP", "APA", "PAA", "PAP", "PPA")),
    Kernel("softmax", "A", n.softmax_),
    *(Kernel("layer_norm", kinds, n.layer_norm_) for kinds in ("AAA", "AA", "A", "APP", "AP")),
    *(Kernel("batch_norm", kinds, n.batch_norm) for kinds in ("AAAPP", "AAAAA", "APP", "AAA", "APPPP")),
    Kernel("attention", "AAA", n.sdpa),
]

KERNELS: Final[KernelTable] = kernel_table([*shape.KERNELS, *arithmetic.KERNELS, *linear.KERNELS, *_NONLINEAR])
