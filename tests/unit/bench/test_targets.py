"""Ratios, verdicts and tables of the benchmark, and its command line."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import mpc
from tests.bench.peers.contender import Summary
from tests.bench.peers.tables import comparison, verdicts
from tests.bench.peers.targets import at_least, at_most, faster, judge
from tests.unit.bench.fakes import Fake, FakePlain

US = Summary(
    *("us", "us", 32, "loopback", 7),
    total_s=0.4,
    online_s=0.25,
    rounds=211,
    bytes_sent=19e6,
    dealer_bytes=94e6,
    error_max=0.003,
    error_mean=0.0004,
    peak_mib=1000.0,
)
SPU = Summary("SPU SEMI2K", "spu", 32, "loopback", 2, total_s=10.0)


def printed(table: object) -> str:
    out = StringIO()
    Console(file=out, width=220).print(table)
    return out.getvalue()


def test_margins() -> None:
    assert at_most(0.4, 0.5) == (True, "met, 20 % to spare")
    assert at_most(0.6, 0.5) == (False, "missed by 20 %")
    assert at_least(25, 20) == (True, "met, 25 % more")
    assert at_least(15, 20) == (False, "missed by 25 %")


def test_ratio_is_of_measured_totals_at_the_same_length_and_network() -> None:
    assert faster(US, SPU) == 25.0
    assert faster(US, replace(SPU, computed=True)) is None
    assert faster(US, replace(SPU, total_s=None, reason="no wheel")) is None
    with pytest.raises(ValueError, match="same length"):
        faster(US, replace(SPU, tokens=128))


def test_verdicts_of_one_length() -> None:
    plain = Summary("plain", "plain", 32, "loopback", 7, total_s=0.01, peak_mib=400.0)
    missing = Summary("CrypTen", "crypten", 32, "loopback", reason="no network")
    found = {v.what: v for v in judge(US, [plain, SPU, missing])}
    assert found["total"].met and "stretch 0.35 s missed by 14 %" in found["total"].margin
    assert not found["online"].met and found["online"].margin == "missed by 25 %"
    assert found["rounds"].met and found["sent by a party"].got == "19 MB"
    assert found["faster than SPU SEMI2K"].got == "25.0 x" and found["faster than SPU SEMI2K"].met
    assert not found["faster than CrypTen"].met and found["faster than CrypTen"].margin == "no network"
    assert found["peak memory over plain's process"].got == "2.5 x"
    assert len(found) == 10, "the limits of the other length do not apply"


def test_table_shows_ratios_reasons_and_what_was_computed() -> None:
    text = printed(comparison([US, SPU, replace(SPU, name="CrypTen", reason="no [network]", total_s=None)], "us"))
    assert "25.0 x faster" in text and "not measured: no [network]" in text and "32 tokens, no simulated network" in text
    slower = replace(SPU, total_s=0.1)
    assert "4.0 x slower" in printed(comparison([US, slower], "us"))
    computed = printed(comparison([replace(US, network="wan"), replace(SPU, network="wan", computed=True)], "us"))
    assert "(computed, not measured)" in computed and "faster" not in computed and "100 Mbit/s, 40 ms" in computed
    assert "4.3e+09" in printed(comparison([replace(US, error_max=4.3e9)], "us"))
    assert "missed by 25 %" in printed(verdicts(judge(US, []), "us"))


def test_further_inputs_decide_the_error_targets() -> None:
    accuracy = [{"name": "us", "tokens": 128, "largest": 9.0, "mean": 9.0}, {"name": "us", "tokens": 32, "largest": 0.03, "mean": 0.001}]
    row = mpc.with_errors(US, accuracy)
    assert (row.error_max, row.error_mean, row.total_s) == (0.03, 0.001, US.total_s)
    assert mpc.with_errors(US, [{"name": "us", "tokens": 32, "reason": "it fell over"}]) == US


@pytest.fixture
def arena(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """The command line with fakes in everybody's place, all answering at once."""
    fakes = {"plain": Fake("plain", "plain", seconds=0.1), "us": Fake("us", seconds=1.0), "spu": Fake("SPU", "spu", seconds=30.0)}
    monkeypatch.setattr(mpc, "PlainModel", FakePlain)
    monkeypatch.setattr(mpc, "own", lambda *_: fakes["plain"])
    monkeypatch.setattr(mpc, "ours", lambda _setting: [fakes["us"]])
    monkeypatch.setattr(mpc, "PEERS", {"spu": lambda _setting: [fakes["spu"]]})
    monkeypatch.setattr(mpc, "keep_to", lambda _cores: None)
    return fakes


def test_whole_run(arena: dict[str, Fake], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "numbers.json"
    mpc.main(["--tokens", "32", "--runs", "2", "--vs", "spu", "--network", "loopback,lan", "--error-runs", "5", "--json", str(file)])
    out = capsys.readouterr().out
    assert "30.0 x" in out and "simulated LAN" in out and "over 5 inputs" in out
    stated = json.loads(file.read_text())
    assert [(row["name"], row["network"]) for row in stated["rows"]] == [
        (n, k) for k in ("loopback", "lan") for n in ("plain", "us", "SPU")
    ]
    assert stated["errors"] == [{"name": "us", "tokens": 32, "inputs": 5, "largest": 0.01, "mean": pytest.approx(0.001)}]
    assert all(fake.closed for fake in arena.values())
    assert {request.network for request in arena["us"].seen[:6]} == {"loopback", "lan"}


def test_a_peer_that_cannot_be_set_up_is_in_the_table_and_in_the_exit_code(
    arena: dict[str, Fake], capsys: pytest.CaptureFixture[str]
) -> None:
    arena["spu"].broken = "setting it up failed: no wheel"
    with pytest.raises(SystemExit) as end:
        mpc.main(["--tokens", "32", "--runs", "1", "--vs", "spu", "--network", "loopback,wan"])
    assert end.value.code == 1
    assert capsys.readouterr().out.count("not measured: setting it up failed: no wheel") == 2
    assert arena["us"].seen and not arena["spu"].seen


def test_our_own_failure_is_not_passed_over(arena: dict[str, Fake], capsys: pytest.CaptureFixture[str]) -> None:
    arena["us"].fails_at = 3  # the warm-up, one counted run, one of the further inputs
    with pytest.raises(SystemExit) as end:
        mpc.main(["--tokens", "32", "--runs", "1", "--error-runs", "5"])
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert "us: errors over 5 inputs of 32 tokens: not measured: it fell over" in out and "Targets, for us" in out


@pytest.mark.parametrize(
    "arguments", [["--vs", "sigma"], ["--network", "moon"], ["--peer-runs", "spu=0"], ["--peer-runs", "spu"], ["--tokens", "x"]]
)
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        mpc.main(arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err
