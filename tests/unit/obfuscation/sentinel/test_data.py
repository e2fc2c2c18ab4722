"""Local data: every kind of file, and every way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from privtensors.errors import FileFormatError
from privtensors.obfuscation.sentinel.data import Example, labels_of, load_data, read_examples, split

EXPECTED = (Example("a film, to remember", "1"), Example('the "plot" was thin', "0"))
COLUMNS = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"
SENTENCES = (Example(("EU", "rejects"), ("B-ORG", "O")), Example(("Peter",), ("B-PER",)))


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'text,label,source\n"a film, to remember",1,x\n"the ""plot"" was thin",0,y\n'),
        ("a.csv", '\ufeffsentence,label\n"a film, to remember",1\n"the ""plot"" was thin",0\n'),
        ("a.json", json.dumps([{"text": one.text, "label": int(str(one.label))} for one in EXPECTED])),
        ("a.json", json.dumps({"data": [{"text": one.text, "label": one.label} for one in EXPECTED]})),
        ("a.jsonl", "\n".join(json.dumps({"text": one.text, "label": one.label}) for one in EXPECTED) + "\n\n"),
    ],
)
def test_texts(name: str, text: str, tmp_path: Path) -> None:
    assert read_examples(written(tmp_path / name, text), "classification") == EXPECTED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", COLUMNS),
        ("a.conll", COLUMNS.rstrip("\n")),
        ("a.jsonl", "\n".join(json.dumps({"tokens": one.text, "ner_tags": one.label}) for one in SENTENCES)),
    ],
)
def test_sentences(name: str, text: str, tmp_path: Path) -> None:
    assert read_examples(written(tmp_path / name, text), "ner") == SENTENCES


def test_a_folder_has_its_own_split(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", "text,label\na,x\n")
    written(tmp_path / "test.jsonl", '{"text": "b", "label": "y"}\n')
    found = load_data(tmp_path, "classification")
    assert found.train == (Example("a", "x"),) and found.evaluation == (Example("b", "y"),) and found.labels == ("x", "y")


def test_one_file_is_split_by_its_texts_in_whatever_order(tmp_path: Path) -> None:
    examples = [Example(f"text {number}", str(number % 12)) for number in range(500)]
    train, held_out = split(examples)
    assert set(split(examples[::-1])[1]) == set(held_out) and 25 < len(held_out) < 80 and len(train) + len(held_out) == 500
    assert labels_of(examples) == tuple(str(number) for number in range(12)), "numbers by value"
    twice = [Example("same", "a"), Example("same", "b")]
    assert {len(part) for part in split(twice)} == {0, 2}


@pytest.mark.parametrize(
    ("name", "text", "task", "match"),
    [
        ("a.csv", "body,label\nx,1\n", "classification", "example 1: no column text"),
        ("a.csv", "text,label\nx,\n", "classification", "example 1"),
        ("a.csv", "text,label\nx,1\n ,1\n", "classification", "example 2"),
        ("a.json", "[1]", "classification", "no list of objects"),
        ("a.json", "{", "classification", "JSONDecodeError"),
        ("a.jsonl", "[]", "classification", "no object"),
        ("a.jsonl", '{"text": "x", "label": ["y"]}', "classification", "example 1"),
        ("a.jsonl", '{"text": "x", "label": "y"}', "ner", "no lists"),
        ("a.jsonl", '{"tokens": ["x"], "ner_tags": []}', "ner", "equal length"),
        ("a.txt", "EU\n", "ner", "no tag"),
        ("a.txt", COLUMNS, "classification", "--task_name ner"),
        ("a.parquet", "", "classification", "not read"),
    ],
)
def test_malformed_files_are_refused_without_their_text(name: str, text: str, task: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=match):
        read_examples(written(tmp_path / name, text), task)


def test_missing_files_and_empty_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        load_data(tmp_path / "none.csv", "classification")
    with pytest.raises(FileFormatError, match="no file called train"):
        load_data(tmp_path, "classification")
    with pytest.raises(FileFormatError, match="example"):
        load_data(written(tmp_path / "one.csv", "text,label\nx,1\n"), "classification")
    written(tmp_path / "train.csv", "text,label\nx,1\n")
    written(tmp_path / "train.json", "[]")
    with pytest.raises(FileFormatError, match="several files"):
        load_data(tmp_path, "classification")
