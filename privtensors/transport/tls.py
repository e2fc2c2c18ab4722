"""Who is at the other end: TLS 1.3, both sides show a certificate, and a certificate names a party, not a host."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from privtensors.errors import FrameError, PeerLost, TransportError, VersionMismatch, WrongPeer

_PARTY: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUFFIX: Final = ".privtensors"


@dataclass(frozen=True, slots=True)
class Identity:
    """What one party shows and trusts.

    Attributes:
        name: Party name, e.g. ``"server"``: lower-case letters, digits and hyphens.
        certificate: PEM file: the party's certificate, then any intermediate ones.
        key: PEM file of the private key, not encrypted, closed to other users.
        authority: PEM file of the only authorities trusted for peers; the system's are not used.
        san: Party name to the subject alternative name (DNS or URI) its certificate carries, where that is not
            ``NAME.privtensors``. For certificates of your own authority.
    """

    name: str
    certificate: Path
    key: Path = field(repr=False)
    authority: Path
    san: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name(self.name)

    def expected(self, party: str) -> str:
        """The subject alternative name that ``party``'s certificate must carry."""
        return self.san.get(party, party + _SUFFIX)

    @classmethod
    def load(cls, folder: Path | str, name: str) -> Identity:
        """The files that :func:`make_test_certificates` wrote for ``name``."""
        folder = Path(folder)
        return cls(name, folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")


def _check_name(name: str) -> None:
    if not _PARTY.fullmatch(name):
        raise TransportError(f"{name!r} is no party name", where="identity", fix="use lower-case letters, digits and hyphens")


def server_context(identity: Identity) -> ssl.SSLContext:
    """For the listening side: see :func:`client_context`."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.num_tickets = 0  # no resumption: every connection shows its certificate
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """For the calling side: TLS 1.3 only, the peer must show a certificate of ``identity.authority``.

    Raises:
        TransportError: A file is missing, malformed, not a pair, open to other users, or of another party.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


def _context(protocol: ssl._SSLMethod, identity: Identity) -> ssl.SSLContext:
    _check_own_files(identity)
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate names a party: party_of checks it
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cafile=identity.authority)
        context.load_cert_chain(identity.certificate, identity.key, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise TransportError(
            f"certificate, key or authority cannot be used ({reason})",
            where=f"identity {identity.name}",
            fix="give PEM files; the key must belong to the certificate and have no password",
        ) from None
    return context


def _no_password() -> bytes:
    raise ssl.SSLError("the key is encrypted")  # the default would ask on the terminal


def _check_own_files(identity: Identity) -> None:
    from cryptography import x509

    where = f"identity {identity.name}"
    for path in (identity.certificate, identity.key, identity.authority):
        if not path.is_file():
            raise TransportError(f"{path.name} is missing", where=where, fix=f"look for it in {path.parent}, or make test certificates")
    if os.name == "posix" and identity.key.stat().st_mode & 0o007:
        raise TransportError(f"{identity.key.name} is open to other users", where=where, fix=f"chmod 600 {identity.key}")
    try:
        own = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
        extension = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise TransportError(
            f"{identity.certificate.name} is no PEM certificate with a subject alternative name", where=where, fix="issue it again"
        ) from None
    names = {*extension.get_values_for_type(x509.DNSName), *extension.get_values_for_type(x509.UniformResourceIdentifier)}
    if identity.expected(identity.name) not in names:
        raise TransportError(
            f"{identity.certificate.name} does not carry the name {identity.expected(identity.name)}",
            where=where,
            fix="give the party's own certificate, or say in Identity.san which name it carries",
        )


def party_of(certificate: Mapping[str, Any], identity: Identity, parties: Collection[str]) -> str:
    """Which of ``parties`` a verified certificate (as ``SSLSocket.getpeercert()`` gives it) belongs to. Exact match, no wildcards.

    Raises:
        WrongPeer: None of them, or more than one.
    """
    names = {value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI")}
    found = [party for party in parties if identity.expected(party) in names]
    if len(found) != 1:
        raise WrongPeer(
            f"the peer's certificate names {sorted(names) or 'nobody'}, expected is one of {sorted(identity.expected(p) for p in parties)}",
            where=f"connection of {identity.name}",
            fix="check the address and the peer's certificate",
        )
    return found[0]


def transport_error(error: OSError, where: str) -> TransportError:
    """The typed error for what a socket or TLS raised."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "unknown reason")
        return WrongPeer(f"the peer's certificate is refused: {why}", where=where, fix="check authority, dates and address")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or not isinstance(error, ssl.SSLError):
        return PeerLost("the connection was lost", where=where, fix="start the peer again and repeat the request")
    reason = getattr(error, "reason", None) or ""
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason or "ACCESS_DENIED" in reason):
        return WrongPeer(f"the peer refuses our certificate ({reason})", where=where, fix="check its dates and who issued it")
    if reason in ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "NO_CERTIFICATE_RETURNED"):
        return WrongPeer("the peer shows no certificate", where=where, fix="give the peer a certificate of the common authority")
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return VersionMismatch("the peer does not speak TLS 1.3", where=where, fix="install a current OpenSSL at the peer")
    if "ALERT" in reason:
        return PeerLost(f"the peer ended TLS ({reason})", where=where, fix="start the session again")
    return FrameError(f"what arrived is not TLS ({reason or type(error).__name__})", where=where, fix="check the address and the network")


def make_test_certificates(
    folder: Path | str, names: Sequence[str], *, days: float = 30, start: datetime | None = None
) -> dict[str, Identity]:
    """Make an authority and a certificate (EC P-256) for each party, for tests and trials; the authority's key is not kept.

    Writes ``ca.pem``, and ``NAME.pem`` and ``NAME.key`` (mode 0600) per party. All are valid for ``days`` days from ``start``
    (default now, less five minutes for clocks that differ).

    Raises:
        TransportError: A bad or repeated name, or a file is there already: keys are never overwritten.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    folder = Path(folder)
    for name in names:
        _check_name(name)
    if len(set(names)) != len(names) or "ca" in names or not names:
        raise TransportError(
            f"cannot make certificates for {list(names)}", where="test certificates", fix="give different names, none is ca"
        )
    identities = {name: Identity.load(folder, name) for name in names}
    paths = [folder / "ca.pem", *(p for i in identities.values() for p in (i.certificate, i.key))]
    if present := [p.name for p in paths if p.exists()]:
        raise TransportError(f"{present} exist already", where=str(folder), fix="choose an empty folder; keys are never overwritten")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    begin = start or datetime.now(UTC) - timedelta(minutes=5)
    end = begin + timedelta(days=days)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "privtensors test authority")])
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)

    def draft(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> x509.CertificateBuilder:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
        )
        return (
            x509.CertificateBuilder(ca_name, subject, key.public_key(), x509.random_serial_number(), begin, end)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer_id, critical=False)
        )

    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(draft(ca_name, ca_key, is_ca=True).sign(ca_key, hashes.SHA256()).public_bytes(pem))
    both_ways = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    for name, identity in identities.items():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            draft(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, is_ca=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name + _SUFFIX)]), critical=False)
            .add_extension(both_ways, critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with os.fdopen(os.open(identity.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(plain)
        identity.certificate.write_bytes(certificate.public_bytes(pem))
    return identities
