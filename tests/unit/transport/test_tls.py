"""Certificates: what is made, what is refused, and that a party is who its certificate says."""

from __future__ import annotations

import shutil
import socket
import ssl
import stat
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privtensors.errors import FrameError, PeerLost, TransportError, VersionMismatch, WrongPeer
from privtensors.transport.tcp import Listener, connect
from privtensors.transport.tls import Identity, client_context, make_test_certificates, party_of, server_context, transport_error
from tests.unit.transport.loopback import WAIT, pair, together

Identities = Mapping[str, Identity]


def test_what_is_made(identities: Identities) -> None:
    client = identities["client"]
    folder = client.key.parent
    assert sorted(p.name for p in folder.iterdir()) == sorted(["ca.pem", *(f"{n}.{e}" for n in identities for e in ("pem", "key"))])
    assert stat.S_IMODE(client.key.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(client.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["client.privtensors"]
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    now = datetime.now(UTC)
    assert certificate.not_valid_before_utc < now < certificate.not_valid_after_utc < now + timedelta(days=31)
    assert Identity.load(folder, "client") == client
    assert client.key.name not in repr(client)


def test_keys_are_never_overwritten(identities: Identities, tmp_path: Path) -> None:
    folder = identities["client"].key.parent
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(TransportError, match="exist already"):
        make_test_certificates(folder, ["other"])
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    for names in ([], ["a", "a"], ["ca"], ["A"], ["a/b"], [""], ["a" * 64]):
        with pytest.raises(TransportError):
            make_test_certificates(tmp_path, names)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [client_context, server_context])
def test_contexts_are_tls_13_and_ask_for_certificates(identities: Identities, make: type) -> None:
    context = make(identities["client"])
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}


def test_files_that_cannot_be_used(identities: Identities, strangers: Identities, tmp_path: Path) -> None:
    good = identities["client"]
    key = tmp_path / "client.key"
    shutil.copy(good.key, key)
    key.chmod(0o604)
    junk = tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    locked = tmp_path / "locked.key"
    plain = serialization.load_pem_private_key(good.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    locked.chmod(0o600)
    bad = {
        "open to other users": replace(good, key=key),
        "missing": replace(good, authority=tmp_path / "none.pem"),
        "no PEM certificate": replace(good, certificate=junk),
        "authority cannot be used": replace(good, authority=junk),
        "KEY_VALUES_MISMATCH": replace(good, key=strangers["client"].key),
        "no password": replace(good, key=locked),
        "does not carry the name server.privtensors": replace(good, name="server"),
    }
    for says, identity in bad.items():
        with pytest.raises(TransportError, match=says):
            client_context(identity)


def test_a_certificate_names_exactly_one_party(identities: Identities) -> None:
    me = identities["server"]

    def named(*names: tuple[str, str]) -> Mapping[str, object]:
        return {"subjectAltName": names}

    assert party_of(named(("DNS", "client.privtensors")), me, ["client", "dealer"]) == "client"
    own = replace(me, san={"client": "spiffe://example/client"})
    assert party_of(named(("URI", "spiffe://example/client")), own, ["client"]) == "client"
    both = named(("DNS", "client.privtensors"), ("DNS", "dealer.privtensors"))
    wrong = [{}, named(("DNS", "*.privtensors")), named(("DNS", "client.privtensors.evil")), named(("email", "client.privtensors")), both]
    for certificate in wrong:
        with pytest.raises(WrongPeer):
            party_of(certificate, me, ["client", "dealer"])
    with pytest.raises(WrongPeer):
        party_of(named(("DNS", "client.privtensors")), own, ["client"])


def test_errors_of_sockets_and_tls() -> None:
    assert isinstance(transport_error(ConnectionResetError(), ""), PeerLost)
    assert isinstance(transport_error(ssl.SSLEOFError(), ""), PeerLost)
    assert isinstance(transport_error(ssl.SSLError(1, "rubbish"), ""), FrameError)
    assert isinstance(transport_error(ssl.SSLCertVerificationError(), ""), WrongPeer)


def expired(folder: Path, names: list[str]) -> Identities:
    return make_test_certificates(folder, names, days=1, start=datetime.now(UTC) - timedelta(days=3))


def meet(server: Identity, client: Identity, *, parties: tuple[str, ...] = ("client",)) -> tuple[TransportError, TransportError]:
    """The errors at server and client."""
    with Listener(server, parties) as listener, together() as start:
        calling = start(lambda: connect(listener.address, client, "server", timeout=3))
        with pytest.raises(TransportError) as at_server:
            listener.accept(1)
        with pytest.raises(TransportError) as at_client:
            calling.result(WAIT)
    return at_server.value, at_client.value


def test_another_authority(identities: Identities, strangers: Identities) -> None:
    for error in meet(identities["server"], strangers["client"]):
        assert isinstance(error, WrongPeer)
    # The server is real, the client trusts it, but shows a certificate of another authority.
    client = replace(strangers["client"], authority=identities["server"].authority)
    at_server, at_client = meet(identities["server"], client)
    assert isinstance(at_server, WrongPeer) and isinstance(at_client, WrongPeer)
    assert "refuses our certificate" in str(at_client)


def test_expired(identities: Identities, tmp_path: Path) -> None:
    old = expired(tmp_path, ["client", "server"])
    at_server, at_client = meet(old["server"], old["client"])
    assert isinstance(at_server, WrongPeer) and isinstance(at_client, WrongPeer)
    assert "expired" in str(at_client)


def test_expired_client_only(identities: Identities, tmp_path: Path) -> None:
    old = expired(tmp_path, ["client"])["client"]
    server = replace(identities["server"], authority=old.authority)
    at_server, at_client = meet(server, replace(old, authority=identities["server"].authority))
    assert isinstance(at_server, WrongPeer) and "expired" in str(at_server)
    assert isinstance(at_client, WrongPeer) and "EXPIRED" in str(at_client)


def test_the_wrong_party_at_the_other_end(identities: Identities) -> None:
    # The dealer's certificate is good, but the server wants a client: both learn it.
    at_server, at_client = meet(identities["server"], identities["dealer"])
    assert isinstance(at_server, WrongPeer) and "dealer.privtensors" in str(at_server)
    assert isinstance(at_client, WrongPeer) and "expects another party" in str(at_client)
    # The client wants the server, and the dealer answers.
    at_server, at_client = meet(identities["dealer"], identities["client"])
    assert isinstance(at_server, WrongPeer) and isinstance(at_client, WrongPeer)
    assert "dealer.privtensors" in str(at_client)


def test_no_certificate_and_old_tls(identities: Identities) -> None:
    for context, error in ((ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), WrongPeer), (client_context(identities["client"]), VersionMismatch)):
        if error is WrongPeer:
            context.check_hostname = False
            context.load_verify_locations(identities["server"].authority)
        else:
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2

        def call(context: ssl.SSLContext = context, address: tuple[str, int] = ("", 0)) -> None:
            with socket.create_connection(address, WAIT) as raw, pytest.raises(OSError), context.wrap_socket(raw) as sock:
                sock.recv(1)  # the refusal comes after the client's part of the handshake
                raise OSError("closed")

        with Listener(identities["server"], ["client"]) as listener, together() as start:
            calling = start(lambda call=call, address=listener.address: call(address=address))
            with pytest.raises(error):
                listener.accept(1)
            calling.result(WAIT)


def test_names_of_an_authority_of_ones_own(identities: Identities) -> None:
    # As if the real certificate of a party called "worker" carried server.privtensors.
    san = {"worker": "server.privtensors"}
    worker = replace(identities["server"], name="worker", san=san)
    with Listener(worker, ["client"]) as listener, together() as start:
        calling = start(lambda: connect(listener.address, replace(identities["client"], san=san), "worker", timeout=WAIT))
        with listener.accept(WAIT) as server, calling.result(WAIT) as client:
            assert (server.name, client.name) == ("client", "worker") and server.session == client.session


def test_both_ends_know_each_other(identities: Identities) -> None:
    with pair(identities) as (server, client):
        assert (server.name, client.name) == ("client", "server")
        assert server.session == client.session != bytes(16)
        assert client._sock.version() == "TLSv1.3" and not client._sock.session_reused
