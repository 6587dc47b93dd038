"""The HTTP port: /metrics for Prometheus, /healthz and /readyz for whoever restarts us."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from tideserve.server.errors import AddressInUseError

logger = logging.getLogger(__name__)

# A client that sends or reads nothing for so long loses its connection and its thread.
SOCKET_TIMEOUT_S: Final = 10.0
# Each has a thread for as long as it lasts.
MAX_CONNECTIONS: Final = 256


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
        """Unbinds and ends the thread."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def _answer(
        self, environment: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        if path not in ("/metrics", "/healthz", "/readyz"):
            return _text(start_response, "404 Not Found", "there are /metrics, /healthz, /readyz")
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _text(start_response, "405 Method Not Allowed", "GET only")
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
        super().__init__(*arguments, **options)
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or its end where there are too many already."""
        if not self._free.acquire(blocking=False):
            logger.warning("more than %d HTTP connections: one is closed", MAX_CONNECTIONS)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves the connection on its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, _: object, client_address: object) -> None:
        """A client that broke off or fell silent is not worth a traceback on stderr."""
        logger.debug("the HTTP client %s was lost", client_address, exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = SOCKET_TIMEOUT_S

    def log_message(self, *_: Any) -> None:
        """A scrape is not worth a line."""


def _text(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    start_response(
        status,
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]
