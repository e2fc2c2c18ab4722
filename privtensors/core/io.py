"""Files of SafeTensors: real ``.safetensors`` files, one per party, with a versioned header. No pickle.

A save of a backend with one storing party is the file ``NAME.safetensors``; with more, each party's file is
``NAME.PARTY.safetensors``, so that no single file holds every share. The metadata of each file names the format, its
version, the backend, the technique's parameters, the party, a random id of the save, and per tensor its kind, dtype, shape
and owner. A SHA-256 covers every byte of the file.

The digest finds corruption and mixed-up files. It is **no authentication**: whoever can write the file can recompute it. A
party's file holds what that party may know (a share, or with ``clear`` the value itself); protect it as such.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors
from torch import Tensor

from privtensors.core.backend import TechniqueSpec
from privtensors.core.safetensor import SafeTensor, State
from privtensors.core.session import Session, current_session
from privtensors.errors import FileFormatError, InvalidInput, MixedBackends

FORMAT: Final = "privtensors"
VERSION: Final = "1"
SUFFIX: Final = ".safetensors"
_BLANK: Final = "0" * 64
_PARTY: Final = re.compile(r"[A-Za-z0-9_-]+")
_DIGEST: Final = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_PUBLIC: Final = ("format", "version", "backend", "technique", "parameters", "parties", "save_id", "tensors")


def save(path: str | os.PathLike[str], tensors: Mapping[str, SafeTensor]) -> tuple[Path, ...]:
    """Write SafeTensors of one backend, one file per storing party; nothing is revealed.

    Args:
        path: Where to; the suffix ``.safetensors`` is added when missing. Parent folders must exist.
        tensors: By name; every tensor held by the same backend object.

    Returns:
        The files written, mode 0600, each replaced atomically.

    Raises:
        InvalidInput: Nothing to save, or something that is not a SafeTensor.
        MixedBackends: Tensors of two backends.
        FileFormatError: The files cannot be written, or an older save of another layout is in the way.
    """
    backend, spec = _common_backend(tensors)
    described, stored, fields = _export(tensors, backend)
    parties = sorted(fields)
    if not parties or any(not _PARTY.fullmatch(p) for p in parties) or any(set(f) != set(tensors) for f in fields.values()):
        raise FileFormatError(
            f"backend {backend.name!r} exports tensors for parties {parties}, which are no file names or differ between tensors",
            where="save",
        )
    public = {
        "format": FORMAT,
        "version": VERSION,
        "backend": backend.name,
        "technique": spec.name,
        "parameters": _parameters(spec),
        "parties": json.dumps(parties),
        "save_id": secrets.token_hex(16),
        "tensors": json.dumps(described, sort_keys=True),
    }
    target = _with_suffix(path)
    if len(parties) > 1 and target.exists():
        raise FileFormatError("a save with a single file is in the way", where=str(target), fix="remove it, or save under another name")
    contents = {}
    for party in parties:
        header = {**public, "party": party, "fields": json.dumps(fields[party], sort_keys=True), "sha256": _BLANK}
        contents[_file_of(target, party, parties)] = _seal(stored.get(party), header)
    _write_all(contents)
    return tuple(contents)


def load(path: str | os.PathLike[str], technique: TechniqueSpec | str, *, session: Session | None = None) -> dict[str, SafeTensor]:
    """Read what :func:`save` wrote, into the backend of ``technique``.

    Args:
        path: The path given to :func:`save`.
        technique: The technique it was saved under, with the same parameters.
        session: Session to use; default the current one.

    Returns:
        SafeTensors by name, in the order they were saved under.

    Raises:
        FileFormatError: A file is missing, truncated, changed, of another format, version, backend or technique, or the
            parties' files come from different saves.
    """
    backend, spec = _backend_of(technique, session)
    target = _with_suffix(path)
    first_file = target if target.exists() else _any_party(target)
    first, _ = _read(first_file)
    for key, mine in (("backend", backend.name), ("technique", spec.name), ("parameters", _parameters(spec))):
        if first[key] != mine:
            raise FileFormatError(
                f"{key} is {first[key]}, asked for {mine}", where=str(first_file), fix="load it with the technique it was saved under"
            )
    parties = json.loads(first["parties"])
    parts: dict[str, tuple[_Held, dict[str, Any]]] = {}
    for party in parties:
        file = _file_of(target, party, parties)
        header, held = _read(file)
        if header["party"] != party:
            raise FileFormatError(
                f"holds the part of party {header['party']!r}, not {party!r}", where=str(file), fix="give the files their own names back"
            )
        changed = [key for key in _PUBLIC if header[key] != first[key]]
        if changed:
            raise FileFormatError(
                f"belongs to another save than {first_file.name} ({', '.join(changed)} differ)",
                where=str(file),
                fix="copy all parties' files of one save",
            )
        parts[party] = (held, json.loads(header["fields"]))
    out: dict[str, SafeTensor] = {}
    for name, facts in json.loads(first["tensors"]).items():
        payload = backend.restore(
            {party: (_pieces(name, facts["parts"][party], held, target), fields[name]) for party, (held, fields) in parts.items()}
        )
        found = [payload.kind, str(payload.dtype).removeprefix("torch."), list(payload.shape)]
        if found != [facts["kind"], facts["dtype"], facts["shape"]]:
            raise FileFormatError(
                f"tensor {name!r} is {found}, the header says {[facts['kind'], facts['dtype'], facts['shape']]}",
                where=str(target),
                fix="save it again",
            )
        out[name] = SafeTensor(State(payload, backend, facts["owner"]))
    return out


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Held:
    """What a party stores, without a text form: a traceback that prints locals must not print shares."""

    tensors: dict[str, Tensor]
    data: bytes = b""


def _export(
    tensors: Mapping[str, SafeTensor], backend: Any
) -> tuple[dict[str, Any], dict[str, _Held], dict[str, dict[str, Mapping[str, str]]]]:
    """Facts per tensor; per party its tensors under ``NAME/PART``; per party and tensor its text fields."""
    described: dict[str, Any] = {}
    stored: dict[str, _Held] = {}
    fields: dict[str, dict[str, Mapping[str, str]]] = {}
    for name, x in tensors.items():
        payload = x._state.current()
        parts = {party: (_Held(dict(values)), text) for party, (values, text) in backend.export(payload).items()}
        described[name] = {
            "kind": payload.kind,
            "dtype": str(payload.dtype).removeprefix("torch."),
            "shape": list(payload.shape),
            "owner": x.owner,
            "parts": {party: sorted(held.tensors) for party, (held, _) in sorted(parts.items())},
        }
        for party, (held, text) in parts.items():
            fields.setdefault(party, {})[name] = text
            mine = stored.setdefault(party, _Held({}))
            for part in held.tensors:
                if "/" in part:  # or tensor a, part b/c and tensor a/b, part c would share a key
                    raise FileFormatError(
                        f"backend {backend.name!r} exports a part named {part!r}", where="save", fix="part names hold no slash"
                    )
                mine.tensors[f"{name}/{part}"] = held.tensors[part].detach().clone(memory_format=torch.contiguous_format)
    return described, stored, fields


def _pieces(name: str, wanted: list[str], held: _Held, target: Path) -> dict[str, Tensor]:
    missing = [part for part in wanted if f"{name}/{part}" not in held.tensors]
    if missing:
        raise FileFormatError(
            f"parts {missing} of tensor {name!r} are in the header but not in the data", where=str(target), fix="save it again"
        )
    return {part: held.tensors[f"{name}/{part}"] for part in wanted}


def _common_backend(tensors: Mapping[str, SafeTensor]) -> tuple[Any, TechniqueSpec]:
    if not tensors:
        raise InvalidInput("there is nothing to save", where="save", fix="pass a mapping of names to SafeTensors")
    backends = []
    for name, x in tensors.items():
        if not isinstance(x, SafeTensor):
            raise InvalidInput(
                f"{name!r} is a {type(x).__name__}, not a SafeTensor",
                where="save",
                fix="protect it, or write plain tensors with safetensors.torch.save_file",
            )
        backends.append(x._state.backend)
    for other in backends[1:]:
        if other is not backends[0]:
            raise MixedBackends(
                f"tensors of backends {backends[0].name!r} and {other.name!r}",
                where="save",
                fix="save each backend's and each session's tensors on their own",
            )
    spec = getattr(backends[0], "technique", None)
    if not isinstance(spec, TechniqueSpec):
        raise FileFormatError(
            f"backend {backends[0].name!r} does not keep its technique", where="save", fix="store it as attribute 'technique'"
        )
    return backends[0], spec


def _backend_of(technique: TechniqueSpec | str, session: Session | None) -> tuple[Any, TechniqueSpec]:
    backend: Any = (session or current_session()).backend(technique)
    return backend, backend.technique


def _parameters(spec: TechniqueSpec) -> str:
    fields: dict[str, Any] = dataclasses.asdict(spec) if dataclasses.is_dataclass(spec) and not isinstance(spec, type) else {}
    return json.dumps(fields, sort_keys=True, default=str)


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    return target if target.name.endswith(SUFFIX) else target.with_name(target.name + SUFFIX)


def _file_of(target: Path, party: str, parties: list[str]) -> Path:
    return target if len(parties) == 1 else target.with_name(f"{target.name.removesuffix(SUFFIX)}.{party}{SUFFIX}")


def _any_party(target: Path) -> Path:
    stem = target.name.removesuffix(SUFFIX)
    pattern = re.compile(re.escape(stem) + r"\.[A-Za-z0-9_-]+" + re.escape(SUFFIX))
    found = sorted(p for p in target.parent.glob("*" + SUFFIX) if pattern.fullmatch(p.name)) if target.parent.is_dir() else []
    if not found:
        raise FileFormatError(
            f"no file {target.name}, nor {stem}.PARTY{SUFFIX}",
            where=str(target.parent),
            fix="check the path; privtensors.save prints what it wrote",
        )
    return found[0]


def _seal(held: _Held | None, header: dict[str, str]) -> _Held:
    """The file's bytes, with their SHA-256, taken with 64 zeros in its place, in the header."""
    file = _Held({}, _save_tensors(held.tensors if held else {}, header))
    start = _digest_at(file, "new file")
    return _Held({}, file.data[:start] + hashlib.sha256(file.data).hexdigest().encode() + file.data[start + 64 :])


def _digest_at(file: _Held, where: str) -> int:
    end = 8 + int.from_bytes(file.data[:8], "little")
    found = _DIGEST.search(file.data, 8, min(end, len(file.data)))
    if len(file.data) < 8 or end > len(file.data) or found is None:
        raise FileFormatError("truncated, or not a file of privtensors", where=where, fix="copy the file again, or save it again")
    return found.start(1)


def _read(path: Path) -> tuple[dict[str, str], _Held]:
    try:
        file = _Held({}, path.read_bytes())
    except OSError as error:
        raise FileFormatError(
            f"cannot be read: {error.strerror}", where=str(path), fix="check the path; every party's file is needed"
        ) from None
    start = _digest_at(file, str(path))
    claimed = file.data[start : start + 64].decode()
    actual = hashlib.sha256(file.data[:start] + _BLANK.encode() + file.data[start + 64 :]).hexdigest()
    if not secrets.compare_digest(claimed, actual):
        raise FileFormatError(
            "the SHA-256 does not match: the file was changed or damaged", where=str(path), fix="copy the file again, or save it again"
        )
    try:
        header = json.loads(file.data[8 : 8 + int.from_bytes(file.data[:8], "little")])["__metadata__"]
        held = _Held(_load_tensors(file.data))
    except (ValueError, KeyError, SafetensorError) as error:
        raise FileFormatError(f"not a readable safetensors file: {error}", where=str(path), fix="save it again") from None
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise FileFormatError(
            f"format {header.get('format')!r} version {header.get('version')!r}; this release reads {FORMAT!r} version {VERSION!r}",
            where=str(path),
            fix="install the release that wrote it",
        )
    missing = [key for key in (*_PUBLIC, "party", "fields") if key not in header]
    if missing:
        raise FileFormatError(f"the header lacks {', '.join(missing)}", where=str(path), fix="save it again")
    return header, held


def _write_all(contents: Mapping[Path, _Held]) -> None:
    """Write every file beside its place first and rename at the end; an interrupted save is found by its save id."""
    written: dict[Path, Path] = {}
    try:
        for target, held in contents.items():
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")  # mode 0600
            written[target] = Path(name)
            with os.fdopen(handle, "wb") as out:
                out.write(held.data)
                out.flush()
                os.fsync(out.fileno())
        for target, temporary in written.items():
            temporary.replace(target)
    except OSError as error:
        place = next(iter(contents)).parent
        raise FileFormatError(
            f"cannot be written: {error.strerror}", where=str(place), fix="check that the folder exists and has room"
        ) from None
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
