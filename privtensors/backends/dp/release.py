"""Release mechanisms: how much noise a reveal of a differentially private value adds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from privtensors.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Gaussian noise for the L2 sensitivity (Dwork et al. 2006), drawn exactly on a grid (Canonne, Kamath and Steinke 2020).

    State exactly one of ``epsilon``, ``noise_multiplier`` and ``std``. The release is charged by what was drawn, so with the
    others it costs less when it stands alone than added up with what came before by hand: the ledger does that.

    Guarantee class: statistical.

    Attributes:
        epsilon: ε of this release alone, at ``delta``; the noise is calibrated for it.
        delta: δ of ``epsilon``; default 1e-6.
        noise_multiplier: Standard deviation over the L2 sensitivity.
        std: Standard deviation, in the unit of the value.

    Raises:
        ParameterError: None or several of the three, or a value out of range.
    """

    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        _one_of("Gaussian", {"epsilon": self.epsilon, "noise_multiplier": self.noise_multiplier, "std": self.std})
        if self.delta is None:
            return
        if self.epsilon is None:
            raise ParameterError("says nothing without epsilon", where="Gaussian.delta", fix="drop it: the ledger holds the noise itself")
        if not (_number(self.delta) and 0 < self.delta < 1):
            raise ParameterError("must be a number between 0 and 1", where="Gaussian.delta", fix="well below 1 / n, e.g. 1e-6")


@dataclass(frozen=True, kw_only=True)
class Laplace:
    """Laplace noise for the L1 sensitivity (Dwork et al. 2006), drawn exactly and rounded to a grid. It has no δ.

    State exactly one of ``epsilon``, ``noise_multiplier`` and ``scale``. Guarantee class: statistical.

    Attributes:
        epsilon: ε of this release alone: L1 sensitivity over scale.
        noise_multiplier: Scale b over the L1 sensitivity, that is 1 / ε.
        scale: Scale b, in the unit of the value; the standard deviation is √2 b.

    Raises:
        ParameterError: None or several of the three, or a value out of range.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        _one_of("Laplace", {"epsilon": self.epsilon, "noise_multiplier": self.noise_multiplier, "scale": self.scale})


Mechanism = Gaussian | Laplace


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(name: str, given: dict[str, float | None]) -> None:
    stated = {key: value for key, value in given.items() if value is not None}
    if len(stated) != 1:
        what = f"exactly one of {', '.join(given)} must be stated, got {', '.join(stated) or 'none'}"
        raise ParameterError(what, where=name, fix=f"{name}({next(iter(given))}=0.5)")
    ((key, value),) = stated.items()
    if not (_number(value) and 0 < value < math.inf):
        raise ParameterError("must be a finite number above 0", where=f"{name}.{key}", fix=f"{name}({key}=0.5)")
