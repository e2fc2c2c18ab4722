"""Worker of CrypTen: one of its two parties. Runs in CrypTen's environment: ``python crypten_worker.py``.

``variant`` is ``"stock"``, the operations a user finds (``erf``, ``softmax``, ``inv_sqrt``), or ``"in range"``, where GELU is
x+ plus a quartic on [-3, 3] (comparisons and products of CrypTen's own): ``erf`` is a Taylor series of 8 terms that
leaves its domain on MiniLM's real activations.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frames import Arrays, Header, serve

# |x| <= 3: GELU(x) - max(x, 0) as a polynomial in |x|; largest error 0.004.
QUARTIC = (0.00410626, -0.55386347, 0.5658561, -0.19719836, 0.02328962)
SERVER, CLIENT = 0, 1
STANDINS = Path(__file__).parents[3] / "plugins" / "crypten" / "privtensors_crypten" / "worker" / "standins.py"


def import_crypten() -> Any:
    """CrypTen, by the plugin's stand-ins for what its import asks for: one file of the standard library, loaded by its path."""
    spec = importlib.util.spec_from_file_location("standins", STANDINS)
    assert spec and spec.loader
    standins = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standins)
    return standins.import_crypten()


class Wire:
    """Counts this party's exchanges and bytes, and waits as long as ``link`` would take: around CrypTen's communicator.

    One collective call is one exchange; in an all-reduce of two parties each sends its tensors once. What a link takes is
    half a round trip and the bytes on the line, as for every other contender.
    """

    def __init__(self, communicator: Any) -> None:
        self.link: dict[str, float] | None = None
        self.rounds = self.bytes_sent = 0
        for name in ("send", "recv", "isend", "irecv", "scatter", "reduce", "all_reduce", "gather", "all_gather", "broadcast"):
            setattr(communicator, name, self._around(getattr(communicator, name)))

    def _around(self, call: Any) -> Any:
        def slowed(data: Any, *args: Any, **kwargs: Any) -> Any:
            tensors = data if isinstance(data, list) else [data]
            size = sum(t.nelement() * t.element_size() for t in tensors)
            self.rounds += 1
            self.bytes_sent += size
            if self.link is not None:
                time.sleep(self.link["rtt_s"] / 2 + 8 * size / self.link["bits_per_s"])
            return call(data, *args, **kwargs)

        return slowed


class Offline:
    """Seconds inside the provider of correlated randomness."""

    def __init__(self, provider: Any) -> None:
        self.seconds, self._inside = 0.0, False
        for name in ("generate_additive_triple", "square", "generate_binary_triple", "wrap_rng", "B2A_rng"):
            setattr(provider, name, self._around(getattr(provider, name)))

    def _around(self, call: Any) -> Any:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return clocked


class Encoder:
    """BERT's encoder on CrypTen tensors."""

    def __init__(self, crypten: Any, shape: Header, weights: Arrays, rank: int, *, in_range: bool) -> None:
        self._layers, self._heads, self._eps, self._in_range = shape["layers"], shape["heads"], shape["eps"], in_range
        # The other party states sizes only.
        own = {k: torch.from_numpy(v.copy()) if rank == SERVER else torch.zeros(v.shape) for k, v in weights.items()}
        self._p = {name: crypten.cryptensor(value, src=SERVER) for name, value in own.items()}

    def __call__(self, x: Any) -> Any:
        p = self._p
        n, width = x.size()
        for i in range(self._layers):
            qkv = (x.matmul(p[f"{i}.qkv.w"]) + p[f"{i}.qkv.b"]).reshape(n, 3, self._heads, width // self._heads)
            query, key, value = (qkv[:, j].permute(1, 0, 2) for j in range(3))
            weights = query.matmul(key.transpose(1, 2)).softmax(-1)
            context = weights.matmul(value).permute(1, 0, 2).reshape(n, width)
            x = self._norm(x + context.matmul(p[f"{i}.out.w"]) + p[f"{i}.out.b"], f"{i}.norm1")
            hidden = self._gelu(x.matmul(p[f"{i}.up.w"]) + p[f"{i}.up.b"])
            x = self._norm(x + hidden.matmul(p[f"{i}.down.w"]) + p[f"{i}.down.b"], f"{i}.norm2")
        return x

    def _norm(self, x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True) + self._eps
        return centred * variance.inv_sqrt() * self._p[f"{name}.w"] + self._p[f"{name}.b"]

    def _gelu(self, x: Any) -> Any:
        if not self._in_range:
            return x * ((x * 0.7071067811865476).erf() + 1) * 0.5
        size = x.abs()
        square = size.square()
        cube, fourth = size * square, square.square()
        c = QUARTIC
        bump = size * c[1] + square * c[2] + cube * c[3] + fourth * c[4] + c[0]
        return (x + size) * 0.5 + bump * (size < 3)


class Handler:
    def __init__(self) -> None:
        self._crypten: Any = None
        self._rank = 0

    def __call__(self, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        return self._load(header, arrays) if header["do"] == "load" else self._run(header, arrays)

    def _load(self, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        torch.set_num_threads(header["threads"])
        crypten = self._crypten = import_crypten()
        crypten.init()
        self._rank = crypten.communicator.get().get_rank()
        self._offline = Offline(crypten.mpc.get_default_provider())
        self._wire = Wire(crypten.communicator.get())
        self._encoder = Encoder(crypten, header["shape"], arrays, self._rank, in_range=header["variant"] == "in range")
        return {"crypten": crypten.__version__, "torch": torch.__version__}, {}

    def _run(self, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        crypten, wire, offline = self._crypten, self._wire, self._offline
        x = torch.from_numpy(arrays["hidden"][0].copy())
        wire.link = None
        crypten.communicator.get().barrier()
        wire.link, wire.rounds, wire.bytes_sent, offline.seconds = header["link"], 0, 0, 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        with crypten.no_grad():
            shared = crypten.cryptensor(x if self._rank == CLIENT else torch.zeros(x.shape), src=CLIENT)
            output = self._encoder(shared).get_plain_text(dst=CLIENT)
        spent = {"total_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        costs = {"offline_s": offline.seconds, "rounds": wire.rounds, "bytes_sent": wire.bytes_sent}
        result = {"output": np.asarray(output)[None]} if self._rank == CLIENT else {}
        return {**spent, **costs}, result


if __name__ == "__main__":
    serve(Handler())
