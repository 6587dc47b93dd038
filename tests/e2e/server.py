"""A real server process for a test, and what a test does to it."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import psutil

from tideserve.v1.control_pb2 import READY, Snapshot, WatchRequest
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL_SERVICE

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
# Of every server of these tests: the same tests with another front or link (`make test-links`).
EXTRA_OPTIONS = "TIDESERVE_TEST_SERVE_OPTIONS"


class Server:
    """Owns one `tideserve serve` with all its processes."""

    def __init__(self, repository: Path, state: Path, options: Sequence[str]) -> None:
        self.repository = repository
        self.state = state
        self.grpc_port = 0
        self.http_port = 0
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def token(self) -> str:
        return (self.state / "tideserve" / f"token-{self.grpc_port}").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        """Of every command that shall meet this server."""
        return {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.state),
            "XDG_CACHE_HOME": str(self.state / "cache"),
        }

    def start(self) -> None:
        """Starts it on free ports, or on those it had."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "tideserve.cli",
            "serve",
            str(self.repository),
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self.http_port}",
            # A test's own come after these, and win.
            *shlex.split(os.environ.get(EXTRA_OPTIONS, "")),
            *self._options,
        ]
        with self._log_path.open("ab") as log, self._out_path.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=log, env=self.environment, start_new_session=True
            )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits for the ready line and learns the ports."""
        assert self._process is not None

        def look() -> bool:
            assert self._process is not None
            match = re.search(
                r"^ready grpc=\S+:(\d+) http=\S+:(\d+)$", self._out_path.read_text(), re.MULTILINE
            )
            if match is not None:
                self.grpc_port, self.http_port = int(match[1]), int(match[2])
                return True
            assert self._process.poll() is None, f"the server ended:\n{self.log}"
            return False

        wait_until(look, timeout_s, lambda: f"no ready line:\n{self.log}")

    def wait_end(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to stop and gives the exit code."""
        self.send(number)
        return self.wait_end()

    def snapshot(self) -> Snapshot:
        """What the frontend tells its autoscaler, now."""
        with grpc.insecure_channel(self.address) as channel:
            watch = channel.unary_stream(
                f"/{CONTROL_SERVICE}/Watch",
                request_serializer=WatchRequest.SerializeToString,
                response_deserializer=Snapshot.FromString,
            )
            call = watch(WatchRequest(), metadata=((TOKEN_METADATA_KEY, self.token),), timeout=10)
            first = next(iter(call))
            call.cancel()
            return first

    def ready_pids(self, model: str) -> list[int]:
        """Processes of the model's READY replicas."""
        return [
            replica.pid
            for replica in self.snapshot().replicas
            if replica.model == model and replica.state == READY
        ]

    def processes(self) -> list[psutil.Process]:
        """Everything that carries this server's state folder in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("XDG_RUNTIME_DIR") == str(self.state):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def close(self) -> None:
        """Ends it, whatever state it is in, with all that it started."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in self.processes():
            process.kill()

    @property
    def _log_path(self) -> Path:
        return self.state / "serve.log"

    @property
    def _out_path(self) -> Path:
        return self.state / "serve.out"


def wait_until(
    is_true: Callable[[], bool], timeout_s: float, describe: Callable[[], str] = lambda: ""
) -> None:
    """Polls real processes; fails with the description."""
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {describe()}"
        time.sleep(0.02)
