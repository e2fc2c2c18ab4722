"""Client, server and dealer over real connections in one process: answers, refusals, lost parties, clean ends."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.core.recorder import MemoryRecorder
from privtensors.core.session import Session
from privtensors.deploy import RemoteModel, connect
from privtensors.deploy.config import Deployment
from privtensors.deploy.dealer import DealerServer
from privtensors.deploy.descriptor import Descriptor
from privtensors.errors import InvalidInput, OutOfRange, PartyBusy, RequestRefused, TransportError, VersionMismatch, WrongPeer
from privtensors.hf.wrap import wrap
from privtensors.policy import Policy
from privtensors.transport.tls import make_test_certificates
from tests.unit.deploy.places import Running, memory_session, running, write_deployment
from tests.unit.hf.tiny import build, inputs_for, text_inputs

ERROR = 0.05


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running deployment of the tiny BERT classifier."""
    with running(write_deployment(tmp_path_factory.mktemp("bert"), "bert", limits="tokens = 64\nidle_s = 4")) as found:
        yield found


@contextmanager
def served(path: Path) -> Iterator[tuple[Running, RemoteModel]]:
    """A running deployment and one client's session with it."""
    with running(path) as found, connect(found.deployment, session=memory_session()) as remote:
        yield found, remote


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come about within seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def simulated(name: str, inputs: dict[str, Any]) -> tuple[int, int]:
    """Rounds and bytes of the same forward in one process."""
    session = memory_session()
    private = wrap(build(name), Policy(infer=["mpc"]), session=session, progress=False)
    before = session.meter.reading()
    private(**inputs)
    spent = session.meter.reading() - before
    return spent.rounds, spent.bytes_sent


@pytest.mark.parametrize("name", ["gpt2-classifier", "llama-tied", "mobilenet_v2", "vit", "bert-mlm"])
def test_results_rounds_and_bytes_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    inputs = inputs_for(name)
    with running(write_deployment(tmp_path, name)) as found, connect(found.deployment, session=memory_session()) as remote:
        logits = remote(**inputs).logits
        cost = remote.last
    assert cost is not None
    assert (cost.rounds, cost.bytes_sent) == simulated(name, inputs)
    with torch.no_grad():
        assert float((logits - build(name)(**inputs).logits).abs().max()) < ERROR


def test_the_ledger_row_is_the_clients_and_says_deployed(bert: Running) -> None:
    recorder = MemoryRecorder()
    with connect(bert.deployment, session=Session(recorder=recorder)) as remote:
        remote(**text_inputs("bert"))
        assert "deployed" in str(remote.explain()).lower()
    assert [(e.receiver, e.simulated, e.label) for e in recorder.entries] == [("client", False, "logits")]


def test_two_clients_are_served_side_by_side(bert: Running) -> None:
    expected = build("bert")(**text_inputs("bert")).logits.detach()
    errors: list[BaseException] = []

    def ask(party: str) -> None:
        try:
            with connect(bert.deployment, party=party, session=memory_session()) as remote:
                for _ in range(3):
                    assert float((remote(**text_inputs("bert")).logits - expected).abs().max()) < ERROR
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(party,)) for party in ("client", "other", "client")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_request_over_the_limit_is_refused_and_the_session_goes_on(bert: Running) -> None:
    with connect(bert.deployment, session=memory_session()) as remote:
        with pytest.raises(RequestRefused, match="batch times tokens"):
            remote(input_ids=torch.full((3, 30), 7))
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


def test_bad_input_never_leaves_the_client(bert: Running) -> None:
    with connect(bert.deployment, session=memory_session()) as remote:
        served = bert.server.figures().served
        for bad, error in (({"input_ids": torch.tensor([[3, 100]])}, OutOfRange), ({"input_ids": torch.zeros(2)}, InvalidInput)):
            with pytest.raises(error):
                remote(**bad)
        with pytest.raises(InvalidInput, match="task outputs"):
            remote(**text_inputs("bert"), output_hidden_states=True)
        assert bert.server.figures().served == served
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


def test_an_error_within_a_forward_ends_the_session_and_the_next_request_opens_another(bert: Running) -> None:
    with connect(bert.deployment, session=memory_session()) as remote:
        table = remote.model.bert.embeddings.LayerNorm.bias
        with torch.no_grad():
            table += 2.0**20
        with pytest.raises(OutOfRange):  # found when it is shared, after the request was announced
            remote(**text_inputs("bert"))
        with torch.no_grad():
            table -= 2.0**20
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


def test_a_client_that_vanishes_leaves_the_server_serving(bert: Running) -> None:
    remote = connect(bert.deployment, session=memory_session())
    line: Any = remote.requests._line
    for peer in (line.server, line.dealer):
        peer._sock.close()
    with connect(bert.deployment, session=memory_session()) as other:
        assert other(**text_inputs("bert")).logits.shape == (2, 2)


def test_a_session_lost_between_requests_is_opened_again(bert: Running) -> None:
    with connect(bert.deployment, session=memory_session()) as remote:
        first = remote(**text_inputs("bert")).logits
        line: Any = remote.requests._line
        line.server._sock.close()
        assert float((remote(**text_inputs("bert")).logits - first).abs().max()) < ERROR


def test_a_closed_model_says_so(bert: Running) -> None:
    remote = connect(bert.deployment, session=memory_session())
    remote.close()
    with pytest.raises(TransportError, match="closed"):
        remote(**text_inputs("bert"))


def test_a_lost_dealer_is_an_error_within_seconds_and_another_one_serves(tmp_path: Path) -> None:
    path = write_deployment(tmp_path, "bert", limits="idle_s = 2\nconnect_s = 2")
    with running(path) as found:
        remote = connect(found.deployment, session=memory_session(), timeout=3)
        found.dealer.stop()
        found.threads[1].join(20)
        start = time.monotonic()
        with pytest.raises(TransportError):
            remote(**text_inputs("bert"))
        assert time.monotonic() - start < 10
        again = DealerServer(found.deployment)
        thread = threading.Thread(target=again.run, daemon=True)
        thread.start()
        try:
            assert remote(**text_inputs("bert")).logits.shape == (2, 2)
            remote.close()
        finally:
            again.stop()
            thread.join(20)


def test_too_many_sessions_are_refused_as_busy(tmp_path: Path) -> None:
    with running(write_deployment(tmp_path, "bert", limits="clients = 1")) as found:
        first = connect(found.deployment, session=memory_session())
        with pytest.raises(PartyBusy):
            connect(found.deployment, party="other", session=memory_session())
        first.close()


def test_other_policies_models_and_certificates_are_refused_before_anything_else(bert: Running, tmp_path: Path) -> None:
    other = write_deployment(tmp_path, "bert-qa")
    theirs = Deployment.load(other)
    mixed = dataclasses.replace(bert.deployment, task=theirs.task, models=theirs.models)
    with pytest.raises(VersionMismatch, match="model layout"):
        connect(mixed, session=memory_session())
    policy = dataclasses.replace(bert.deployment, policy=Policy(infer=[type(bert.server.technique)(fractional_bits=17)]))  # type: ignore[call-arg]
    with pytest.raises(VersionMismatch, match="policy"):
        connect(policy, session=memory_session())
    make_test_certificates(tmp_path / "strange", ["client"])
    with pytest.raises(WrongPeer):
        connect(bert.deployment, keys=tmp_path / "strange", session=memory_session())
    with pytest.raises(InvalidInput, match="no client"):
        connect(bert.deployment, party="stranger", session=memory_session())


def test_a_request_waits_its_turn_longer_than_a_peer_may_be_silent(tmp_path: Path) -> None:
    with served(write_deployment(tmp_path, "bert", limits="idle_s = 1.5\nwaiting = 1")) as (found, remote), ExitStack() as held:
        held.enter_context(found.server.turns.turn())
        timer = threading.Timer(3.5, held.close)
        timer.start()
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)
        assert remote.last is not None and remote.last.queue_seconds > 3
        timer.join()


def test_a_full_line_is_busy_and_the_session_goes_on(tmp_path: Path) -> None:
    with served(write_deployment(tmp_path, "bert", limits="waiting = 0")) as (found, remote):
        until(lambda: found.server.turns.running == 0)  # the server may still be ending the set-up
        with found.server.turns.turn(), pytest.raises(PartyBusy, match="too many requests"):
            remote(**text_inputs("bert"))
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


def test_an_id_is_dealt_for_once(bert: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = bytes(15) + b"\x07"
    with connect(bert.deployment, session=memory_session()) as remote:
        with monkeypatch.context() as patch:
            patch.setattr("privtensors.deploy.line.new_id", lambda: fixed)
            assert remote(**text_inputs("bert")).logits.shape == (2, 2)
            with pytest.raises(RequestRefused, match="id was used before"):
                remote(**text_inputs("bert"))
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


def test_client_and_server_must_describe_a_request_alike(bert: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(bert.deployment, session=memory_session()) as remote:
        requests: Any = remote.requests
        with monkeypatch.context() as patch:
            other = Descriptor((("input_ids", (2, 8)),))
            patch.setattr(requests, "_for_dealer", lambda _descriptor: other)
            with pytest.raises(RequestRefused, match="describe the request differently"):
                remote(**text_inputs("bert"))
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


def test_a_cache_that_is_not_kept_any_more_is_refused(tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with served(write_deployment(tmp_path, "gpt2", limits="caches = 1")) as (_, remote):
        first = remote(input_ids=ids, use_cache=True).past_key_values
        step = remote(input_ids=ids[:, :1], past_key_values=first)
        plain = build("gpt2")
        with torch.no_grad():
            expected = plain(input_ids=torch.tensor([[5, 6, 7, 5]])).logits[:, -1:]
        assert float((step.logits - expected).abs().max()) < ERROR
        second = remote(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(RequestRefused, match="not kept"):
            remote(input_ids=ids[:, :1], past_key_values=first)
        assert remote(input_ids=ids[:, :1], past_key_values=second).logits.shape == (1, 1, 100)
        with pytest.raises(InvalidInput, match="another session"):
            other = plain(input_ids=ids, use_cache=True).past_key_values
            remote(input_ids=ids[:, :1], past_key_values=other)


def test_logs_tell_sizes_and_never_a_value(bert: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "privtensors"), connect(bert.deployment, session=memory_session()) as remote:
        logits = remote(**text_inputs("bert")).logits
        until(lambda: "14 tokens for client: 75 rounds" in caplog.text)  # the server writes it after its last message
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert not any(f"{value:.3f}" in text for value in logits.flatten().tolist())


def test_an_interrupt_within_a_forward_ends_the_session_and_the_next_request_opens_another(
    bert: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(bert.deployment, session=memory_session()) as remote:
        line: Any = remote.requests._line
        exchange, calls = line._room.channel.exchange, iter(range(20))

        def interrupted(messages: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return exchange(messages)

        monkeypatch.setattr(line._room.channel, "exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remote(**text_inputs("bert"))
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


def test_a_stock_pipeline_runs_on_it(bert: Running) -> None:
    from transformers import BertTokenizer

    from privtensors.hf.pipeline import pipeline

    words = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(95))))}
    with connect(bert.deployment, session=memory_session()) as remote:
        classify = pipeline("text-classification", model=remote, tokenizer=BertTokenizer(vocab=words))
        found = classify(["word7 word8", "word9"])
        assert [set(answer) for answer in found] == [{"label", "score"}] * 2
        assert len(remote.costs) == 2 and "open" in repr(remote)
