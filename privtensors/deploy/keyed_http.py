"""One connection to a keyed server: bounded, not retried, and it gives no id away before the server's key id is the right one."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

from privtensors.deploy.keyed_requests import JSON_TYPE
from privtensors.deploy.keyed_tls import check_plain
from privtensors.errors import (
    FrameError,
    PartyBusy,
    PeerLost,
    PeerTimeout,
    RequestRefused,
    TransportError,
    UnpairedFolders,
    UsageError,
    VersionMismatch,
)
from privtensors.transport.tls import transport_error

_LARGEST_ANSWER: Final = 1 << 28
_SHOWN: Final = 200  # characters of a server's message


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a keyed server is and how it is reached.

    Attributes:
        host: Name or address.
        port: TCP port.
        context: For HTTPS; None for plain HTTP.
        tls_name: The name that the server's certificate must carry, where that is not ``host``.
        timeout: Seconds to connect, and to wait for the next bytes of an answer.
    """

    host: str
    port: int
    context: ssl.SSLContext | None = field(repr=False, default=None)
    tls_name: str | None = None
    timeout: float = 60.0

    @classmethod
    def parse(cls, url: str, context: ssl.SSLContext | None, *, tls_name: str | None, insecure_http: bool, timeout: float) -> Endpoint:
        """From ``"http://HOST:PORT"`` or ``"https://HOST:PORT"``; ``context`` is used for HTTPS only.

        Raises:
            UsageError: It is no such URL, or plain HTTP beyond this machine that was not asked for.
        """
        fix = "Write http://HOST:PORT or https://HOST:PORT"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UsageError("it is no URL", where="server", fix=fix) from None
        extra = parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None
        if parts.scheme not in ("http", "https") or not host or extra:
            raise UsageError("it is no URL of a keyed server", where="server", fix=fix)
        if parts.scheme == "http":
            check_plain(host, insecure_http)
            return cls(host, port or 80, None, None, timeout)
        return cls(host, port or 443, context, tls_name, timeout)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Secure(http.client.HTTPSConnection):
    """HTTPS whose certificate may be checked for another name than the one that is called."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext) -> None:
        super().__init__(endpoint.host, endpoint.port, timeout=endpoint.timeout, context=context)
        self._privtensors = endpoint, context

    def connect(self) -> None:
        endpoint, context = self._privtensors
        sock = socket.create_connection((endpoint.host, endpoint.port), endpoint.timeout)
        try:
            self.sock = context.wrap_socket(sock, server_hostname=endpoint.tls_name or endpoint.host)
        except BaseException:
            sock.close()
            raise


class KeyedConnection:
    """A connection on which :meth:`check` comes first: what follows goes to the process that answered it.

    Environment variables for proxies are not looked at, redirects are not followed, nothing is sent twice.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        if endpoint.context is None:
            self._http: http.client.HTTPConnection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=endpoint.timeout)
        else:
            self._http = _Secure(endpoint, endpoint.context)
        self._checked = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def check(self, key_id: str, weights: str) -> dict[str, Any]:
        """What the server says about its model, after that it is the model of this key and conversion. Nothing of the client's is sent.

        Raises:
            UnpairedFolders: The server has a model of another key or conversion.
            TransportError: See :meth:`post`.
        """
        found = self._exchange("GET", "/v1/model", None, JSON_TYPE)
        if found.get("format") != "privtensors keyed model":
            raise FrameError("what answers is no keyed server", where=str(self._endpoint), fix="check the address")
        if found.get("version") != 1:
            raise VersionMismatch("the server speaks another version", where=str(self._endpoint), fix="install the same release at both")
        fix = "Use the client folder and the server folder of one conversion or rotation"
        if found.get("key_id") != key_id:
            what = f"the server has the model of another key, this client has {key_id}; nothing was sent"
            raise UnpairedFolders(what, where=str(self._endpoint), fix=fix)
        if found.get("weights") != weights:
            what = "the server has weights of another conversion under this key; nothing was sent"
            raise UnpairedFolders(what, where=str(self._endpoint), fix=fix)
        self._checked = key_id
        return found

    def post(self, path: str, body: bytes, media_type: str = JSON_TYPE) -> dict[str, Any]:
        """The server's answer.

        Raises:
            UsageError: :meth:`check` did not come first.
            PeerLost: The server cannot be reached, or ended the connection.
            PeerTimeout: Nothing came within ``timeout``.
            WrongPeer: A certificate was refused.
            PartyBusy: Too many requests wait there, or the server ends.
            RequestRefused: The server does not take the request.
            UnpairedFolders: It was started anew with the model of another key.
            FrameError: What came is no answer.
        """
        if not self._checked:
            raise UsageError("the server's key id was not checked", where=str(self._endpoint), fix="call check() first")
        found = self._exchange("POST", path, body, media_type)
        if found.get("key_id") != self._checked:
            raise UnpairedFolders("the answer is of another key", where=str(self._endpoint), fix="Start again")
        return found

    def _exchange(self, method: str, path: str, body: bytes | None, media_type: str) -> dict[str, Any]:
        where = str(self._endpoint)
        headers = {"Accept": JSON_TYPE} if body is None else {"Accept": JSON_TYPE, "Content-Type": media_type}
        try:
            self._http.request(method, path, body, headers)
            response = self._http.getresponse()
            raw = response.read(_LARGEST_ANSWER + 1)
        except TimeoutError:
            raise PeerTimeout(f"no answer within {self._endpoint.timeout:g} s", where=where, fix="try again, or wait longer") from None
        except ConnectionRefusedError:
            raise PeerLost("nothing listens there", where=where, fix="start the server: privtensors serve --keyed FOLDER") from None
        except socket.gaierror:
            raise PeerLost("the host's name cannot be resolved", where=where, fix="check the address") from None
        except http.client.RemoteDisconnected:  # also an OSError, but TLS has no part in it
            raise PeerLost("the connection was lost", where=where, fix="start the server again and repeat the request") from None
        except OSError as error:
            raise transport_error(error, where) from None
        except (http.client.HTTPException, ValueError):
            raise FrameError("what answers does not speak HTTP", where=where, fix="check the address, and whether it is https") from None
        if len(raw) > _LARGEST_ANSWER:
            raise FrameError("the answer is too large", where=where, fix="ask for less at a time")
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise FrameError("the answer is no JSON object", where=where, fix="check the address")
        if response.status != 200:
            raise _refused(response.status, found, where)
        return found


def _refused(status: int, found: dict[str, Any], where: str) -> TransportError | UnpairedFolders:
    error = found.get("error")
    told = error if isinstance(error, dict) else {}
    text = "".join(c for c in str(told.get("message", "")) if c.isprintable())[:_SHOWN] or f"HTTP status {status}"
    if status == 409:
        return UnpairedFolders(f"the server refuses: {text}", where=where, fix="Use the folders of one conversion or rotation")
    if status == 503:
        return PartyBusy(f"the server refuses for now: {text}", where=where, fix="try again later")
    if status >= 500:
        return TransportError(f"the server failed: {text}", where=where, fix="look into the server's log")
    return RequestRefused(f"the server refuses: {text}", where=where, fix="change the request")
