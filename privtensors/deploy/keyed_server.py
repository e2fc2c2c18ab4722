"""A keyed model over HTTP or HTTPS: one forward at a time, bounded requests, typed errors, no id in any log.

``GET /v1/model`` says what is served. ``POST /v1/classify``, ``/v1/generate`` and ``/v1/embed`` compute. Guarantee class: heuristic, see
:mod:`privtensors.deploy.keyed_model`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

from privtensors.deploy.keyed_model import KeyedModel, accepted
from privtensors.deploy.keyed_requests import (
    JSON_TYPE,
    PIXELS_TYPE,
    KeyedLimits,
    Refusal,
    read_classify,
    read_generate,
    read_pixels,
)
from privtensors.deploy.keyed_tls import check_plain
from privtensors.deploy.rooms import LOG
from privtensors.deploy.service import Figures
from privtensors.deploy.turns import Turns
from privtensors.errors import PartyBusy, TransportError

_GLANCE_S: Final = 0.25
_GRACE_S: Final = 10.0
_DRAINED: Final = 1 << 26  # bytes of a refused body that are read and dropped, so that the answer is not lost by a reset
_CHUNK: Final = 1 << 16
_SOME: Final = 1 << 20  # bytes of a body whose length is not known
_MODEL: Final = "/v1/model"
_PATHS: Final = (_MODEL, "/v1/classify", "/v1/generate", "/v1/embed")
_KINDS: Final = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 414: "too_large", 431: "too_large"}


class KeyedServer:
    """Serves one keyed model until :meth:`stop`.

    Args:
        folder: The server folder.
        address: Host and port; port 0 takes a free one.
        context: For HTTPS, see :func:`~privtensors.deploy.keyed_tls.https_server_context`; None for plain HTTP.
        insecure_http: Allow plain HTTP beyond this machine.
        limits: See :class:`KeyedLimits`.
        device: Where to compute; default the CPU.

    Raises:
        UsageError: Plain HTTP beyond this machine that was not asked for.
        FileFormatError: The folder is half-written, or its weights are not those of its manifest.
        UnpairedFolders: It is a client folder.
        InvalidInput: No model can be loaded from it, or its task cannot be served.
        TransportError: The address cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        context: ssl.SSLContext | None = None,
        insecure_http: bool = False,
        limits: KeyedLimits | None = None,
        device: str | None = None,
    ) -> None:
        if context is None:
            check_plain(address[0], insecure_http)
        self.limits = limits or KeyedLimits()
        self.model = KeyedModel(Path(folder), device=device)
        self.turns = Turns(1, self.limits.waiting)
        self._figures = Figures()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        try:
            self._http = _Http(address, self, context)
        except OSError as error:
            what = f"cannot listen there ({error.strerror or type(error).__name__})"
            raise TransportError(what, where=f"{address[0]}:{address[1]}", fix="choose another address, or port 0") from None
        self._secure = context is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._http.finish()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens at."""
        host, port = self._http.server_address[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """What a client is given."""
        host, port = self.address
        return f"{'https' if self._secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def ending(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._ending.is_set()

    def stop(self) -> None:
        """Take no more requests; safe in a signal handler."""
        self._ending.set()

    def run(self) -> None:
        """Serve until :meth:`stop`. A classification that runs is answered, a generation is given up."""
        while not self.ending:
            self._http.handle_request()
            self._http.end_overdue()
        self._http.finish()

    def figures(self) -> Figures:
        """What was done so far; rounds and bytes are 0."""
        with self._lock:
            return dataclasses.replace(self._figures, sessions=self._http.open, running=self.turns.running, waiting=self.turns.length)

    def count(self, status: int, seconds: float) -> None:
        """Note one answer."""
        with self._lock:
            name = "served" if status < 400 else "failed" if status == 500 else "refused"
            setattr(self._figures, name, getattr(self._figures, name) + 1)
            if status < 400:
                self._figures.last_s = seconds

    def answer(self, path: str, media_type: str, body: bytes) -> tuple[dict[str, Any], str]:
        """The answer to a request as JSON values, and its size for the log.

        Raises:
            Refusal: With the reason.
        """
        if self.ending:
            raise Refusal(503, "stopping", "the server ends")
        info, limits = self.model.info, self.limits
        if path not in accepted(info):
            raise Refusal(404, "wrong_task", f"this server does {info.task}, at {', '.join(accepted(info))}")
        if path == "/v1/generate":
            request = read_generate(body, info.bounds, limits, info.key_id)
            with self._turn():
                ids = self.model.generate(request, limits.compute_s, lambda: self.ending)
            return {"key_id": info.key_id, "output_ids": ids}, request.size
        read = read_pixels if media_type == PIXELS_TYPE else read_classify
        asked = read(body, info.bounds, limits, info.key_id)
        with self._turn():
            if path == "/v1/embed":
                return {"key_id": info.key_id, "embeddings": self.model.embed(asked).tolist()}, asked.size
            logits = self.model.classify(asked)
        values = {"labels": logits.argmax(-1).tolist()} if asked.outputs == "labels" else {"logits": logits.tolist()}
        return {"key_id": info.key_id, **values}, asked.size

    @contextlib.contextmanager
    def _turn(self) -> Any:
        try:
            with self.turns.turn() as turn:
                while not turn.ready(_GLANCE_S):
                    if self.ending:
                        raise Refusal(503, "stopping", "the server ends")
                yield
        except PartyBusy:
            raise Refusal(503, "busy", "too many requests wait already") from None


class _Http(ThreadingHTTPServer):
    """The listening socket and the connections that are open, each with the time by which its next step is due."""

    daemon_threads = True
    request_queue_size = 64
    timeout = _GLANCE_S

    def __init__(self, address: tuple[str, int], service: KeyedServer, context: ssl.SSLContext | None) -> None:
        self.service, self.context = service, context
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        self._workers: dict[threading.Thread, None] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the reverse look-up of http.server, which may take seconds."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def open(self) -> int:
        """Connections open now."""
        with self._lock:
            return len(self._open)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A caller; where there is TLS, the thread of the connection makes the handshake."""
        sock, caller = self.socket.accept()
        sock.settimeout(self.service.limits.request_s)
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, caller

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room."""
        room = self.open < self.service.limits.connections
        if not room:
            LOG.warning("closed a connection: %d are open", self.service.limits.connections)
            self.service.count(503, 0.0)
        return room

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection."""
        self.due(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            with self._lock:
                self._open.pop(request, None)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The whole life of a connection."""
        with self._lock:
            self._workers[threading.current_thread()] = None
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)
                self._workers.pop(threading.current_thread(), None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's mistake; anything else is ours, and only its type is logged."""
        error = sys.exception()
        if isinstance(error, ssl.SSLError):
            LOG.warning("turned away a caller: no TLS session (%s)", error.reason or type(error).__name__)
        elif not isinstance(error, OSError):
            LOG.error("a connection ended: %s", type(error).__name__, exc_info=LOG.isEnabledFor(10))

    def due(self, request: socket.socket, *, ever: bool = False) -> None:
        """The connection's next step is due within ``request_s`` from now, or with ``ever`` at no time."""
        when = float("inf") if ever else time.monotonic() + self.service.limits.request_s
        with self._lock:
            self._open[request] = when

    def end_overdue(self) -> None:
        """End connections whose step is overdue: senders of a byte now and then keep no thread."""
        now = time.monotonic()
        self._interrupt(lambda when: when < now)

    def finish(self) -> None:
        """Close; what is computed may end."""
        self.server_close()
        deadline = time.monotonic() + _GRACE_S
        while self.open and time.monotonic() < deadline:
            self._interrupt(lambda when: when != float("inf"))
            time.sleep(0.02)
        self._interrupt(lambda _: True)
        with self._lock:
            threads = list(self._workers)
        for thread in threads:  # one within torch when the interpreter is taken down would abort the process
            thread.join(1)

    def _interrupt(self, chosen: Any) -> None:
        with self._lock:
            found = [sock for sock, when in self._open.items() if chosen(when)]
        for sock in found:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which takes TLS from under the reading thread


class _Handler(BaseHTTPRequestHandler):
    """One connection. Logs and answers quote nothing that a caller sent."""

    protocol_version = "HTTP/1.1"
    _unread = 0  # bytes of the body that a refusal leaves behind, so that the connection cannot go on
    disable_nagle_algorithm = True
    server: _Http

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        with self._told() as begun:
            if self.headers.get("Content-Length") is not None or self.headers.get("Transfer-Encoding") is not None:
                self._unread = _SOME
                raise Refusal(400, "bad_request", "GET has no body")
            if self.path != _MODEL:
                raise Refusal(405 if self.path in _PATHS else 404, "not_found", f"GET {_MODEL} says what is served")
            service = self.server.service
            self._send(200, service.model.info.to_dict(service.limits), begun, "")

    def do_POST(self) -> None:
        with self._told() as begun:
            self._unread = _SOME
            if self.path not in _PATHS or self.path == _MODEL:
                raise Refusal(405 if self.path == _MODEL else 404, "not_found", f"POST goes to {', '.join(_PATHS[1:])}")
            media_type = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
            if media_type not in (JSON_TYPE, PIXELS_TYPE):
                # Not for tidiness alone: a page in a browser on this machine cannot send these types without being allowed to.
                raise Refusal(415, "unsupported_media_type", f"Content-Type is {JSON_TYPE}, for pixels {PIXELS_TYPE}")
            body = self._body(media_type)
            self.server.due(self.connection, ever=True)  # until it is answered; sending has the socket's own timeout
            answer, size = self.server.service.answer(self.path, media_type, body)
            self._send(200, answer, begun, size)

    def _body(self, media_type: str) -> bytes:
        limits, lengths = self.server.service.limits, self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") is not None or len(lengths) != 1:
            raise Refusal(411, "length_required", "state one Content-Length, without Transfer-Encoding")
        text, most = lengths[0].strip(), 1024 * (limits.pixels_kib if media_type == PIXELS_TYPE else limits.body_kib)
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            raise Refusal(400, "bad_request", "Content-Length is no number")
        if int(text) > most:
            self._unread = int(text)
            raise Refusal(413, "too_large", f"a body has at most {most} bytes")
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            raise ConnectionResetError("the caller left within its request")
        self._unread = 0
        return body

    @contextlib.contextmanager
    def _told(self) -> Any:
        begun = time.perf_counter()
        try:
            yield begun
        except Refusal as refusal:
            self._fail(refusal.status, refusal.kind, refusal.message, begun)
        except OSError:  # the caller is gone
            self.close_connection = True
        except Exception as error:
            # The text of a foreign exception may quote a value: its type is enough for a log.
            LOG.error("a request failed: %s", type(error).__name__, exc_info=LOG.isEnabledFor(10))
            self._fail(500, "internal", "the request failed", begun)
        finally:
            self.server.due(self.connection)

    def _fail(self, status: int, kind: str, message: str, begun: float) -> None:
        if self._unread:
            self.close_connection = True
        with contextlib.suppress(OSError):
            self._send(status, {"error": {"type": kind, "message": message}}, begun, kind)
            left = min(self._unread, _DRAINED)
            while left > 0 and (chunk := self.rfile.read(min(left, _CHUNK))):
                left -= len(chunk)

    def _send(self, status: int, answer: dict[str, Any], begun: float, note: str) -> None:
        seconds = time.perf_counter() - begun
        self.close_connection = self.close_connection or self.server.service.ending
        body = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
        self.server.service.count(status, seconds)
        LOG.info("%s %d %s %.3f s", self.path if self.path in _PATHS else "another path", status, note, seconds)
        self.send_response_only(status)
        for name, value in (
            ("Content-Type", JSON_TYPE),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *((("Retry-After", "1"),) if status == 503 else ()),
            *((("Connection", "close"),) if self.close_connection else ()),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses (a malformed request line, an unknown method); its own text would quote the request."""
        self.close_connection = True
        status = 405 if code == 501 else int(code)
        self.command, self.path = self.command or "", getattr(self, "path", "")
        self.request_version = "HTTP/1.1"
        self._fail(status, _KINDS.get(status, "bad_request"), "this is no request that is understood", time.perf_counter())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: :meth:`_send` logs without quoting the caller."""
