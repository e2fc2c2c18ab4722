"""Model families by ``config.model_type``: one file each, holding a constant ``FAMILY``."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from privtensors.errors import PolicyError, UnknownFamily
from privtensors.hf.families.base import Family

__all__ = ["Family", "family_for", "family_of", "known_families"]


def known_families() -> tuple[str, ...]:
    """``model_type`` of every known family, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"))


def family_of(model_type: str) -> Family:
    """The family registered for ``model_type``.

    Raises:
        UnknownFamily: There is none.
    """
    known = known_families()
    if model_type not in known:  # also keeps a config from naming some other module
        raise UnknownFamily(
            f"model type {model_type!r} is not known",
            where="wrap",
            fix=f"Known: {', '.join(known)}. To add one, write privtensors/hf/families/<model_type>.py with a constant FAMILY"
            " that names the submodules the client holds; see docs/guides/huggingface.md",
        )
    family = importlib.import_module(f"{__name__}.{model_type}").FAMILY
    assert isinstance(family, Family)
    return family


def family_for(model_type: str, technique: object) -> Family:
    """The family of ``model_type`` as ``technique`` lays it out: under ``MPC(embeddings="server")`` the client holds no submodule.

    Raises:
        UnknownFamily: As :func:`family_of`.
        PolicyError: The server shall hold embedding tables, and the family has none.
    """
    family = family_of(model_type)
    if getattr(technique, "embeddings", "client") != "server":
        return family
    if not family.vocabulary:
        raise PolicyError(
            f"a {model_type} model takes pixels, which the client shares; it has no embedding tables for the server to hold",
            where="wrap, policy.infer",
            fix='use MPC(embeddings="client"), the default',
        )
    return replace(family, client=(), tables=family.client)
