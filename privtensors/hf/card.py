"""What a private model leaves on disk: the client's own tables, the policy, and the privacy card."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from privtensors.core.safetensor import SafeTensor
from privtensors.errors import InvalidInput

if TYPE_CHECKING:
    from privtensors.hf.model import PrivateModel
    from privtensors.policy import Explanation, Policy
    from privtensors.train.result import FitResult


def privacy_card(private: PrivateModel) -> dict[str, Any]:
    """Facts about a private model as JSON values: policy, who sees what, spent so far, ledger head, versions."""
    runs = getattr(private, "runs", ())  # only what was trained has any
    return card_of(private.model, private.family.model_type, private.policy, private.explain(), private.session.recorder, runs)


def card_of(
    model: object, family: str, policy: Policy, explanation: Explanation, recorder: object, runs: Sequence[FitResult] = ()
) -> dict[str, Any]:
    """The card of ``model`` under ``policy``: see :func:`privacy_card`."""
    head = getattr(recorder, "head", None)  # only a ledger has one
    return {
        "format": 1,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"class": type(model).__name__, "family": family},
        "policy": policy.to_toml(),
        "explain": explanation.to_dict(),
        "training": [run.to_dict() for run in runs],
        "ledger_head": str(head()) if callable(head) else None,
        "versions": {name: _version(name) for name in ("privtensors", "torch", "transformers")} | {"python": platform.python_version()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save_client(private: PrivateModel, folder: Path, *, party: str) -> None:
    """See ``PrivateModel.save_pretrained``."""
    from safetensors.torch import save_file

    if party != "client":
        raise InvalidInput(
            f"a private model holds nothing of {party!r} in plain",
            where="save_pretrained(party=...)",
            fix="the server's weights are in the model that was wrapped: call its own save_pretrained at the server",
        )
    if folder.is_file():
        raise InvalidInput("there is a file of that name", where=f"save_pretrained({str(folder)!r})", fix="give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    private.config.save_pretrained(folder)
    tables: dict[str, Tensor] = {}
    for name, parameter in private.model.named_parameters(remove_duplicate=False):
        if not isinstance(parameter, SafeTensor):
            tables[name] = parameter.detach().contiguous()
    if tables:
        save_file(tables, folder / "embeddings.safetensors", metadata={"format": "pt", "owner": "client"})
    save_card(private, folder)


def save_card(private: PrivateModel, folder: Path) -> None:
    """Write ``policy.toml`` and ``privacy_card.json`` into ``folder``."""
    write_card(private.policy, privacy_card(private), folder)


def write_card(policy: Policy, facts: Mapping[str, Any], folder: Path) -> None:
    """Write a policy and a card into ``folder``."""
    (folder / "policy.toml").write_text(policy.to_toml(), encoding="utf-8")
    card = json.dumps(facts, indent=2, ensure_ascii=False)
    (folder / "privacy_card.json").write_text(card + "\n", encoding="utf-8")
