"""How far off CrypTen's functions are, in the range where they are right and beyond it, and how often its truncation fails.

Set up once with ``privtensors backends install crypten``, then run ``python plugins/crypten/examples/measure_errors.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from privtensors_crypten.technique import CrypTen
from torch import Tensor

import privtensors as pt
from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder

# Name, function, the range where it is right, and points beyond.
FUNCTIONS: tuple[tuple[str, Callable[[Tensor], Tensor], tuple[float, float], tuple[float, ...]], ...] = (
    ("exp, to 0", torch.exp, (-256.0, 0.0), (-541.0,)),
    ("exp, to 4", torch.exp, (-256.0, 4.0), (6.0,)),
    ("reciprocal", torch.reciprocal, (0.1, 150.0), (256.0,)),
    ("rsqrt", torch.rsqrt, (0.1, 150.0), (0.05, 200.0)),
    ("sqrt", torch.sqrt, (0.1, 150.0), (200.0,)),
    ("sigmoid", torch.sigmoid, (-100.0, 100.0), ()),
    ("tanh", torch.tanh, (-100.0, 100.0), ()),
    ("softmax of 150 equal", lambda x: torch.softmax(torch.zeros_like(x[:150]) * x[:150], -1), (0.0, 1.0), ()),
)


def private(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return pt.reveal(function(pt.protect(x, CrypTen())), to="client")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000, help="of each function's range")
    options = parser.parse_args()
    with Session(recorder=MemoryRecorder()), torch.no_grad():
        for name, function, (low, high), beyond in FUNCTIONS:
            x = torch.linspace(low, high, options.points, dtype=torch.float64)
            error = float((private(function, x) - function(x)).abs().max())
            print(f"{name:21} {low:g}..{high:g}: largest error {error:.4f}")
            for point in beyond:
                at = torch.tensor([point], dtype=torch.float64)
                print(f"{'':21} at {point:g}: {float(private(function, at)):.6g} for {float(function(at)):.6g}")
        factor = torch.full((2 * options.points,), 1000.0, dtype=torch.float64)
        product = private(lambda x: x * x.clone(), factor)
        wrong = (product - 1e6).abs() > 1
        print(f"{len(factor):,} products 1000 x 1000: {int(wrong.sum())} wrong: {sorted({round(float(v)) for v in product[wrong]})}")


if __name__ == "__main__":
    main()
