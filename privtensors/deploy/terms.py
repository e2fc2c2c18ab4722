"""What the parties agree on before anything is sent: a short text or digest per subject, compared with their greetings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from privtensors.backends.mpc.protocols.activation import arithmetic_digest
from privtensors.deploy.config import Deployment
from privtensors.deploy.parts import family_in
from privtensors.errors import VersionMismatch
from privtensors.hf.prepare import client_modules
from privtensors.transport.frames import VERSION

RELEASE: Final = "release"
WIRE_FORMAT: Final = "wire format"
POLICY: Final = "policy"
TASK: Final = "task"
CONFIGURATION: Final = "model configuration"
LAYOUT: Final = "model layout"
ARITHMETIC: Final = "arithmetic on opened values"
TABLES: Final = "values of the client's tables"

# A mismatch often brings those below it along (another policy, another layout), so the first one that differs is the one to mend.
_MEND: Final[Mapping[str, str]] = MappingProxyType(
    {
        RELEASE: "install the same release at every party",
        WIRE_FORMAT: "install the same release at every party",
        POLICY: "give every party the same policy file; its addresses, folders and limits may differ",
        TASK: "write the same deployment.task into every party's policy file",
        CONFIGURATION: "give every party the config.json of the server's model",
        LAYOUT: "give every party the config.json of the server's model",
        ARITHMETIC: "report it with both hosts' processors and torch versions; until then run both parties on hosts of one kind",
        TABLES: "the client's folder is of another checkpoint: give it what save_pretrained of the wrapped server's model writes",
    }
)

# What a config says about where it came from, not about the computation.
_PROVENANCE: Final = frozenset(
    {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation_internal"}
)


def terms_of(deployment: Deployment, model: Any) -> dict[str, str]:
    """What all parties must agree on. It covers the configuration and every parameter's name, shape, sharing and owner; no value."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _PROVENANCE}
    return {
        RELEASE: version("privtensors"),
        WIRE_FORMAT: str(VERSION),
        POLICY: _digest(deployment.policy.to_toml()),
        TASK: f"{deployment.task}, {type(model).__name__}",
        CONFIGURATION: _digest(json.dumps(config, sort_keys=True, default=str)),
        LAYOUT: _digest(json.dumps(_layout(model, client_modules(model, family_in(deployment, model))))),
    }


def computing_terms(deployment: Deployment, model: Any, device: torch.device | None) -> dict[str, str]:
    """What client and server must agree on besides, which the dealer has no use for.

    The values of the tables that the client holds, and how their devices (None: the CPU) round what both compute from opened values.
    """
    tables = _tables(client_modules(model, family_in(deployment, model)))
    return terms_of(deployment, model) | {ARITHMETIC: arithmetic_digest(device), TABLES: tables}


def mended(error: VersionMismatch) -> VersionMismatch:
    """The error with what to do about the first of the terms that differ."""
    fix = next((fix for term, fix in _MEND.items() if term in error.terms), error.fix)
    return VersionMismatch(error.what, where=error.where, fix=fix, terms=error.terms)


def _tables(fronts: Mapping[str, nn.Module]) -> str:
    """SHA-256 over names, dtypes, shapes and values of the client's parameters and stored buffers, in the order of their names.

    Per tensor: the length of a JSON header as 8 bytes, little endian; the header; the elements in row-major order, little endian.
    """
    state: dict[str, Tensor] = {f"{name}.{inner}": t for name, front in fronts.items() for inner, t in front.state_dict().items()}
    check = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        array = tensor.cpu().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        header = json.dumps([name, little.dtype.str, list(tensor.shape)]).encode()
        check.update(len(header).to_bytes(8, "little") + header)
        check.update(little.reshape(-1).view("u1").data)
    return check.hexdigest()


def _layout(model: nn.Module, fronts: Mapping[str, nn.Module]) -> list[list[Any]]:
    clients = {id(m) for front in fronts.values() for m in front.modules()}
    numbers: dict[tuple[bool, int], int] = {}
    rows: list[list[Any]] = []
    for where, module in model.named_modules():
        for name, p in module._parameters.items():
            if p is not None:
                front = id(module) in clients
                number = numbers.setdefault((front, id(p)), len(numbers))
                rows.append([where, name, list(p.shape), "client" if front else "server", number])
    return rows


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
