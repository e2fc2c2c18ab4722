"""What core asks of a ledger: one call per reveal. Accounting implements it; core knows no ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One reveal: what left protection, to whom, through which backend. It holds no value.

    Attributes:
        backend: Name of the backend that held the value.
        shape: Shape of the revealed tensor.
        dtype: Its dtype as text, e.g. ``"float32"``.
        receiver: Party that learns the value.
        label: What the value is, e.g. ``"logits"``; free text.
        simulated: True when one process held every party's view.
        guarantee: Guarantee class of the protection it had until now.
        details: Further public facts (plain strings only).
    """

    backend: str
    shape: tuple[int, ...]
    dtype: str
    receiver: str
    label: str
    simulated: bool
    guarantee: str
    details: tuple[tuple[str, str], ...] = field(default=())


class Recorder(Protocol):
    """Receives every disclosure before the value is handed out; raising here stops the reveal (fail closed)."""

    def record(self, disclosure: Disclosure) -> None:
        """Store ``disclosure`` durably, or raise."""


class MemoryRecorder:
    """Keeps disclosures in a list: the default of a session without a ledger."""

    def __init__(self) -> None:
        self.entries: list[Disclosure] = []

    def record(self, disclosure: Disclosure) -> None:
        self.entries.append(disclosure)
