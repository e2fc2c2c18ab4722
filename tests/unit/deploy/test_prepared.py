"""Correlations dealt ahead, with real connections: from the dealer's store, and brought to the parties before the request."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.deploy import RemoteModel, connect
from privtensors.deploy.bundle import Wanted
from privtensors.deploy.config import DEALER, Deployment
from privtensors.deploy.dealer import DealerServer
from privtensors.deploy.kinds import expected, kind_of
from privtensors.deploy.parts import load_dealer_model
from privtensors.deploy.prepared import Kept, KeptCorrections, Shelf
from privtensors.deploy.programs import Programs
from privtensors.deploy.rooms import deployed_technique
from privtensors.deploy.server import Server
from privtensors.deploy.store import fill
from privtensors.deploy.terms import terms_of
from privtensors.errors import CorrelationError, InvalidInput, RequestRefused, TransportError
from tests.unit.deploy.places import memory_session, running, write_deployment
from tests.unit.hf.tiny import build, inputs_for, text_inputs

ERROR = 0.05
IDS = torch.randint(5, 90, (1, 6), generator=torch.Generator().manual_seed(3))
WHOLE = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "token_type_ids": torch.zeros_like(IDS)}


def right(remote: RemoteModel, name: str, inputs: dict[str, Any]) -> bool:
    with torch.no_grad():
        return float((remote(**inputs).logits - build(name)(**inputs).logits).abs().max()) < ERROR


def stock(path: Path, folder: Path, *, count: int, bundles: int = 1, tokens: int = 6, masked: bool = False) -> None:
    """What ``privtensors deal`` does."""
    deployment = Deployment.load(path)
    structure = load_dealer_model(deployment, deployment.models[DEALER])
    programs = Programs(structure, deployment.policy, deployed_technique(deployment.policy))
    view = expected(structure, causal=programs.causal, tokens=tokens, masked=masked)
    wanted = [Wanted(kind_of(view), programs.find(view, None).result().program, count)]
    for _ in range(bundles):
        fill(folder, terms_of(deployment, structure), programs.setup.program, wanted, lambda size: None)
    programs.close()


@contextmanager
def serving(path: Path, store: Path, *, stored_only: bool = False) -> Iterator[Deployment]:
    """A server, and a dealer with a store."""
    deployment = Deployment.load(path)
    with DealerServer(deployment, store=store, stored_only=stored_only) as dealer:
        deployment = dataclasses.replace(deployment, dealer=dealer.address)
        with Server(deployment) as server:
            deployment = dataclasses.replace(deployment, server=server.address)
            threads = [threading.Thread(target=service.run, daemon=True) for service in (server, dealer)]
            for thread in threads:
                thread.start()
            try:
                yield deployment
            finally:
                for service in (server, dealer):
                    service.stop()
                for thread in threads:
                    thread.join(20)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("bert")
    with running(write_deployment(folder, "bert", limits="idle_s = 4\nprepared_mib = 4")) as found:
        yield found.deployment


def test_prepared_requests_are_answered_without_the_dealer(bert: Deployment) -> None:
    with connect(bert, session=memory_session()) as remote:
        spent = remote.prepare(6, count=2)
        assert (spent.count, remote.prepared) == (2, 2) and spent.dealer_bytes > 0
        line: Any = remote.requests._line
        before = dataclasses.replace(line.dealer.traffic)
        for left in (1, 0):
            assert right(remote, "bert", WHOLE)
            assert remote.last is not None and remote.last.prepared and remote.last.dealer_seconds == 0
            assert remote.last.dealer_bytes == spent.dealer_bytes // 2 and remote.prepared == left
            assert 0 < remote.last.offline_seconds < remote.last.seconds and remote.last.online_seconds > 0
        assert line.dealer.traffic == before  # nothing went to the dealer or came from it
        assert right(remote, "bert", WHOLE)
        assert remote.last is not None and not remote.last.prepared and remote.last.dealer_seconds > 0


def test_only_requests_of_the_kind_take_what_was_prepared(bert: Deployment) -> None:
    padded = text_inputs("bert")
    batch, tokens = padded["input_ids"].shape
    with connect(bert, session=memory_session()) as remote:
        remote.prepare(tokens, batch=batch, masked=True)
        remote.prepare(tokens, batch=batch)
        assert right(remote, "bert", WHOLE) and remote.prepared == 2
        assert right(remote, "bert", padded) and remote.prepared == 1
        assert remote.last is not None and remote.last.prepared
        assert right(remote, "bert", {"input_ids": padded["input_ids"]}) and remote.prepared == 0


@pytest.mark.parametrize("name", ["gpt2-classifier", "llama-tied", "vit", "roberta"])
def test_other_families(name: str, tmp_path: Path) -> None:
    inputs = inputs_for(name)
    with running(write_deployment(tmp_path, name)) as found, connect(found.deployment, session=memory_session()) as remote:
        if "pixel_values" in inputs:
            remote.prepare(batch=len(inputs["pixel_values"]), image_size=inputs["pixel_values"].shape[-1])
        else:
            batch, tokens = inputs["input_ids"].shape
            mask = inputs.get("attention_mask")
            remote.prepare(tokens, batch=batch, masked=mask is not None and not bool(mask.all()))
        assert right(remote, name, inputs)
        assert remote.last is not None and remote.last.prepared


def test_what_was_prepared_is_burnt_with_the_session(bert: Deployment) -> None:
    with connect(bert, session=memory_session()) as remote:
        remote.prepare(6, count=3)
        line: Any = remote.requests._line
        line.server.abort()
        assert right(remote, "bert", WHOLE)
        assert remote.last is not None and not remote.last.prepared and remote.prepared == 0


def test_preparing_in_a_lost_session_opens_another_unless_something_was_prepared(bert: Deployment) -> None:
    with connect(bert, session=memory_session()) as remote:
        for prepared in (0, 1):
            line: Any = remote.requests._line
            line.server.abort()
            if prepared:
                with pytest.raises(TransportError):
                    remote.prepare(6)
                assert remote.prepared == 0
            assert remote.prepare(6).count == 1 and remote.prepared == 1
        assert right(remote, "bert", WHOLE)


def test_the_server_keeps_what_it_has_room_for(bert: Deployment) -> None:
    with connect(bert, session=memory_session()) as remote:
        one = remote.prepare(6).dealer_bytes
        with pytest.raises(RequestRefused, match="no room"):
            remote.prepare(6, count=2 * (4 << 20) // one)
        full = remote.prepared
        assert full == (4 << 20) // one
        with pytest.raises(RequestRefused, match="no room"):
            remote.prepare(30, count=1)
        assert right(remote, "bert", WHOLE) and remote.prepared == full - 1
        remote.prepare(6)
        assert remote.prepared == full


def test_a_prepared_id_serves_no_other_request_and_only_once(bert: Deployment) -> None:
    with connect(bert, session=memory_session()) as remote:
        remote.prepare(6, count=2)
        line: Any = remote.requests._line
        first, second = line._shelf
        wrong = dataclasses.replace(second, kind=kind_of(expected(remote.model, causal=False, tokens=7)))
        line._shelf[:] = [first, wrong]
        seven = {"input_ids": torch.full((1, 7), 9)}
        with pytest.raises(RequestRefused, match="describe the request differently"):
            remote(**seven)
        line._shelf[:] = [first]
        assert right(remote, "bert", WHOLE)
        line._shelf[:] = [first]
        with pytest.raises(RequestRefused, match="used before"):
            remote(**WHOLE)
        line._shelf[:] = [second]
        assert right(remote, "bert", WHOLE)


def test_bad_input_of_prepare(bert: Deployment) -> None:
    with connect(bert, session=memory_session()) as remote:
        wrong: tuple[dict[str, Any], ...] = (
            {},
            {"tokens": 0},
            {"tokens": 10**9},
            {"tokens": 6, "count": 0},
            {"tokens": 6, "batch": 0},
            {"tokens": 1, "masked": True},
            {"tokens": 6, "image_size": 8},
        )
        for given in wrong:
            with pytest.raises(InvalidInput):
                remote.prepare(**given)
        remote.close()
        with pytest.raises(Exception, match="closed"):
            remote.prepare(6)


def test_sessions_are_served_from_the_store(tmp_path: Path) -> None:
    path, store = write_deployment(tmp_path, "bert"), tmp_path / "store"
    stock(path, store, count=2)
    with serving(path, store, stored_only=True) as deployment:
        with connect(deployment, session=memory_session()) as remote:
            assert right(remote, "bert", WHOLE)
            remote.prepare(6)  # taken out of the store, and kept at the server
            assert right(remote, "bert", WHOLE) and not list((store / "open").glob("*/?????????????????????????????????"))
            for inputs in (WHOLE, {"input_ids": torch.full((1, 7), 9)}):
                with pytest.raises(RequestRefused, match="stored randomness"):
                    remote(**inputs)
        with pytest.raises(RequestRefused, match="stored randomness"):
            connect(deployment, session=memory_session())
    with pytest.raises(CorrelationError, match="used up"):
        DealerServer(Deployment.load(path), store=store, stored_only=True)
    # Without the option the same store's dealer deals on request.
    with serving(path, store) as deployment, connect(deployment, session=memory_session()) as remote:
        assert right(remote, "bert", WHOLE)


def test_a_damaged_request_is_refused_and_the_next_is_served(tmp_path: Path) -> None:
    path, store = write_deployment(tmp_path, "bert"), tmp_path / "store"
    stock(path, store, count=2)
    with serving(path, store) as deployment, connect(deployment, session=memory_session()) as remote:
        files = [f for f in (store / "open").glob("*/*") if f.stat().st_size > 10_000]
        assert len(files) == 2
        for file in files[:2]:
            data = bytearray(file.read_bytes())
            data[5000] ^= 1
            file.write_bytes(data)
        for _ in files:
            with pytest.raises(RequestRefused, match="stored randomness"):
                remote(**WHOLE)
        assert right(remote, "bert", WHOLE)


def test_a_store_of_another_policy_is_refused(tmp_path: Path) -> None:
    path, store = write_deployment(tmp_path, "bert"), tmp_path / "store"
    stock(path, store, count=1)
    text = path.read_text()
    path.write_text(text.replace('technique = "mpc"\n', 'technique = "mpc"\nfractional_bits = 19\n', 1))
    with pytest.raises(CorrelationError, match="another policy"):
        DealerServer(Deployment.load(path), store=store)


def test_a_request_id_is_remembered_across_dealers(tmp_path: Path) -> None:
    path, store = write_deployment(tmp_path, "bert"), tmp_path / "store"
    name = hashlib.sha256(b"a request").digest()[:16]
    for match in (None, "used before"):
        with (
            serving(path, store) as deployment,
            connect(deployment, session=memory_session()) as remote,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr("privtensors.deploy.line.new_id", lambda: name)
            if match is None:
                assert right(remote, "bert", WHOLE)
            else:
                with pytest.raises(RequestRefused, match=match):
                    remote(**WHOLE)


def test_a_shelf_counts_its_bytes() -> None:
    shelf = Shelf(100)
    assert shelf.may_fit("k") and shelf.fits(100) and not shelf.fits(101)
    shelf.put(b"a", Kept("k", b"", memoryview(bytearray(60))))
    assert not shelf.may_fit("k") and shelf.may_fit("other") and shelf.find(b"a") is not None
    kept = shelf.take(b"a")
    assert kept is not None and shelf.take(b"a") is None and shelf.may_fit("k")
    assert not Shelf(0).may_fit("k")


def test_kept_corrections_end_where_they_end() -> None:
    stream = KeptCorrections(memoryview(bytearray(range(24))))
    assert stream.take(16).tobytes() == bytes(range(16))
    with pytest.raises(CorrelationError, match="8 bytes of corrections are left over"):
        stream.finish()
    assert not stream.take(8).readonly
    stream.finish()
    with pytest.raises(CorrelationError, match="less was prepared"):
        stream.take(8)
