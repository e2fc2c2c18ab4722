"""What the parties agree on: the values of the client's tables too, between client and server alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.deploy import connect
from privtensors.deploy.config import Deployment
from privtensors.deploy.parts import load_client_model, load_dealer_model, load_server_model
from privtensors.deploy.terms import ARITHMETIC, TABLES, computing_terms, mended, terms_of
from privtensors.errors import VersionMismatch
from privtensors.hf.wrap import wrap
from privtensors.policy import Policy
from privtensors.transport.frames import Kind
from privtensors.transport.peer import Peer
from tests.unit.deploy.places import memory_session, running, write_deployment
from tests.unit.hf.tiny import build

FAMILIES = ["bert", "bert-base", "distilbert", "roberta", "gpt2", "llama", "llama-tied", "vit", "mobilenet_v2", "resnet"]


def save_part(model: Any, folder: Path) -> Path:
    """The client's folder of ``model``."""
    wrap(model, Policy(infer=["clear"]), session=memory_session(), progress=False).save_pretrained(folder)
    return folder


def changed(name: str, folder: Path) -> Path:
    """The client's folder of the same model with one element of a table changed by one unit in the last place."""
    model = build(name)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[7, 3] = torch.nextafter(table[7, 3], torch.tensor(9.0))
    return save_part(model, folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_party_of_one_model_has_the_same_terms(name: str, tmp_path: Path) -> None:
    deployment = Deployment.load(write_deployment(tmp_path, name))
    server = load_server_model(deployment, tmp_path / "model")
    client = load_client_model(deployment, tmp_path / "client-model")
    dealer = load_dealer_model(deployment, tmp_path / "client-model")
    assert computing_terms(deployment, server, None) == computing_terms(deployment, client, None)
    assert terms_of(deployment, server) == terms_of(deployment, client) == terms_of(deployment, dealer)
    assert computing_terms(deployment, server, None).keys() - terms_of(deployment, dealer).keys() == {ARITHMETIC, TABLES}


def test_a_checkpoint_in_half_precision_has_one_digest(tmp_path: Path) -> None:
    deployment = Deployment.load(write_deployment(tmp_path, "bert", seed_model=build("bert").to(torch.bfloat16)))
    server, client = load_server_model(deployment, tmp_path / "model"), load_client_model(deployment, tmp_path / "client-model")
    assert computing_terms(deployment, server, None) == computing_terms(deployment, client, None)


def test_the_digest_tells_values_and_places_apart(tmp_path: Path) -> None:
    deployment = Deployment.load(write_deployment(tmp_path, "bert"))
    model = load_client_model(deployment, tmp_path / "client-model")
    found = {computing_terms(deployment, model, None)[TABLES]}
    words, types = model.bert.embeddings.word_embeddings.weight, model.bert.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        words[7, 3] = torch.nextafter(words[7, 3], torch.tensor(9.0))
        found.add(computing_terms(deployment, model, None)[TABLES])
        words[[5, 6]] = words[[6, 5]].clone()
        found.add(computing_terms(deployment, model, None)[TABLES])
        types.copy_(types.flip(0))
        found.add(computing_terms(deployment, model, None)[TABLES])
    # The same bytes in another shape, and the server's part: neither changes what is hashed beside it unnoticed.
    model.bert.embeddings.word_embeddings.weight = torch.nn.Parameter(words.detach().view(50, 64))
    found.add(computing_terms(deployment, model, None)[TABLES])
    assert len(found) == 5
    before = computing_terms(deployment, load_server_model(deployment, tmp_path / "model"), None)[TABLES]
    server = load_server_model(deployment, tmp_path / "model")
    with torch.no_grad():
        server.classifier.weight.add_(1.0)
    assert computing_terms(deployment, server, None)[TABLES] == before and before in found


def test_tables_of_another_checkpoint_are_refused_before_anything_but_the_greeting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = changed("bert", tmp_path / "other")
    sent: list[tuple[str, Kind]] = []
    real = Peer._talk

    def talk(self: Peer, outgoing: Any, expect: Any) -> Any:
        if outgoing is not None:
            sent.append((self.name, outgoing[0]))
        return real(self, outgoing, expect)

    with caplog.at_level(logging.INFO, "privtensors"), running(write_deployment(tmp_path, "bert")) as found:
        with monkeypatch.context() as patch, pytest.raises(VersionMismatch, match="values of the client's tables") as raised:
            patch.setattr(Peer, "_talk", talk)
            connect(found.deployment, model=other, session=memory_session())
        assert raised.value.terms == (TABLES,) and "save_pretrained" in raised.value.fix
        # The dealer was not called, and no id, seed or share left either end.
        assert sorted(set(sent)) == [("client", Kind.HELLO), ("server", Kind.HELLO)]
        assert found.server.figures().sessions == found.dealer.figures().sessions == 0
        # Right tables are served by the same parties; another server's change needs no new structure.
        connect(found.deployment, session=memory_session()).close()
    assert any("values of the client's tables" in r.getMessage() and "save_pretrained" in r.getMessage() for r in caplog.records)


def test_a_stale_second_file_in_the_clients_folder_is_found(tmp_path: Path) -> None:
    path = write_deployment(tmp_path, "bert")
    (changed("bert", tmp_path / "other") / "embeddings.safetensors").rename(tmp_path / "client-model" / "stale.safetensors")
    with running(path) as found, pytest.raises(VersionMismatch, match="client's tables"):
        connect(found.deployment, session=memory_session())


def test_the_dealer_is_not_shown_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greetings: dict[tuple[str, str], bytes] = {}
    with running(write_deployment(tmp_path, "bert")) as found:
        real = Peer._talk

        def talk(self: Peer, outgoing: Any, expect: Any) -> Any:
            if outgoing is not None and outgoing[0] is Kind.HELLO:
                greetings[self._where.split(" ")[0], self.name] = b"".join(outgoing[1])
            return real(self, outgoing, expect)

        monkeypatch.setattr(Peer, "_talk", talk)
        connect(found.deployment, session=memory_session()).close()
        digest = found.server.terms[TABLES].encode()
    assert {pair for pair, data in greetings.items() if digest in data} == {("client", "server"), ("server", "client")}
    assert {pair for pair, data in greetings.items() if digest not in data} == {
        ("client", "dealer"),
        ("server", "dealer"),
        ("dealer", "client"),
        ("dealer", "server"),
    }


def test_advice_is_for_the_first_difference() -> None:
    assert "save_pretrained" in mended(VersionMismatch("x", terms=(TABLES,))).fix
    assert "config.json" in mended(VersionMismatch("x", terms=("model layout", TABLES))).fix
    assert "release" in mended(VersionMismatch("x", terms=("model layout", "release"))).fix
    assert mended(VersionMismatch("x", fix="as it was", terms=("something new",))).fix == "as it was"
