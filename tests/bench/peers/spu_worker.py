"""Worker of SPU: all its parties are threads of this process (its own simulation), linked by memory.

Runs in SPU's environment: ``python spu_worker.py``. Weights are shared once; each run shares the input, executes, opens.
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import spu
from frames import Arrays, Header, serve
from spu import libspu
from spu.utils import frontend
from spu.utils.simulation import PropagatingThread

SECRET = libspu.Visibility.VIS_SECRET
LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes \d+, send actions (\d+)")
T = TypeVar("T")


def encoder(layers: int, heads: int, eps: float, *, tanh: bool) -> Callable[..., Any]:
    """BERT's encoder in jax.numpy. GELU is the model's own, by erf, or the cheaper tanh form."""

    def norm(x: Any, w: Any, b: Any) -> Any:
        centred = x - jnp.mean(x, -1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps) * w + b

    def run(x: Any, p: dict[str, Any]) -> Any:
        n, width = x.shape

        def split(t: Any) -> Any:
            return t.reshape(n, heads, width // heads).transpose(1, 0, 2)

        for i in range(layers):
            query, key, value = (split(t) for t in jnp.split(x @ p[f"{i}.qkv.w"] + p[f"{i}.qkv.b"], 3, axis=-1))
            weights = jax.nn.softmax(query @ key.transpose(0, 2, 1), axis=-1)
            context = (weights @ value).transpose(1, 0, 2).reshape(n, width)
            x = norm(x + context @ p[f"{i}.out.w"] + p[f"{i}.out.b"], p[f"{i}.norm1.w"], p[f"{i}.norm1.b"])
            hidden = jax.nn.gelu(x @ p[f"{i}.up.w"] + p[f"{i}.up.b"], approximate=tanh)
            x = norm(x + hidden @ p[f"{i}.down.w"] + p[f"{i}.down.b"], p[f"{i}.norm2.w"], p[f"{i}.norm2.b"])
        return x

    return run


class Output:
    """What the library prints to stdout, which is where it states its traffic."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        os.dup2(self._file.fileno(), 1)
        self._libc = ctypes.CDLL(None)

    def since_last(self) -> str:
        self._libc.fflush(None)
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        self._file.seek(0)
        self._file.truncate()
        return text


class Parties:
    """SPU's parties with the weights already shared among them."""

    def __init__(self, protocol: str, shape: Header, weights: Arrays, *, tanh: bool) -> None:
        self.count = {"SEMI2K": 2, "ABY3": 3}[protocol]
        config = libspu.RuntimeConfig(protocol=getattr(libspu.ProtocolKind, protocol), field=libspu.FieldType.FM64)
        self._io = spu.Io(self.count, config)
        self._weights, self._names = weights, sorted(weights)
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._function = encoder(shape["layers"], shape["heads"], shape["eps"], tanh=tanh)
        desc = libspu.link.Desc()
        for rank in range(self.count):
            desc.add_party(f"id_{rank}", f"thread_{rank}")

        def start(rank: int) -> Any:
            own = libspu.RuntimeConfig(config)
            own.enable_pphlo_profile = rank == 0  # states party 0's traffic
            return spu.Runtime(libspu.link.create_mem(desc, rank), own)

        self._runtimes = self._all(start)
        for name in self._names:
            self._share(f"w.{name}", weights[name])

    def _all(self, job: Callable[[int], T]) -> list[T]:
        threads = [PropagatingThread(target=job, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        return [thread.join() for thread in threads]

    def _share(self, name: str, value: np.ndarray) -> None:
        for runtime, share in zip(self._runtimes, self._io.make_shares(value, SECRET), strict=True):
            runtime.set_var(name, share)

    def compiled(self, x: np.ndarray) -> Any:
        """The executable for this shape; compiled once."""
        if x.shape not in self._compiled:
            leaves = jax.tree_util.tree_flatten_with_path((x, self._weights))[0]
            names = ["x" if len(path) == 1 else f"w.{path[1].key}" for path, _ in leaves]
            executable, _ = frontend.compile(
                frontend.Kind.JAX,
                self._function,
                (x, self._weights),
                {},
                names,
                [SECRET] * len(names),
                lambda flat: [f"out{i}" for i in range(len(flat))],
            )
            self._compiled[x.shape] = executable
        return self._compiled[x.shape]

    def run(self, x: np.ndarray) -> np.ndarray:
        executable = self.compiled(x)
        self._share("x", x)

        def execute(rank: int) -> Any:
            self._runtimes[rank].run(executable)
            return self._runtimes[rank].get_var(executable.output_names[0])

        return np.asarray(self._io.reconstruct(self._all(execute)))


class Handler:
    def __init__(self) -> None:
        self._parties: Parties | None = None
        self._output: Output | None = None

    def __call__(self, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        if header["do"] == "load":
            self._output = Output()
            self._parties = Parties(header["protocol"], header["shape"], arrays, tanh=header["gelu"] == "tanh")
            return {"spu": spu.__version__, "jax": jax.__version__}, {}
        assert self._parties and self._output
        if header["link"] is not None:
            raise ValueError("the simulation's memory link cannot be shaped")
        x = np.ascontiguousarray(arrays["hidden"][0])
        self._parties.compiled(x)
        self._output.since_last()
        wall, cpu = time.perf_counter(), time.process_time()
        output = self._parties.run(x)
        spent = {"total_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        traffic = LINK.findall(self._output.since_last())
        costs = {"bytes_sent": int(traffic[-1][0]), "rounds": int(traffic[-1][1])} if traffic else {}
        return {**spent, **costs}, {"output": output[None]}


if __name__ == "__main__":
    serve(Handler())
