"""Policy files: TOML in, TOML out. Every mistake names the file, the key and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_type_hints

from privtensors.errors import ParameterError, PolicyFileError, UnknownTechnique
from privtensors.policy.assets import Outputs
from privtensors.policy.phases import Stage
from privtensors.policy.technique import Technique, required
from privtensors.policy.values import describe, fits

VERSION: Final = 1
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Document:
    """What a policy file says, before it is checked as a policy."""

    train: tuple[Technique, ...]
    infer: tuple[Technique, ...]
    release: tuple[Technique, ...]
    receiver: str
    outputs: Literal["full", "argmax"]


def load(source: str | Path, *, resolve: Callable[[str], type[Technique]], names: Callable[[], tuple[str, ...]]) -> Document:
    """Read ``source``: a path, or the text itself where it is a string with a line break or an equals sign.

    Raises:
        PolicyFileError: It cannot be read or is malformed.
    """
    if isinstance(source, str) and ("\n" in source or "=" in source):
        where, text = "policy text", source
    else:
        where, text = str(source), _read(Path(source))
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyFileError(f"not valid TOML: {error}", where=where, fix="Correct the file at that line") from error
    # The table [deployment] says where parties run, not what they may see: privtensors.deploy reads it from the same file.
    allowed = ["version", "receiver", "outputs", *(str(s) for s in Stage), "deployment"]
    for key in data:
        if key not in allowed:
            raise PolicyFileError(f"unknown key {key!r}", where=where, fix=f"Allowed: {', '.join(allowed)}")
    version = data.get("version")
    if version is None:
        raise PolicyFileError("key 'version' is missing", where=where, fix=f"Add version = {VERSION}")
    if type(version) is not int or version != VERSION:
        raise PolicyFileError(f"version {version!r} is not supported", where=f"{where}: version", fix=f"Allowed: {VERSION}")
    receiver = data.get("receiver", "client")
    if not isinstance(receiver, str):
        raise PolicyFileError("must be a string", where=f"{where}: receiver", fix='Allowed: a party\'s name, e.g. "client"')
    outputs = data.get("outputs", str(Outputs.FULL))
    if outputs not in tuple(Outputs):
        allowed_values = ", ".join(f'"{o}"' for o in Outputs)
        raise PolicyFileError("must say how much of the outputs is revealed", where=f"{where}: outputs", fix=f"Allowed: {allowed_values}")
    stages = {stage: _stage(where, stage, data.get(stage, []), resolve, names) for stage in Stage}
    return Document(stages[Stage.TRAIN], stages[Stage.INFER], stages[Stage.RELEASE], receiver, outputs)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise PolicyFileError("is larger than 1 MiB", where=str(path), fix="Give the path of a policy file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyFileError(f"cannot be read: {error.strerror}", where=str(path), fix="Give the path of a policy file") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise PolicyFileError("is not a UTF-8 text file", where=str(path), fix="Give the path of a policy file") from error


def _stage(
    where: str, stage: Stage, entries: Any, resolve: Callable[[str], type[Technique]], names: Callable[[], tuple[str, ...]]
) -> tuple[Technique, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        fix = f'Write [[{stage}]] and technique = "NAME" below it'
        raise PolicyFileError("must be an array of tables", where=f"{where}: {stage}", fix=fix)
    return tuple(_technique(f"{where}: [[{stage}]] {n}", dict(e), resolve, names) for n, e in enumerate(entries, 1))


def _technique(
    where: str, entry: dict[str, Any], resolve: Callable[[str], type[Technique]], names: Callable[[], tuple[str, ...]]
) -> Technique:
    name = entry.pop("technique", None)
    if not isinstance(name, str):
        problem = "key 'technique' is missing" if name is None else "key 'technique' must be a string"
        raise PolicyFileError(problem, where=where, fix=f"Allowed: {', '.join(names())}")
    try:
        cls = resolve(name)
    except UnknownTechnique as error:
        raise PolicyFileError(f"unknown technique {name!r}", where=where, fix=f"Allowed: {', '.join(names())}") from error
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values: dict[str, Any] = {}
    for key, raw in entry.items():
        if key not in fields:
            allowed = ", ".join(["technique", *fields])
            raise PolicyFileError(f"unknown key {key!r} of technique {name!r}", where=where, fix=f"Allowed: {allowed}")
        values[key] = _tuples(raw)
        if not fits(hints[key], values[key]):
            raise PolicyFileError(
                f"wrong type or value of {key!r}: {type(raw).__name__} given", where=where, fix=f"Allowed: {describe(hints[key])}"
            )
    for key in required(cls):
        if key not in values:
            raise PolicyFileError(f"key {key!r} of technique {name!r} is missing", where=where, fix=f"Allowed: {describe(hints[key])}")
    try:
        return cls(**values)
    except ParameterError as error:
        raise PolicyFileError(f"{error.where}: {error.what}", where=where, fix=error.fix) from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def dump(stages: Mapping[Stage, Sequence[Technique]], receiver: str, outputs: str = Outputs.FULL) -> str:
    """The text of a policy file, every parameter written out.

    Raises:
        PolicyFileError: A parameter has no TOML form, or is secret (declared ``repr=False``).
    """
    lines = [f"version = {VERSION}", f"receiver = {_value(receiver, 'receiver')}", f"outputs = {_value(str(outputs), 'outputs')}"]
    for stage, techniques in stages.items():
        for technique in techniques:
            lines += ["", f"[[{stage}]]", f"technique = {_value(technique.name, 'technique')}"]
            for f in dataclasses.fields(technique):
                value, where = getattr(technique, f.name), f"{type(technique).__name__}.{f.name}"
                if value is None or not f.init:
                    continue  # TOML has no null: an absent key means the default
                if not f.repr:
                    raise PolicyFileError("is secret and is not written to a policy file", where=where, fix="Pass it in code")
                lines.append(f"{f.name} = {_value(value, where)}")
    return "\n".join(lines) + "\n"


def _value(value: object, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(v, where) for v in value) + "]"
    raise PolicyFileError(f"{type(value).__name__} has no TOML form", where=where, fix="Use numbers, strings, true/false or lists of them")
