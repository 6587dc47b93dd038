"""The autoscaler's HTTP server: metrics, the decision log, logs of replicas."""

import hmac
import json
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tideserve.autoscaler.errors import AutoscalerError, NoSuchReplicaError, SettingsError

_LOG: Final = logging.getLogger(__name__)
MAX_LINES: Final = 5000
DEFAULT_LINES: Final = 200
MAX_CALLERS: Final = 64
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_CALLER_TIMEOUT_S: Final = 5.0
_MAX_DIGITS: Final = 9


class Decisions(Protocol):
    """`DecisionLog`, to the server."""

    def recent(self, count: int) -> list[dict[str, Any]]:
        """The newest entries, oldest first."""


class HttpServer:
    """Owns one port from `start` to `close`; answers on threads of its own.

    /metrics, /healthz and /decisions?count=N are for anyone who reaches the port; logs of
    replicas (/replicas/ID/log?lines=N) need `Authorization: Bearer TOKEN`. `fall_back`: takes
    any port where its own is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        token: str,
        registry: CollectorRegistry,
        journal: Decisions,
        log_of: Callable[[str, int], tuple[str, ...]],
        fall_back: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._token = token
        self._registry = registry
        self._journal = journal
        self._log_of = log_of
        self._fall_back = fall_back
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """HOST:PORT; empty before `start`."""
        if self._server is None:
            return ""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._server.server_address[1]}"

    def start(self) -> None:
        """Binds and answers. Raises `SettingsError`."""
        self._server = self._bind()
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http"
        )
        self._thread.start()
        _LOG.info("metrics and decisions at http://%s", self.address)

    def close(self) -> None:
        """Unbinds; calls under way are finished."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def answer(self, target: str, authorization: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of a GET."""
        try:
            url = urlsplit(target)
        except ValueError as error:  # "//[", for one
            return _words(HTTPStatus.BAD_REQUEST, f"expected a path, got {target!r}: {error}")
        query = parse_qs(url.query)
        parts = url.path.strip("/").split("/")
        match parts:
            case ["healthz"]:
                return HTTPStatus.OK, _TEXT, b"ok\n"
            case ["metrics"]:
                encode, content_type = choose_encoder(accept)
                return HTTPStatus.OK, content_type, encode(self._registry)
            case ["decisions"]:
                body = json.dumps(self._journal.recent(_number(query, "count", 100)))
                return HTTPStatus.OK, _JSON, body.encode()
            case ["replicas", replica_id, "log"]:
                return self._log(unquote(replica_id), query, authorization)
            case _:
                return _words(
                    HTTPStatus.NOT_FOUND,
                    "expected /metrics, /healthz, /decisions or /replicas/ID/log",
                )

    def _log(
        self, replica_id: str, query: dict[str, list[str]], authorization: str
    ) -> tuple[HTTPStatus, str, bytes]:
        expected = f"Bearer {self._token}".encode()
        if not hmac.compare_digest(authorization.encode("utf-8", "replace"), expected):
            return _words(HTTPStatus.UNAUTHORIZED, "expected Authorization: Bearer TOKEN")
        try:
            lines = self._log_of(replica_id, _number(query, "lines", DEFAULT_LINES))
        except NoSuchReplicaError as error:
            return _words(HTTPStatus.NOT_FOUND, str(error))
        except AutoscalerError as error:
            return _words(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return HTTPStatus.OK, _TEXT, "".join(f"{line}\n" for line in lines).encode()

    def _bind(self) -> ThreadingHTTPServer:
        try:
            return _Server((self._host, self._port), _handler(self))
        except OSError as error:
            if not self._fall_back:
                raise SettingsError(
                    f"--http-port: cannot listen on {self._host}:{self._port}: {error}; "
                    "choose another, or 0 for any free one"
                ) from error
            _LOG.warning("port %d is taken (%s): taking another", self._port, error)
            return _Server((self._host, 0), _handler(self))


class _Server(ThreadingHTTPServer):
    """A thread a caller, for at most `MAX_CALLERS` at a time: others find the door closed."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CALLERS

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_CALLERS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


def _handler(server: HttpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CALLER_TIMEOUT_S

        def do_GET(self) -> None:
            status, content_type, body = server.answer(
                self.path,
                self.headers.get("Authorization", ""),
                self.headers.get("Accept", ""),
            )
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            _LOG.debug(format, *args)

    return Handler


def _number(query: dict[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [""])[-1]
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return min(MAX_LINES, int(text)) if is_number else default


def _words(status: HTTPStatus, text: str) -> tuple[HTTPStatus, str, bytes]:
    return status, _TEXT, f"{text}\n".encode()
