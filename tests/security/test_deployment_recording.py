"""Who really saw what: the bytes that crossed between client, server and dealer, against what ``explain()`` says."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.backends.mpc.correlations import PartyCorrelations
from privtensors.backends.mpc.dealer import Mask
from privtensors.backends.mpc.program import Program
from privtensors.deploy import connect
from privtensors.deploy.links import SEED_SIZE
from privtensors.policy.assets import Asset
from privtensors.policy.forms import Nothing, Plaintext
from privtensors.transport.frames import Kind
from tests.security.proxy import Link
from tests.security.recording import LABELS, Recorded, Request, record
from tests.unit.backends.mpc.uniformity import REJECT, Finding, findings, p_values, skew
from tests.unit.deploy.places import memory_session, running, write_deployment
from tests.unit.hf.tiny import build

MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
IDS = torch.randint(30, 100, (2, 12), generator=torch.Generator().manual_seed(5)) * MASK


def given(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": MASK}


INPUTS = [given(IDS), given(torch.full((2, 12), 40) * MASK), given(IDS)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("first"), INPUTS, pytest.MonkeyPatch())


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    model = build("bert")
    with torch.no_grad():
        for p in model.bert.encoder.parameters():
            p.mul_(0.5).add_(0.01)
    return record(tmp_path_factory.mktemp("second"), INPUTS[:1], pytest.MonkeyPatch(), model=model)


def mixed(*runs: Recorded) -> list[Request]:
    return [request for run in runs for request in (run.setup, *run.requests)]


# (receiver, sender, kind, label) -> what it carries, and where explain() has a row for it.
CARRIES: dict[tuple[str, str, Kind, str], Asset] = {
    ("client", "server", Kind.EXCHANGE, ""): Asset.ACTIVATIONS,
    ("server", "client", Kind.EXCHANGE, ""): Asset.ACTIVATIONS,
    ("client", "server", Kind.REQUEST, "privtensors input seeds"): Asset.ACTIVATIONS,
    ("server", "client", Kind.REQUEST, "privtensors input seeds"): Asset.INPUTS,
    ("client", "dealer", Kind.REPLY, "privtensors seed"): Asset.ACTIVATIONS,
    ("server", "dealer", Kind.REPLY, "privtensors seed"): Asset.ACTIVATIONS,
    ("server", "dealer", Kind.CORRELATION, "privtensors corrections"): Asset.ACTIVATIONS,
    ("server", "client", Kind.REQUEST, "privtensors forward"): Asset.MASK,
    ("dealer", "client", Kind.REQUEST, "privtensors forward"): Asset.SHAPES,
    ("dealer", "server", Kind.REQUEST, "privtensors forward"): Asset.SHAPES,
}
# Greetings, turns and ends: nothing in them but digests that all parties know, a session's id, and numbers of bytes.
PUBLIC = {"privtensors open", "privtensors ready", "privtensors go", "privtensors waiting", "privtensors credit"}


def test_each_party_receives_only_what_explain_lists(recorded: Recorded) -> None:
    seen = set()
    for entry in recorded.tape.entries:
        if entry.sent:
            continue
        label = LABELS.get(entry.op, "")
        if entry.kind is Kind.EXCHANGE:
            label = ""
        if entry.kind in (Kind.HELLO, Kind.BYE) or label in PUBLIC:
            assert entry.kind is Kind.HELLO or len(entry.data) <= 32
            continue
        seen.add((entry.party, entry.peer, entry.kind, label))
    assert seen == set(CARRIES)
    for (receiver, *_), asset in CARRIES.items():
        forms = recorded.said.view(receiver)[asset]
        assert forms and forms != {Nothing()}
    # What a party has in plain, and what it has not.
    plain = {(p, a) for p in ("client", "server", "dealer") for a, forms in recorded.said.view(p).items() if Plaintext() in forms}
    assert ("server", Asset.MASK) in plain and ("client", Asset.OUTPUTS) in plain
    assert not {("server", a) for a in (Asset.OUTPUTS, Asset.INPUTS, Asset.TOKEN_IDS, Asset.ACTIVATIONS)} & plain
    assert not {p for p, _ in plain} & {"dealer"} and ("client", Asset.WEIGHTS) not in plain


def all_findings(requests: list[Request]) -> tuple[list[Finding], list[float]]:
    """Every opening, and the difference of every pair of them of one size, within requests and across."""
    return findings([m for r in requests for m in r.opened])


def test_openings_are_uniform_and_no_two_share_a_mask_whatever_inputs_and_weights(recorded: Recorded, other_weights: Recorded) -> None:
    requests = mixed(recorded, other_weights)
    assert all(len(r.opened) > 60 for r in requests if r.answer is not None)
    found, values = all_findings(requests)
    assert not found and len(values) > 10_000
    assert skew(values) < 2
    # Sizes, widths and order are those of every other request of these shapes.
    plans = [r.plan for r in requests if r.answer is not None]
    assert all(plan == plans[0] for plan in plans)


def single_findings(groups: list[list[Any]]) -> tuple[list[float], int]:
    """p-values of single words, and of the differences of same-shaped ones at the same place of two requests."""
    values: list[float] = []
    pairs = 0
    for messages in groups:
        for m in messages:
            values += p_values(m.words.reshape(1, -1), m.bits)
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            for a, b in zip(first, second, strict=False):
                if a.words.shape == b.words.shape:
                    pairs += 1
                    values += p_values(torch.stack([(a.words - b.words).flatten(), (a.words ^ b.words).flatten()]), a.bits)
    return values, pairs


def test_corrections_are_uniform_and_never_the_same(recorded: Recorded, other_weights: Recorded) -> None:
    requests = [r for r in mixed(recorded, other_weights) if r.answer is not None]
    values, pairs = single_findings([r.corrections for r in requests])
    assert pairs > 100 and min(values) > REJECT and skew(values) < 2
    assert sum(m.words.numel() for m in requests[0].corrections) > 100_000


def test_words_that_one_party_receives_are_those_of_the_reveal_and_fresh_each_time(recorded: Recorded) -> None:
    answers = [m for r in recorded.requests for m in r.one_way]
    assert [tuple(m.words.shape[1:]) for m in answers] == [(2, 2)] * len(INPUTS)
    assert len({int(w) for m in answers for w in m.words.flatten()}) == 4 * len(INPUTS)


def test_nobody_gets_a_seed_twice_or_one_of_somebody_else(recorded: Recorded) -> None:
    seeds: dict[str, list[bytes]] = {"client": [], "server": []}
    for entry in recorded.tape.entries:
        if not entry.sent and LABELS.get(entry.op) == "privtensors seed":
            seeds[entry.party].append(entry.data[:SEED_SIZE])
    every = seeds["client"] + seeds["server"]
    assert len(every) == len(set(every)) == 2 * (1 + len(INPUTS))
    for mine, other in (("client", "server"), ("server", "client")):
        view = recorded.tape.view(mine)
        assert not any(seed in view for seed in seeds[other])


def patterns(values: Tensor) -> list[bytes]:
    """How numbers would lie in a message: float32 and float64 bytes, and fixed point words, in runs of four."""
    flat = values.detach().flatten()[:64]
    fixed = (flat.double() * 2.0**18).round().to(torch.int64)
    found = []
    for at in range(0, len(flat) - 3, 4):
        if bool((flat[at : at + 4].abs() > 1e-3).all()):
            found += [bytes(t[at : at + 4].contiguous().numpy().tobytes()) for t in (flat.float(), flat.double(), fixed)]
    return found


def test_no_weight_reaches_the_client_and_no_id_or_embedding_the_server(recorded: Recorded) -> None:
    model, searched = build("bert"), 0
    views = {party: recorded.tape.view(party) for party in ("client", "server", "dealer")}
    for name, parameter in model.named_parameters():
        if "embeddings" not in name and parameter.numel() >= 64:
            wanted = patterns(parameter)
            searched += len(wanted)
            assert not any(p in views[party] for p in wanted for party in ("client", "dealer"))
    assert searched > 500
    rows = model.bert.embeddings(IDS)
    for secret in (rows[0, 0], rows[1, 3], model.bert.embeddings.word_embeddings.weight[IDS[0, 0]]):
        assert patterns(secret) and not any(p in views[party] for p in patterns(secret) for party in ("server", "dealer"))
    for row in IDS:
        for run in (row[:4], row[2:6]):
            texts = [json.dumps(run.tolist()).encode(), json.dumps(run.tolist(), separators=(",", ":"))[1:-1].encode()]
            raw = [run.to(dtype).numpy().tobytes() for dtype in (torch.int64, torch.int32, torch.float32)]
            shared = (run * (1 << 18)).numpy().tobytes()
            assert not any(p in views[party] for p in (*texts, *raw, shared) for party in ("server", "dealer"))
    for logits in (r.answer for r in recorded.requests):
        assert logits is not None
        fixed = (logits.double() * 2.0**18).round().to(torch.int64)
        for word in [*fixed.flatten()]:
            assert not any(word.numpy().tobytes() in views[party] for party in ("server", "dealer"))
    # The search would find them: what a party holds itself is there in the form searched for.
    assert json.dumps("".join(map(str, MASK[0].tolist()))).encode() in views["server"]


def test_the_dealer_gets_descriptors_ids_and_digests_and_not_the_mask(recorded: Recorded) -> None:
    received = recorded.tape.received("dealer")
    assert sum(len(e.data) for e in received) < 600 * len(received)
    views = [json.loads(e.data[16:]) for e in received if LABELS.get(e.op) == "privtensors forward" and e.data[16:17] == b"{"]
    assert len(views) == len(INPUTS)
    for view in views:
        assert view["shapes"] == {"input_ids": [2, 12]} and view["mask"] == ["1" * 11 + "0"] * 2
    texts = ["".join(map(str, row.tolist())) for row in MASK]
    assert texts[0].encode() not in recorded.tape.view("dealer")
    agreed = [e for e in received if LABELS.get(e.op) == "privtensors forward" and e.peer == "server"]
    assert {len(e.data) for e in agreed} == {16 + 32 + 8}


def test_the_bytes_are_the_declared_ones(recorded: Recorded) -> None:
    for request, (_, sent, dealt) in zip(recorded.requests, recorded.costs, strict=True):
        # The client sends all but the last words, which are the server's share of the answer.
        assert request.words == sent - sum(m.words.numel() * m.bits // 8 for m in request.one_way)
        total = [e for e in recorded.tape.entries if e.kind is Kind.CORRELATION and not e.sent]
        assert sum(len(e.data) for e in total) == sum(cost[2] for cost in recorded.costs) and dealt > 0
    assert len({cost for cost in recorded.costs}) == 1


def test_an_observer_of_the_network_sees_sizes_that_depend_on_shapes_only(tmp_path: Path) -> None:
    with running(write_deployment(tmp_path, "bert")) as place:
        server, dealer = Link(place.deployment.server, keep=True), Link(place.deployment.dealer, keep=True)
        seen = dataclasses.replace(place.deployment, server=server.address, dealer=dealer.address)
        with connect(seen, session=memory_session()) as remote:
            sizes = []
            for ids, mask in ((IDS, MASK), (IDS.flip(1).clamp_min(31), MASK.flip(0)), (torch.full((2, 12), 50), MASK.flip(1))):
                time.sleep(0.3)  # what came last is still being counted
                before = len(server.records), len(dealer.records)
                remote(input_ids=ids * mask, attention_mask=mask)
                time.sleep(0.3)
                records = server.records[before[0] :], dealer.records[before[1] :]
                assert {r.kind for part in records for r in part} == {23}  # application data
                # Signs of life come by the clock: they and other empty frames are left out.
                sizes.append([[r.size for r in part if r.direction == way and r.size != 66] for part in records for way in ("up", "down")])
        assert len(sizes[0][0]) >= 75 and sizes[0] == sizes[1] == sizes[2]
        for link in (server, dealer):
            assert b"PVTF" not in link.data and b"input_ids" not in link.data and b"privtensors" not in link.data[2000:]
            link.close()


# Planted bugs: each must be found by the checks above.


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    return record(folder, INPUTS[:2], monkeypatch).requests


def a_seed_used_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("privtensors.deploy.ids.two_seeds", lambda: (b"\x01" * SEED_SIZE, b"\x02" * SEED_SIZE))


def small_masks(patch: pytest.MonkeyPatch) -> None:
    honest = PartyCorrelations.mask

    def small(self: PartyCorrelations, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        found = honest(self, shape, dtype)
        return Mask(found.shares & 0xFFFF, found.hidden)

    patch.setattr(PartyCorrelations, "mask", small)


def no_masks(patch: pytest.MonkeyPatch) -> None:
    honest = PartyCorrelations.mask

    def none(self: PartyCorrelations, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        found = honest(self, shape, dtype)
        return Mask(torch.zeros_like(found.shares), found.hidden)

    patch.setattr(PartyCorrelations, "mask", none)


def a_mask_used_twice(patch: pytest.MonkeyPatch) -> None:
    honest, kept = PartyCorrelations.mask, dict[Any, Mask]()

    def twice(self: PartyCorrelations, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        found, key = honest(self, shape, dtype), (self.party, shape, dtype)
        return kept.pop(key) if key in kept else kept.setdefault(key, found)

    patch.setattr(PartyCorrelations, "mask", twice)


@pytest.mark.parametrize("bug", [a_seed_used_twice, small_masks, no_masks, a_mask_used_twice], ids=lambda f: f.__name__)
def test_a_planted_bug_is_found_in_the_openings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as patch:
        bug(patch)
        requests = run(tmp_path, monkeypatch)
    assert all_findings(requests)[0]


def test_corrections_sent_twice_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, kept = Program.deal, dict[Program, list[bytes]]()

    def again(self: Program, *args: Any, **kwargs: Any) -> Any:
        fresh = [bytes(chunk) for chunk in honest(self, *args, **kwargs)]
        return iter([memoryview(bytearray(chunk)) for chunk in kept.setdefault(self, fresh)])

    with monkeypatch.context() as patch:
        patch.setattr(Program, "deal", again)
        requests = run(tmp_path, monkeypatch)
    values, _ = single_findings([r.corrections for r in requests])
    assert min(values) < REJECT
