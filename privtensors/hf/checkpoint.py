"""What a Trainer's checkpoint says about the privacy of its run: which reservations it spends, and under which plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from privtensors.accounting import Ledger
from privtensors.errors import AccountingError, FileFormatError
from privtensors.train.calibration import Plan
from privtensors.train.preparation import Promise

NAME: Final = "privacy.json"
_FORMAT = 1
_TERMS = (
    "dataset", "unit", "epsilon", "delta", "clipping_norm", "noise_multiplier", "sampling", "amplification", "user_column", "max_per_user",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a private run. It proves nothing: what it says is held against the ledger.

    Attributes:
        folder: Where it is.
        ledger_id: The ledger of its reservations.
        reservations: Their rows, oldest first; empty for a run without privacy.
        step: Optimizer steps whose outcome it holds.
        plan: The whole run.
        terms: The promise.
    """

    folder: str
    ledger_id: str
    reservations: tuple[int, ...]
    step: int
    plan: Plan
    terms: dict[str, Any]


def write_checkpoint(folder: Path, ledger: Ledger, reservations: tuple[int, ...], step: int, plan: Plan, promise: Promise) -> None:
    """Write ``privacy.json`` into a checkpoint's folder."""
    facts = {
        "format": _FORMAT, "ledger_id": ledger.ledger_id, "reservations": list(reservations), "step": step, "plan": asdict(plan),
        "terms": terms_of(promise),
    }  # fmt: skip
    (folder / NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(folder: Path, ledger: Ledger, promise: Promise) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises:
        FileFormatError: There is no ``privacy.json``, or it is malformed.
        AccountingError: It belongs to another ledger, or to a run under another promise.
    """
    path = folder / NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT or set(facts) != {"format", "ledger_id", "reservations", "step", "plan", "terms"}:
            raise ValueError("format")
        rows = tuple(facts["reservations"])
        if not all(type(n) is int and n > 0 for n in rows) or type(facts["step"]) is not int or facts["step"] < 0:
            raise ValueError("rows")
        found = Checkpoint(str(folder), facts["ledger_id"], rows, facts["step"], Plan(**facts["plan"]), facts["terms"])
    except FileNotFoundError as error:
        what = "it does not say which reservation its steps were charged to, so its weights may hold data that nobody accounted for"
        raise FileFormatError(what, where=str(path), fix="Start from its weights as a new run, if its data need no protection") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"it is malformed ({type(error).__name__})", where=str(path), fix="Take another checkpoint") from error
    if found.ledger_id != ledger.ledger_id:
        raise AccountingError("its run was charged to another ledger", where=str(path), fix="Resume with that ledger")
    changed = [name for name, value in terms_of(promise).items() if found.terms.get(name, ...) != value]
    if changed:
        what = f"its run promised another {', '.join(changed)}"
        raise AccountingError(what, where=str(path), fix="Resume with the DP(...) it was started with")
    return found


def terms_of(promise: Promise) -> dict[str, Any]:
    """The promise as JSON values; an infinite ε is the text "inf"."""
    found = {name: getattr(promise, name) for name in _TERMS}
    return found | {"epsilon": "inf"} if found["epsilon"] == float("inf") else found
