"""Checks of public inputs that every backend needs, in one place so that every backend says the same."""

from __future__ import annotations

import torch
from torch import Tensor

from privtensors.errors import InvalidInput, ParameterError


def check_finite(x: Tensor, where: str) -> None:
    """Refuse NaN and infinities in a public input. Integers, bools and empty tensors pass.

    Args:
        x: Plain tensor, any shape.
        where: What is being checked, for the message.

    Raises:
        InvalidInput: Says how many elements are not finite and where the first one is.
    """
    if not (x.is_floating_point() or x.is_complex()) or x.numel() == 0:
        return
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()
    raise InvalidInput(
        f"{len(bad)} of {x.numel()} values are NaN or infinite, the first at index {tuple(bad[0].tolist())}",
        where=where,
        fix="clean the input first, e.g. with torch.nan_to_num",
    )


def checked_device(device: str | torch.device | None) -> torch.device | None:
    """The device to compute on; None for the CPU.

    Raises:
        ParameterError: torch cannot use such a device here.
    """
    try:
        found = torch.device("cpu" if device is None else device)
        if found.type == "cpu":
            return None
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError) as error:  # torch built without the device asserts
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "name a device that torch can use, or leave it out for the CPU"
        raise ParameterError(f"{device} cannot be used here ({reason})", where="device", fix=fix) from None
    if found.type == "meta":
        raise ParameterError("the meta device holds no values", where="device", fix="leave it out for the CPU")
    return found


def check_plain(x: object, where: str, *, finite: bool = True) -> Tensor:
    """Refuse what no backend can take: not a tensor, sparse or quantized, off the CPU, complex, or (``finite``) NaN or infinite.

    A tensor on the meta device passes: it stands for a value that another party holds, and a backend that holds every
    party's view refuses it.

    Raises:
        InvalidInput: Says which of these it is.
    """
    if not isinstance(x, Tensor):
        raise InvalidInput(f"expected a torch.Tensor, got {type(x).__name__}", where=where, fix="wrap it with torch.as_tensor first")
    if x.layout is not torch.strided or x.is_quantized:
        raise InvalidInput(
            f"expected a dense tensor, got layout {x.layout}{', quantized' if x.is_quantized else ''}",
            where=where,
            fix="call .to_dense() or .dequantize()",
        )
    if x.device.type not in ("cpu", "meta"):
        fix = "call .cpu() first; Session(device=…) says where to compute"
        raise InvalidInput(f"expected a tensor on the CPU, got one on {x.device}", where=where, fix=fix)
    if x.is_complex():
        raise InvalidInput(f"dtype {x.dtype} is not supported", where=where, fix="protect real and imaginary part separately")
    if finite and not x.is_meta:
        check_finite(x, where)
    return x
