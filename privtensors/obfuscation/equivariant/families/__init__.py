"""Model families by ``config.model_type``: one file each, holding a constant ``FAMILY``."""

from __future__ import annotations

import importlib
import pkgutil

from privtensors.errors import UnknownFamily
from privtensors.obfuscation.equivariant.families.base import Axes, Basis, Family, Head

__all__ = ["Axes", "Basis", "Family", "Head", "family_of", "known_families"]


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
            f"model type {model_type!r} has no equivariant transform",
            where="equivariant",
            fix=f"Known: {', '.join(known)}. To add one, write obfuscation/equivariant/families/<model_type>.py with a constant FAMILY",
        )
    family = importlib.import_module(f"{__name__}.{model_type}").FAMILY
    assert isinstance(family, Family)
    return family
