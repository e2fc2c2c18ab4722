"""Local data to fine-tune on: texts with labels from CSV, JSON or JSON lines, sentences with tags from CoNLL columns."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from privtensors.errors import FileFormatError

TASKS: Final = ("classification", "ner")
_TEXT_NAMES: Final = ("text", "sentence", "review", "tokens")
_LABEL_NAMES: Final = ("label", "labels", "ner_tags", "tags")
_TRAIN: Final = ("train",)
_EVAL: Final = ("validation", "valid", "dev", "eval", "test")
_HELD_OUT: Final = 10  # one of so many, where a single file has to give both splits
_MARK: Final = "-DOCSTART-"


@dataclass(frozen=True, slots=True)
class Example:
    """One text with its label, or one sentence in words with a tag for each.

    Attributes:
        text: The text, or the words.
        label: The label, or as many tags.
    """

    text: str | tuple[str, ...]
    label: str | tuple[str, ...]


@dataclass(frozen=True)
class LocalData:
    """What to train on, what to judge by, and the names of all labels or tags, sorted.

    Attributes:
        train: Training examples.
        evaluation: Held-out examples.
        labels: Every label or tag of either.
    """

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    labels: tuple[str, ...]


def load_data(path: str | Path, task: str) -> LocalData:
    """Read a file, or a folder with files called train and validation, valid, dev, eval or test.

    Of a single file, one example in ten is held out: by SHA-256 of its text, so the same file gives the same split.

    Args:
        path: ``.csv``, ``.json`` (a list of objects, or an object with such a list under "data"), ``.jsonl``, or ``.txt`` and ``.conll``
            with one word per line, its tag in the last column and an empty line between sentences.
        task: ``"classification"`` or ``"ner"``.

    Raises:
        FileFormatError: There is no such file, a column is missing, a row is malformed, or a split is empty.
    """
    path = Path(path)
    if path.is_dir():
        train = read_examples(_one_of(path, _TRAIN), task)
        evaluation = read_examples(_one_of(path, _EVAL), task)
    else:
        train, evaluation = split(read_examples(path, task))
    for name, found in (("training", train), ("evaluation", evaluation)):
        if not found:
            raise FileFormatError(f"no {name} example", where=str(path), fix="Give more rows, or a folder with train and validation files")
    return LocalData(train, evaluation, labels_of((*train, *evaluation)))


def labels_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """Every label or tag, sorted; numbers by value."""
    names = {name for one in examples for name in ((one.label,) if isinstance(one.label, str) else one.label)}
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)))


def split(examples: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Training and held-out examples; equal texts are in one part, and the same examples give the same parts in any order."""

    def held_out(one: Example) -> bool:
        text = one.text if isinstance(one.text, str) else "\0".join(one.text)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % _HELD_OUT == 0

    return tuple(one for one in examples if not held_out(one)), tuple(one for one in examples if held_out(one))


def read_examples(path: Path, task: str) -> tuple[Example, ...]:
    """Every example of one file; see :func:`load_data`.

    Raises:
        FileFormatError: As :func:`load_data`.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(f"files of the kind {path.suffix!r} are not read", where=str(path), fix=f"Known are {', '.join(_READERS)}")
    columns = path.suffix.lower() in _COLUMNS
    if columns and task != "ner":
        raise FileFormatError("columns hold words with tags, no texts with labels", where=str(path), fix="Give --task_name ner")
    found: list[Example] = []
    read = False
    try:
        rows = list(reader(path))
        read = True
        for row in rows:
            found.append(_example(row, task))
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, ValueError, KeyError, TypeError) as error:
        detail = str(error) if isinstance(error, _Malformed | OSError) else type(error).__name__
        raise FileFormatError(f"example {len(found) + 1}: {detail}" if read else detail, where=str(path), fix=_FIX[task]) from None
    return tuple(found)


class _Malformed(ValueError):
    """A row that is not as it must be; the message never repeats a text."""


_FIX: Final[Mapping[str, str]] = MappingProxyType(
    {
        "classification": f"Name the columns {_TEXT_NAMES[0]} and {_LABEL_NAMES[0]}",
        "ner": "Give one word per line with its tag in the last column, or JSON rows with lists 'tokens' and 'ner_tags' of equal length",
    }
)


def _example(row: Mapping[str, Any], task: str) -> Example:
    text, label = _field(row, _TEXT_NAMES), _field(row, _LABEL_NAMES)
    if task == "ner":
        if not isinstance(text, list) or not isinstance(label, list) or len(text) != len(label):
            raise _Malformed("tokens and tags are no lists of equal length")
        return Example(tuple(str(word) for word in text), tuple(str(tag) for tag in label))
    if not isinstance(text, str) or not text.strip() or isinstance(label, list | dict | None) or str(label) == "":
        raise _Malformed("an empty text or no label")
    return Example(text, str(label))


def _field(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise _Malformed(f"no column {' or '.join(names)}")


def _read_csv(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _read_json(path: Path) -> Iterable[Mapping[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _Malformed("no list of objects")
    yield from rows


def _read_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise _Malformed("a line is no object")
                yield row


def _read_columns(path: Path) -> Iterable[Mapping[str, Any]]:
    words: list[str] = []
    tags: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in [*file, ""]:
            columns = line.split()
            if columns and columns[0] != _MARK:
                if len(columns) < 2:
                    raise _Malformed("a line with a word and no tag")
                words.append(columns[0])
                tags.append(columns[-1])
            elif words:
                yield {"tokens": words, "tags": tags}
                words, tags = [], []


_COLUMNS: Final = (".txt", ".conll")
_READERS: Final[Mapping[str, Callable[[Path], Iterable[Mapping[str, Any]]]]] = MappingProxyType(
    {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_lines, ".txt": _read_columns, ".conll": _read_columns}
)


def _one_of(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        found = [path for path in sorted(folder.iterdir()) if path.stem == name and path.suffix.lower() in _READERS]
        if len(found) > 1:
            raise FileFormatError(f"several files called {name}", where=str(folder), fix="Keep one")
        if found:
            return found[0]
    raise FileFormatError(f"no file called {' or '.join(names)}", where=str(folder), fix=f"Known kinds are {', '.join(_READERS)}")
