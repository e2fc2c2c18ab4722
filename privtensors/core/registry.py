"""Backends, techniques, bridges and the default recorder, found by entry point. Built once, then frozen."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Final

from privtensors.errors import RegistryError, UnknownBackend, UnknownTechnique

BACKENDS: Final = "privtensors.backends"
TECHNIQUES: Final = "privtensors.techniques"
BRIDGES: Final = "privtensors.bridges"
RECORDERS: Final = "privtensors.recorders"


@dataclass(frozen=True, slots=True)
class Registry:
    """Entry points by group and name; a class is imported when it is first asked for."""

    groups: Mapping[str, Mapping[str, EntryPoint]]

    def names(self, group: str) -> tuple[str, ...]:
        """Registered names of ``group``, sorted."""
        return tuple(sorted(self.groups.get(group, {})))

    def load(self, group: str, name: str) -> Any:
        """Import what is registered as ``name``.

        Raises:
            RegistryError: The entry point cannot be imported.
        """
        entry = self.groups[group][name]
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise RegistryError(
                f"entry point {name!r} ({entry.value}) cannot be loaded: {error}",
                where=group,
                fix="reinstall the package that provides it",
            ) from error


@functools.cache
def registry() -> Registry:
    """The registry of this process.

    Raises:
        RegistryError: Two installed packages claim one name.
    """
    groups: dict[str, Mapping[str, EntryPoint]] = {}
    for group in (BACKENDS, TECHNIQUES, BRIDGES, RECORDERS):
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=group):
            other = found.get(entry.name)
            if other is not None and other.value != entry.value:
                raise RegistryError(
                    f"{entry.name!r} is claimed by {other.value} and {entry.value}", where=group, fix="uninstall one of the two packages"
                )
            found[entry.name] = entry
        groups[group] = MappingProxyType(found)
    return Registry(MappingProxyType(groups))


def backend_names() -> tuple[str, ...]:
    """Names of the installed backends."""
    return registry().names(BACKENDS)


def backend_class(name: str) -> Any:
    """Class of the backend registered as ``name``.

    Raises:
        UnknownBackend: None is.
    """
    if name not in registry().groups[BACKENDS]:
        raise UnknownBackend(
            f"no backend {name!r}", where="registry", fix=f"installed: {', '.join(backend_names()) or 'none; reinstall privtensors'}"
        )
    return registry().load(BACKENDS, name)


def technique_class(name: str) -> Any:
    """Dataclass of the technique registered as ``name``.

    Raises:
        UnknownTechnique: None is.
    """
    if name not in registry().groups[TECHNIQUES]:
        known = ", ".join(registry().names(TECHNIQUES)) or "none; reinstall privtensors"
        raise UnknownTechnique(f"no technique {name!r}", where="registry", fix=f"installed: {known}")
    return registry().load(TECHNIQUES, name)


@functools.cache
def bridges() -> Mapping[tuple[str, str], Any]:
    """Every registered bridge by (source backend, target backend)."""
    found: dict[tuple[str, str], Any] = {}
    for name in registry().names(BRIDGES):
        for bridge in registry().load(BRIDGES, name):
            key = (bridge.source, bridge.target)
            if key in found:
                raise RegistryError(f"two bridges from {key[0]} to {key[1]}", where=BRIDGES, fix="uninstall one of the two packages")
            found[key] = bridge
    return MappingProxyType(found)
