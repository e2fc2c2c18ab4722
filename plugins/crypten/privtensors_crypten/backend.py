"""The crypten backend: this process shares and opens, two party processes hold the shares and compute."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from privtensors.core.kernel import KernelTable
from privtensors.core.meter import Meter
from privtensors.errors import FileFormatError, InvalidInput, OutOfRange
from privtensors_crypten import home
from privtensors_crypten.kernels import KERNELS
from privtensors_crypten.payload import Held
from privtensors_crypten.workers import Workers

SCALE: Final = 1 << 16
RANGE_BITS: Final = 18
_DTYPES: Final = (torch.float32, torch.float64, torch.bool)


class CrypTenBackend:
    """CrypTen 0.4.1 (Knott et al., 2021) on two party processes of this host, each with one additive share in Z_2^64.

    Guarantee class: heuristic: CrypTen draws masks from torch's Mersenne Twister. Values are fixed point with 16 fractional
    bits and inputs lie in ±2^18. CrypTen truncates each share by itself after every product, which fails with probability
    |product| / 2^32 per element and is then wrong by 2^32 (measured: 78 of 400,000 products of 1000 by 1000).

    The parties start at the first ``protect`` and end with the backend, or with the first error: a session that lost a party
    cannot go on.

    Args:
        technique: Has ``provider``.
        meter: Counts the rounds and bytes that CrypTen's own counters report.
        workers: The parties. Default: those of CrypTen's installed environment.
    """

    name: ClassVar[str] = "crypten"
    guarantee: ClassVar[str] = "heuristic"
    assumption: ClassVar[str] = (
        "semi-honest parties that do not collude; who makes the triples (a third process, or party 0 with provider TFP) is honest; "
        "nobody breaks torch's Mersenne Twister, which makes every mask, or reads this host's loopback interface"
    )
    kernels: ClassVar[KernelTable] = KERNELS
    install = staticmethod(home.install)  # `privtensors backends install crypten`

    def __init__(self, technique: Any, meter: Meter, *, workers: Workers | None = None) -> None:
        self.technique, self.meter, self.simulated = technique, meter, True
        self.workers = workers or Workers(technique.provider)

    def __repr__(self) -> str:
        return f"CrypTenBackend(provider={self.technique.provider!r})"

    def close(self) -> None:
        """End the parties; tensors of this backend cannot be used any more."""
        self.workers.close()

    def hold(self, shape: tuple[int, ...], dtype: torch.dtype) -> Held:
        """A fresh payload, whose number the parties are about to fill."""
        return Held(self.workers.number(), tuple(shape), dtype, self.workers.forgotten)

    def protect(self, x: Tensor, *, owner: str) -> Held:
        """Split ``x`` into two uniform shares here and send each party its own: no party gets the value, the owner's neither.

        Raises:
            InvalidInput: A dtype other than float32, float64 and bool, NaN or infinity.
            OutOfRange: An absolute value of 2^18 or more.
            MissingExtra: CrypTen's environment is not installed.
            TransportError: A party failed or is gone.
        """
        if x.dtype not in _DTYPES:
            raise InvalidInput(f"dtype {x.dtype} is not supported", where="protect(crypten)", fix="use float32, float64 or bool")
        wide = x.detach().to(torch.float64).contiguous()
        peak = float(wide.abs().max()) if x.numel() else 0.0
        if not math.isfinite(peak):
            raise InvalidInput("the tensor has NaN or infinite entries", where="protect(crypten)", fix="clean it first")
        if peak >= 2.0**RANGE_BITS:
            raise OutOfRange(f"absolute values up to {peak:.4g}", where="protect(crypten)", fix=f"scale the tensor into ±2^{RANGE_BITS}")
        scale = 1 if x.dtype is torch.bool else SCALE
        first = _uniform(tuple(x.shape))
        return self._load((first, (wide * scale).round_().to(torch.int64) - first), scale, x.dtype)

    def reveal(self, payload: Any, *, to: str) -> Tensor:
        """Fetch both shares and add them.

        Raises:
            TransportError: A party failed or is gone.
        """
        shares, scale = self._fetch(payload)
        value = (shares[0] + shares[1]).to(torch.float64) / scale
        return (value.gt(0.5) if payload.dtype is torch.bool else value.to(payload.dtype)).contiguous()

    def export(self, payload: Any) -> Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]:
        """One part per computing party, with that party's share only.

        Raises:
            TransportError: A party failed or is gone.
        """
        shares, scale = self._fetch(payload)
        text = {"scale": str(scale), "dtype": str(payload.dtype).removeprefix("torch."), "shape": ",".join(map(str, payload.shape))}
        return {f"party{i}": ({"share": share}, text) for i, share in enumerate(shares)}

    def restore(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> Held:
        """Inverse of :meth:`export`.

        Raises:
            FileFormatError: A party's part is missing or malformed, or the parts disagree.
            TransportError: A party failed or is gone.
        """
        if set(parts) != {"party0", "party1"}:
            raise FileFormatError("one part each of party0 and party1 is needed", where="crypten", fix="load the files of both parties")
        (first, text), (second, other) = parts["party0"], parts["party1"]
        shares = (first.get("share"), second.get("share"))
        dtypes = {str(d).removeprefix("torch."): d for d in (*_DTYPES, torch.float16, torch.bfloat16)}
        if (
            dict(text) != dict(other)
            or any(s is None or s.dtype is not torch.int64 for s in shares)
            or text.get("scale") not in ("1", str(SCALE))
            or text.get("dtype") not in dtypes
            or any(text.get("shape") != ",".join(map(str, s.shape)) for s in shares if s is not None)
        ):
            raise FileFormatError("share, scale, dtype or shape is malformed, or the parts disagree", where="crypten", fix="save it again")
        assert shares[0] is not None and shares[1] is not None
        return self._load((shares[0], shares[1]), int(text["scale"]), dtypes[text["dtype"]])

    def _load(self, shares: tuple[Tensor, Tensor], scale: int, dtype: torch.dtype) -> Held:
        payload = self.hold(tuple(shares[0].shape), dtype)
        self.workers.request({"verb": "load", "out": [payload.number], "scale": scale}, [{"share": s} for s in shares])
        return payload

    def _fetch(self, payload: Held) -> tuple[tuple[Tensor, Tensor], int]:
        reply = self.workers.request({"verb": "give", "held": payload.number})
        scale = int(reply.headers[0]["scale"])
        return (reply.tensors[0]["share"], reply.tensors[1]["share"]), scale


def _uniform(shape: tuple[int, ...]) -> Tensor:
    """Uniform int64 words of the operating system's generator."""
    count = math.prod(shape)
    drawn = np.frombuffer(bytearray(secrets.token_bytes(8 * count)), dtype=np.int64) if count else np.zeros(0, dtype=np.int64)
    return torch.from_numpy(drawn).view(shape)
