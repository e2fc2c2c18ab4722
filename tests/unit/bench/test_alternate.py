"""Order, drop-outs, medians and computed rows of the side-by-side benchmark."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtensors.transport.shaped import Link
from tests.bench.peers.alternate import Tournament, fill, takes_part
from tests.bench.peers.contender import Sample, Summary, errors, over_link, summarize
from tests.bench.peers.environment import NotMeasured
from tests.unit.bench.fakes import Fake, request


@given(st.integers(1, 30), st.integers(0, 30))
def test_a_contender_takes_exactly_its_runs(turns: int, runs: int) -> None:
    runs = min(runs, turns)
    assert sum(takes_part(turn, runs, turns) for turn in range(turns)) == runs


def test_contenders_alternate_after_a_warm_up_on_the_same_inputs() -> None:
    order: list[tuple[str, int]] = []
    fast, slow = Fake("fast", runs=4), Fake("slow", runs=2)
    inputs = [request() for _ in range(5)]
    rows = Tournament([fast, slow], lambda name, turn, _turns: order.append((name, turn))).play(inputs, "loopback", 99)
    assert order[:2] == [("fast", -1), ("slow", -1)]
    assert [name for name, turn in order if turn >= 0] == ["fast", "fast", "slow", "fast", "fast", "slow"]
    assert [id(r) for r in fast.seen] == [id(r) for r in inputs]
    assert [id(r) for r in slow.seen] == [id(inputs[0]), id(inputs[2]), id(inputs[4])]
    assert [row.runs for row in rows] == [4, 2], "the warm-up is not counted"


def test_one_that_fails_drops_out_with_its_reason_and_the_others_go_on() -> None:
    good, bad = Fake("good"), Fake("bad", "spu", fails_at=1)
    tournament = Tournament([good, bad], lambda *_: None)
    rows = tournament.play([request()], "loopback", 99)
    assert rows[0].total_s == 1.0 and not rows[0].reason
    assert rows[1].reason == "it fell over" and rows[1].total_s is None
    assert bad.closed == 1
    assert [row.reason for row in tournament.play([request(8)], "loopback", 99)] == ["", "it fell over"], "it stays in the table"


def test_what_cannot_be_shaped_is_computed_and_says_so() -> None:
    shaped, unshaped = Fake("us"), Fake("SPU", "spu")
    unshaped.shapes = False
    tournament = Tournament([shaped, unshaped], lambda *_: None)
    rows = tournament.play([request()], "loopback", 99)
    rows += tournament.play([request()], "wan", 1)
    assert [(row.name, row.network) for row in rows] == [("us", "loopback"), ("SPU", "loopback"), ("us", "wan")]
    (computed,) = fill(rows, [shaped, unshaped], "wan")
    assert computed.computed and computed.network == "wan"
    assert computed.total_s == pytest.approx(1.0 + 100 * 0.020 + 8e6 / 100e6)
    assert computed.cpu_s is None and computed.error_max is None
    assert fill(rows, [shaped, unshaped], "loopback") == []


def test_nothing_is_computed_from_what_was_not_measured() -> None:
    failed = Summary("SPU", "spu", 32, "loopback", reason="no wheel")
    assert over_link(failed, "lan", Link(1e9, 0.001)).reason == "no wheel"
    silent = Summary("SPU", "spu", 32, "loopback", total_s=3.0)
    row = over_link(silent, "lan", Link(1e9, 0.001))
    assert row.total_s is None and "neither rounds nor bytes" in row.reason


def test_medians_but_the_largest_error_and_peak() -> None:
    samples = [Sample(t, t, e, e / 2, peak_mib=p) for t, e, p in ((1.0, 0.5, 10.0), (9.0, 0.1, 30.0), (2.0, 0.3, 20.0))]
    row = summarize("x", "us", 32, "loopback", samples)
    assert (row.total_s, row.error_max, row.peak_mib) == (2.0, 0.5, 30.0)
    assert row.error_mean == pytest.approx(0.15)
    assert row.rounds is None


def test_errors() -> None:
    reference = np.ones((1, 2, 2), dtype=np.float32)
    assert errors(reference + np.float32(0.5), reference) == (0.5, 0.5)
    assert errors(reference * np.nan, reference) == (float("inf"), float("inf"))
    with pytest.raises(NotMeasured, match="shape"):
        errors(reference[0], reference)
