"""The op table: one row per operation, shared by every backend, the conformance suite, the docs and the benchmarks.

A row names the ATen overloads it covers. The overload itself, run on plain tensors, is the row's reference; its sample
inputs are in :mod:`privtensors.testing.samples`. An ATen call that no row covers is refused for every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch

from privtensors.errors import RegistryError

_a: Final = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Op:
    """One row.

    Attributes:
        name: Name of the operation, the first half of a kernel's key.
        category: ``shape``, ``structure``, ``arithmetic``, ``linear``, ``comparison``, ``nonlinear``, ``fused``,
            ``loss`` or ``backward``.
        overloads: ATen overloads that return fresh tensors (or views, see ``view``).
        inplace: ATen overloads that write their first operand.
        reshapes: ATen overloads that change the shape of their first operand and no value (``vector @ matrix`` ends in one).
        view: The result aliases the first operand.
        alias: The result is the first operand itself (detach): core does it for every backend, no kernel is needed.
        public: The result holds no value of the operands, so a kernel may return a plain tensor.
    """

    name: str
    category: str
    overloads: tuple[Any, ...]
    inplace: tuple[Any, ...] = ()
    view: bool = False
    alias: bool = False
    public: bool = False
    reshapes: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """How the dispatcher treats one ATen overload.

    ``fill`` holds all positional arguments' defaults where torch drops trailing ones and the row's overloads disagree on
    them: ``hardtanh(x)`` clamps to -1..1, ``clamp(x)`` does not. Kernels see the arguments filled in.
    """

    op: str
    inplace: bool
    view: bool
    alias: bool
    public: bool
    fill: tuple[Any, ...] = ()
    reshapes: bool = False


_HARDTANH: Final = (None, -1, 1)  # the operand itself is always given


def _shape(name: str, *overloads: Any, reshapes: tuple[Any, ...] = ()) -> Op:
    return Op(name, "shape", overloads, view=True, reshapes=reshapes)


OPS: Final[tuple[Op, ...]] = (
    Op("detach", "shape", (_a.detach.default, _a.alias.default), alias=True),
    _shape("view", _a.view.default, _a._unsafe_view.default),
    _shape("t", _a.t.default),
    _shape("transpose", _a.transpose.int),
    _shape("permute", _a.permute.default),
    _shape("unsqueeze", _a.unsqueeze.default),
    _shape("squeeze", _a.squeeze.default, _a.squeeze.dim, _a.squeeze.dims, reshapes=(_a.squeeze_.default, _a.squeeze_.dim)),
    _shape("expand", _a.expand.default),
    _shape("select", _a.select.int),
    _shape("slice", _a.slice.Tensor),
    _shape("split", _a.split.Tensor, _a.split_with_sizes.default),
    _shape("unbind", _a.unbind.int),
    Op("clone", "structure", (_a.clone.default,)),
    Op("to_copy", "structure", (_a._to_copy.default,)),
    Op("cat", "structure", (_a.cat.default,)),
    Op("stack", "structure", (_a.stack.default,)),
    Op("repeat", "structure", (_a.repeat.default,)),
    Op("flip", "structure", (_a.flip.default,)),
    Op("roll", "structure", (_a.roll.default,)),
    Op("index", "structure", (_a.index.Tensor,)),
    Op("index_select", "structure", (_a.index_select.default,)),
    Op("gather", "structure", (_a.gather.default,)),
    Op("embedding", "structure", (_a.embedding.default,)),
    Op("constant_pad_nd", "structure", (_a.constant_pad_nd.default,)),
    Op("tril", "structure", (_a.tril.default,)),
    Op("triu", "structure", (_a.triu.default,)),
    Op("masked_fill", "structure", (_a.masked_fill.Scalar,), (_a.masked_fill_.Scalar,)),
    Op("where", "structure", (_a.where.self, _a.where.ScalarOther, _a.where.ScalarSelf)),
    Op("zeros_like", "structure", (_a.zeros_like.default,), public=True),
    Op("ones_like", "structure", (_a.ones_like.default,), public=True),
    Op("zero", "structure", (), (_a.zero_.default,)),
    Op("copy", "structure", (), (_a.copy_.default,)),
    Op("add", "arithmetic", (_a.add.Tensor, _a.add.Scalar), (_a.add_.Tensor, _a.add_.Scalar)),
    Op("sub", "arithmetic", (_a.sub.Tensor, _a.sub.Scalar), (_a.sub_.Tensor, _a.sub_.Scalar)),
    Op("rsub", "arithmetic", (_a.rsub.Scalar, _a.rsub.Tensor)),
    Op("neg", "arithmetic", (_a.neg.default,), (_a.neg_.default,)),
    Op("mul", "arithmetic", (_a.mul.Tensor, _a.mul.Scalar), (_a.mul_.Tensor, _a.mul_.Scalar)),
    Op("div", "arithmetic", (_a.div.Tensor, _a.div.Scalar), (_a.div_.Tensor, _a.div_.Scalar)),
    Op("pow", "arithmetic", (_a.pow.Tensor_Scalar,)),
    Op("addcmul", "arithmetic", (_a.addcmul.default,), (_a.addcmul_.default,)),
    Op("addcdiv", "arithmetic", (_a.addcdiv.default,), (_a.addcdiv_.default,)),
    Op("lerp", "arithmetic", (_a.lerp.Scalar,), (_a.lerp_.Scalar,)),
    Op("sum", "arithmetic", (_a.sum.default, _a.sum.dim_IntList)),
    Op("mean", "arithmetic", (_a.mean.default, _a.mean.dim)),
    Op("cumsum", "arithmetic", (_a.cumsum.default,)),
    Op("bincount", "arithmetic", (_a.bincount.default,)),
    Op("histc", "arithmetic", (_a.histc.default,)),
    Op("renorm", "arithmetic", (_a.renorm.default,)),
    Op("mm", "linear", (_a.mm.default,)),
    Op("bmm", "linear", (_a.bmm.default,)),
    Op("mv", "linear", (_a.mv.default,)),
    Op("dot", "linear", (_a.dot.default,)),
    Op("addmm", "linear", (_a.addmm.default,)),
    Op("baddbmm", "linear", (_a.baddbmm.default,)),
    Op("convolution", "linear", (_a.convolution.default,)),
    Op("avg_pool2d", "linear", (_a.avg_pool2d.default,)),
    Op("adaptive_avg_pool2d", "linear", (_a._adaptive_avg_pool2d.default,)),
    Op("gt", "comparison", (_a.gt.Scalar, _a.gt.Tensor)),
    Op("ge", "comparison", (_a.ge.Scalar, _a.ge.Tensor)),
    Op("lt", "comparison", (_a.lt.Scalar, _a.lt.Tensor)),
    Op("le", "comparison", (_a.le.Scalar, _a.le.Tensor)),
    Op("eq", "comparison", (_a.eq.Scalar, _a.eq.Tensor)),
    Op("maximum", "comparison", (_a.maximum.default,)),
    Op("minimum", "comparison", (_a.minimum.default,)),
    Op("amax", "comparison", (_a.amax.default,)),
    Op("argmax", "comparison", (_a.argmax.default,)),
    Op("max_pool2d", "comparison", (_a.max_pool2d_with_indices.default,)),
    Op("abs", "comparison", (_a.abs.default,), (_a.abs_.default,)),
    Op("relu", "comparison", (_a.relu.default,), (_a.relu_.default,)),
    Op("clamp", "comparison", (_a.clamp.default, _a.hardtanh.default), (_a.clamp_.default, _a.hardtanh_.default)),
    Op("exp", "nonlinear", (_a.exp.default,), (_a.exp_.default,)),
    Op("tanh", "nonlinear", (_a.tanh.default,), (_a.tanh_.default,)),
    Op("sigmoid", "nonlinear", (_a.sigmoid.default,), (_a.sigmoid_.default,)),
    Op("gelu", "nonlinear", (_a.gelu.default,)),
    Op("silu", "nonlinear", (_a.silu.default,), (_a.silu_.default,)),
    Op("erf", "nonlinear", (_a.erf.default,)),
    Op("rsqrt", "nonlinear", (_a.rsqrt.default,)),
    Op("sqrt", "nonlinear", (_a.sqrt.default,)),
    Op("reciprocal", "nonlinear", (_a.reciprocal.default,)),
    Op("log", "nonlinear", (_a.log.default,)),
    Op("softplus", "nonlinear", (_a.softplus.default,)),
    Op("log_sigmoid", "nonlinear", (_a.log_sigmoid_forward.default,)),
    Op("softmax", "fused", (_a._softmax.default, _a._safe_softmax.default)),
    Op("layer_norm", "fused", (_a.native_layer_norm.default,)),
    Op("batch_norm", "fused", (_a.native_batch_norm.default, _a._native_batch_norm_legit_no_training.default)),
    Op("attention", "fused", (_a._scaled_dot_product_flash_attention_for_cpu.default,)),
    Op("log_softmax", "loss", (_a._log_softmax.default,)),
    Op("nll_loss", "loss", (_a.nll_loss_forward.default,)),
    Op("bce_with_logits", "loss", (_a.binary_cross_entropy_with_logits.default,)),
    Op("mse_loss", "loss", (_a.mse_loss.default,)),
    Op("relu_backward", "backward", (_a.threshold_backward.default,)),
    Op("gelu_backward", "backward", (_a.gelu_backward.default,)),
    Op("silu_backward", "backward", (_a.silu_backward.default,)),
    Op("tanh_backward", "backward", (_a.tanh_backward.default,)),
    Op("sigmoid_backward", "backward", (_a.sigmoid_backward.default,)),
    Op("clamp_backward", "backward", (_a.hardtanh_backward.default,)),
    Op("softmax_backward", "backward", (_a._softmax_backward_data.default,)),
    Op("layer_norm_backward", "backward", (_a.native_layer_norm_backward.default,)),
    Op("attention_backward", "backward", (_a._scaled_dot_product_flash_attention_for_cpu_backward.default,)),
    Op("select_backward", "backward", (_a.select_backward.default,)),
    Op("slice_backward", "backward", (_a.slice_backward.default,)),
    Op("convolution_backward", "backward", (_a.convolution_backward.default,)),
    Op("max_pool2d_backward", "backward", (_a.max_pool2d_with_indices_backward.default,)),
    Op("softplus_backward", "backward", (_a.softplus_backward.default,)),
    Op("log_sigmoid_backward", "backward", (_a.log_sigmoid_backward.default,)),
    Op("log_softmax_backward", "backward", (_a._log_softmax_backward_data.default,)),
    Op("nll_loss_backward", "backward", (_a.nll_loss_backward.default,)),
    Op("mse_loss_backward", "backward", (_a.mse_loss_backward.default,)),
)


def _routes() -> Mapping[Any, Route]:
    routes: dict[Any, Route] = {}
    for op in OPS:
        for overload, inplace in [(o, False) for o in op.overloads] + [(o, True) for o in op.inplace]:
            if overload in routes:
                raise RegistryError(f"{overload} is in two rows", where="op table")
            fill = _HARDTANH if overload in (_a.hardtanh.default, _a.hardtanh_.default) else ()
            routes[overload] = Route(op.name, inplace, op.view and not inplace, op.alias, op.public, fill)
        routes.update((overload, Route(op.name, False, False, False, op.public, reshapes=True)) for overload in op.reshapes)
    return MappingProxyType(routes)


ROUTES: Final[Mapping[Any, Route]] = _routes()
BY_NAME: Final[Mapping[str, Op]] = MappingProxyType({op.name: op for op in OPS})
