"""Model families by ``config.model_type``: one file each, holding a constant ``FAMILY``."""

from __future__ import annotations

import importlib
import pkgutil

from privtensors.errors import UnknownFamily
from privtensors.hf.families.base import Family

__all__ = ["Family", "family_of", "known_families"]


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
