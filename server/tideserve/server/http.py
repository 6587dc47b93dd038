"""The HTTP port: /metrics for Prometheus, /healthz and /readyz for whoever restarts us."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from tideserve.server.errors import AddressInUseError

logger = logging.getLogger(__name__)

# A client that sends or reads nothing for so long loses its connection and its thread.
SOCKET_TIMEOUT_S: Final = 10.0
# Each has a thread for as long as it lasts. One more ends the oldest: a client that sends a
# byte now and then passes every time-out, and a request that is meant takes milliseconds.
MAX_CONNECTIONS: Final = 256
# How long a connection that was shut down may take to end its thread.
LAST_WORDS_S: Final = 1.0


class HttpServer:
    """Owns the port and its threads. `why_not_ready` gives None or a sentence."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        why_not_ready: Callable[[], str | None],
    ) -> None:
        self._host = host
        self._port = port
        self._metrics = make_wsgi_app(registry)
        self._why_not_ready = why_not_ready
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The bound port; the configured one before `start`."""
        return self._port if self._server is None else self._server.server_port

    def start(self) -> None:
        """Binds and serves. Raises `AddressInUseError`."""
        try:
            family = _Server6 if ":" in self._host else _Server
            self._server = make_server(self._host, self._port, self._answer, family, _Handler)
        except OSError as error:
            raise AddressInUseError(
                f"the HTTP port {self._host}:{self._port} cannot be bound ({error.strerror}): "
                "stop what uses it or give another --http-port"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http"
        )
        self._thread.start()

    def close(self) -> None:
        """Unbinds, ends the connections that are left and all threads."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def _answer(
        self, environment: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "HEAD":
            return self._get(environment, start_response)
        # As GET, less the body, which the library would send.
        heads: list[tuple[str, list[tuple[str, str]]]] = []

        def keep(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
            heads.append((status, headers))
            return lambda _: None

        body = self._get({**environment, "REQUEST_METHOD": "GET"}, keep)
        status, headers = heads[0]
        kept = [(name, value) for name, value in headers if name != "Content-Length"]
        start_response(status, [*kept, ("Content-Length", str(sum(map(len, body))))])
        return []

    def _get(self, environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        if path not in ("/metrics", "/healthz", "/readyz"):
            return _text(start_response, "404 Not Found", "there are /metrics, /healthz, /readyz")
        if environment["REQUEST_METHOD"] != "GET":
            return _text(
                start_response,
                "405 Method Not Allowed",
                "GET and HEAD only",
                ("Allow", "GET, HEAD"),
            )
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environment, start_response)
            return answer
        reason = self._why_not_ready() if path == "/readyz" else None
        if reason is not None:
            return _text(start_response, "503 Service Unavailable", reason)
        return _text(start_response, "200 OK", "ok")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Not the library's 5: connections beyond it wait a second for the kernel's next try.
    request_queue_size = 128

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # By age. The accepting thread adds, each connection's own takes itself away. First, as
        # the library closes the server where it cannot bind.
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, in place of the oldest where there are too many."""
        if len(self._open) >= MAX_CONNECTIONS:
            logger.debug("more than %d HTTP connections: the oldest ends", MAX_CONNECTIONS)
            self._end(list(self._open.items())[:1])
        if len(self._open) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="http-client",
            daemon=True,
        )
        self._open[request] = thread
        try:
            thread.start()
        except RuntimeError:
            # No more threads on this machine: the library closes the connection.
            del self._open[request]
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves the connection on its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._open[request]

    def server_close(self) -> None:
        """Unbinds and ends the connections that are left."""
        super().server_close()
        self._end(list(self._open.items()))

    def _end(self, connections: Sequence[tuple[socket.socket, threading.Thread]]) -> None:
        for connection, _ in connections:
            # Its thread may just have closed it.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        until_s = time.monotonic() + LAST_WORDS_S
        for _, thread in connections:
            thread.join(max(0.0, until_s - time.monotonic()))

    def handle_error(self, _: object, client_address: object) -> None:
        """A client that broke off or fell silent is not worth a traceback on stderr."""
        logger.debug("the HTTP client %s was lost", client_address, exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = SOCKET_TIMEOUT_S

    def log_message(self, *_: Any) -> None:
        """A scrape is not worth a line."""


def _text(
    start_response: StartResponse, status: str, text: str, *headers: tuple[str, str]
) -> list[bytes]:
    body = f"{text}\n".encode()
    start_response(
        status,
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            *headers,
        ],
    )
    return [body]
