"""From the reference backend to secret shares: the value is shared as any plain input is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privtensors.core.backend import Payload
from privtensors.core.checks import check_finite


@dataclass(frozen=True, slots=True)
class ClearToMPC:
    """Shares a ``clear`` value between the computing parties. Costs no round: the owner sends each party its share.

    There is no bridge back: the way from shares to plaintext is ``privtensors.reveal``, which is recorded.
    """

    source: str = "clear"
    target: str = "mpc"

    def convert(self, payload: Payload, source: Any, target: Any, *, owner: str) -> Payload:
        """Protect the value of ``payload`` with ``target``.

        Args:
            payload: Payload of the ``clear`` backend, any shape.
            source: The ``clear`` backend.
            target: The backend to convert to.
            owner: Party that owns the value.

        Raises:
            InvalidInput: The value has NaN or infinities (a computation in the clear may overflow), or its dtype is refused.
            OutOfRange: The target cannot represent the value.
        """
        value = source.reveal(payload, to=owner)
        check_finite(value, "clear → mpc")
        protected: Payload = target.protect(value, owner=owner)
        return protected


BRIDGES = (ClearToMPC(),)
