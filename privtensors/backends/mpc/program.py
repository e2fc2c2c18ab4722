"""The dealer on its own: which randomness a program needs, and that randomness made from two fresh seeds.

The dealer runs the program the parties run, on no rows at all, and writes down every mask and every shared expression.
It can then deal for any number of runs of that program without running it again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from privtensors.backends.mpc.correlations import padded
from privtensors.backends.mpc.dealer import Fill, Mask
from privtensors.backends.mpc.hidden import Hidden, Make
from privtensors.backends.mpc.randomness import WIDTH, Prg
from privtensors.core.meter import Meter
from privtensors.errors import CorrelationError, ParameterError
from privtensors.transport.base import Message, packed, packed_size

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One draw: a mask (``fill`` None, ``shared`` False) of both parties or of one, a shared expression, or a table written by ``fill``."""

    node: Hidden
    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int
    xor: bool = False
    shared: bool = False
    fill: Fill | None = None
    party: int | None = None

    @property
    def size(self) -> int:
        """Bytes of corrections, without padding."""
        return packed_size(math.prod(self.shape), self.bits) if self.shared else 0


class TraceChannel:
    """The dealer's place in a protocol: it holds no party, sends nothing, and every opening reads as zeros."""

    parties: tuple[int, ...] = ()

    def step(self, label: str) -> None:
        """Nobody to be in step with."""

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        """Zeros of each message's shape."""
        return [torch.zeros((), dtype=m.words.dtype).expand(m.words.shape[1:]) for m in messages]


class DealerState:
    """Values of masks that outlive a program, of one session: of its weights, of the caches of a generation."""

    def __init__(self) -> None:
        self.values: WeakKeyDictionary[Hidden, Tensor] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"DealerState({len(self.values)} masks)"


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What a run of the parties' program draws, in order.

    Attributes:
        steps: The draws.
        digest: SHA-256 of their kinds, shapes, dtypes and widths: equal where two runs need the same randomness.
        correction_bytes: What party 1 receives, padding included.
    """

    steps: tuple[Step, ...]
    digest: str = field(init=False)
    correction_bytes: int = field(init=False)
    _last: tuple[tuple[Hidden, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        text = "\n".join(f"{s.shape} {s.dtype} {s.bits} {s.xor} {s.shared} {s.fill is None} {s.party}" for s in self.steps)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())
        object.__setattr__(self, "correction_bytes", sum(padded(s.size) for s in self.steps))
        object.__setattr__(self, "_last", self._last_uses())

    def _last_uses(self) -> tuple[tuple[Hidden, ...], ...]:
        """Per step the nodes nobody asks for afterwards."""
        last: dict[Hidden, int] = {}
        for index, step in enumerate(self.steps):
            todo = [step.node]
            while todo:
                node = todo.pop()
                last[node] = index
                todo.extend(node.parents)
        ends: list[list[Hidden]] = [[] for _ in self.steps]
        for node, index in last.items():
            ends[index].append(node)
        return tuple(map(tuple, ends))

    def deal(self, seeds: tuple[bytes, bytes], state: DealerState, *, keep: bool) -> Iterator[memoryview]:
        """Party 1's corrections, in order, in pieces of about 1 MiB or of one large table.

        Args:
            seeds: The two parties' 32-byte seeds, fresh for each call.
            state: The session's; masks of earlier programs are read there.
            keep: Whether masks of this program go there: for the set-up of weights and for steps of a generation.

        Raises:
            ParameterError: Equal seeds.
            CorrelationError: The program uses a mask that this session never drew.
        """
        if seeds[0] == seeds[1]:
            raise ParameterError("both parties have the same seed, so their masks cancel", where="deal", fix="draw two")
        streams, values = (Prg(seeds[0]), Prg(seeds[1])), dict[Hidden, Tensor]()
        pending = bytearray()
        for step, done in zip(self.steps, self._last, strict=True):
            if not step.shared:
                value = streams[step.party or 0].words(step.shape, step.dtype)
                if step.party is None:
                    other = streams[1].words(step.shape, step.dtype)
                    value = value.bitwise_xor_(other) if step.xor else value.add_(other)
                if step.xor and step.bits < 8 * WIDTH[step.dtype]:
                    value.bitwise_and_((1 << step.bits) - 1)
                values[step.node] = value
                if keep:
                    state.values[step.node] = value
            else:
                words = self._correction(step, streams[0], values, state)
                if step.size >= _CHUNK and step.bits == 8 * WIDTH[step.dtype]:
                    if pending:
                        yield memoryview(pending)
                        pending = bytearray()
                    yield words.numpy().reshape(-1).view("uint8").data
                    pending.extend(bytes(padded(step.size) - step.size))
                else:
                    pending.extend(packed(words, step.bits))
                    pending.extend(bytes(padded(step.size) - step.size))
            for node in done:
                values.pop(node, None)
            if len(pending) >= _CHUNK:
                yield memoryview(pending)
                pending = bytearray()
        if pending:
            yield memoryview(pending)

    def _correction(self, step: Step, stream: Prg, values: dict[Hidden, Tensor], state: DealerState) -> Tensor:
        """Party 1's share: the value minus party 0's share."""
        base = stream.words(step.shape, step.dtype)
        if step.fill is not None:
            out = torch.empty(step.shape, dtype=step.dtype)
            step.fill(_value(step.node, values, state), base, out)
            return out
        value = _value(step.node, values, state)
        return base.bitwise_xor_(value) if step.xor else torch.sub(value, base, out=base)


def _value(node: Hidden, values: dict[Hidden, Tensor], state: DealerState) -> Tensor:
    found = values.get(node)
    if found is None:
        found = state.values.get(node)
    if found is not None:
        return found
    if node.make is None:
        raise CorrelationError("a mask that this session never drew", where="deal", fix="open a new session")
    found = values[node] = node.make(*(_value(parent, values, state) for parent in node.parents))
    return found


class Tracer:
    """What a protocol draws from at the dealer: it writes the draws down. Draws outside begin and end are errors."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._steps: list[Step] | None = None

    def __repr__(self) -> str:
        return "Tracer()"

    def begin(self) -> None:
        """Start a program.

        Raises:
            CorrelationError: The last one was not ended.
        """
        if self._steps is not None:
            raise CorrelationError("the last program is still being traced", where="dealer", fix="call end() first")
        self._steps = []

    def end(self) -> Program:
        """The program since :meth:`begin`."""
        steps, self._steps = self._steps, None
        return Program(tuple(steps or ()))

    def abandon(self) -> None:
        """Forget it after an error."""
        self._steps = None

    def _add(self, step: Step) -> Tensor:
        if self._steps is None:
            raise CorrelationError("nothing is being traced", where="dealer", fix="call begin() first")
        self._steps.append(step)
        self.meter.dealer_bytes += step.size
        return torch.empty(0, *step.shape, dtype=step.dtype)

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        node = Hidden()
        return Mask(self._add(Step(node, tuple(shape), dtype, 8 * WIDTH[dtype])), node)

    def xor_mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None) -> Mask:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        node = Hidden()
        return Mask(self._add(Step(node, tuple(shape), dtype, bits or 8 * WIDTH[dtype], xor=True)), node)

    def mask_of(self, party: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        node = Hidden()
        return Mask(self._add(Step(node, tuple(shape), dtype, 8 * WIDTH[dtype], party=party)), node)

    def share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        return self._add(Step(Hidden(make, parents), tuple(shape), dtype, bits or 8 * WIDTH[dtype], shared=True))

    def xor_share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        return self._add(Step(Hidden(make, parents), tuple(shape), dtype, bits or 8 * WIDTH[dtype], xor=True, shared=True))

    def filled(self, fill: Fill, parent: Hidden, *, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        return self._add(Step(parent, tuple(shape), dtype, 8 * WIDTH[dtype], shared=True, fill=fill))

    def input_shares(self, words: Tensor, owner: int) -> Tensor:
        """No rows: the dealer holds no share of an input."""
        return torch.empty(0, *words.shape, dtype=words.dtype)
