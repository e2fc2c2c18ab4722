"""HTTPS for keyed models: TLS 1.3, certificates of hosts; and what may go without it."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from pathlib import Path

from privtensors.errors import TransportError, UsageError


def https_server_context(certificate: Path, key: Path, *, authority: Path | None = None) -> ssl.SSLContext:
    """For a server that shows a certificate; with ``authority`` its callers must show one that this authority issued.

    Raises:
        TransportError: A file is missing, malformed or not a pair, or the key is open to other users.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate, key, authority)
    context.num_tickets = 0  # no resumption: every connection shows its certificate
    if authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def https_client_context(*, authority: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For a client: the server's certificate must carry the host's name and come from ``authority``, else from the system's.

    Raises:
        TransportError: A file is missing, malformed or not a pair, or the key is open to other users.
        UsageError: A certificate without its key, or the reverse.
    """
    if (certificate is None) != (key is None):
        raise UsageError("a certificate and its key go together", where="TLS", fix="Give both or none")
    context = _context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, authority)
    if authority is None:
        context.load_default_certs()
    return context


def _context(protocol: ssl._SSLMethod, certificate: Path | None, key: Path | None, authority: Path | None) -> ssl.SSLContext:
    for path in (certificate, key, authority):
        if path is not None and not path.is_file():
            raise TransportError(f"{path.name} is missing", where="TLS", fix=f"look for it in {path.parent}")
    if key is not None and os.name == "posix" and key.stat().st_mode & 0o007:
        raise TransportError(f"{key.name} is open to other users", where="TLS", fix=f"chmod 600 {key}")
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    try:
        if authority is not None:
            context.load_verify_locations(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        fix = "give PEM files; the key must belong to the certificate and have no password"
        raise TransportError(f"certificate, key or authority cannot be used ({reason})", where="TLS", fix=fix) from None
    return context


def _no_password() -> bytes:
    raise ssl.SSLError("the key is encrypted")  # the default would ask on the terminal


def is_loopback(host: str) -> bool:
    """Whether every address of ``host`` is of this machine alone. A name that cannot be resolved is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
        return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)
    except (OSError, ValueError, UnicodeError):
        return False


def check_plain(host: str, allowed: bool) -> None:
    """HTTP without TLS: keyed ids could be read, collected and changed on the way, so only within this machine unless asked for.

    Raises:
        UsageError: ``host`` is another machine, and HTTP was not asked for.
    """
    if not allowed and not is_loopback(host):
        fix = "Use HTTPS (a certificate for the server), or ask for plain HTTP: --insecure-http, insecure_http=True"
        raise UsageError("plain HTTP beyond this machine: everybody on the way could read and change keyed ids", where=host, fix=fix)
