"""A server with one replica that tells something of itself when it is asked by a signal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.errors import ServerFailedError
from benchmarks.process import ServerProcess, free_port

_TELL_TIMEOUT_S: Final = 30.0


def serve_telling(tell: Callable[[], Mapping[str, object]]) -> None:
    """The server's end: `python -m MODULE FILE serve ...` hands argv on to the command line, and
    at each SIGUSR1 writes to FILE, as JSON, what `tell` says."""
    from tideserve.cli.__main__ import main as tideserve

    into = Path(sys.argv.pop(1))

    def write(*_: object) -> None:
        new = into.with_suffix(".new")
        new.write_text(json.dumps(tell()))
        new.rename(into)

    signal.signal(signal.SIGUSR1, write)
    tideserve()


class TellingServer:
    """The process ids of both, and a way to ask."""

    def __init__(self, frontend: int, address: str, told: Path) -> None:
        self.address = address
        self.frontend = frontend
        self.replica = _replica_pid(address)
        self._told = told

    def tell(self) -> dict[str, Any]:
        """What it says now. Raises ServerFailedError where it says nothing."""
        self._told.unlink(missing_ok=True)
        os.kill(self.frontend, signal.SIGUSR1)
        give_up_s = time.monotonic() + _TELL_TIMEOUT_S
        while not self._told.exists():
            if time.monotonic() > give_up_s:
                raise ServerFailedError(f"the server told nothing within {_TELL_TIMEOUT_S} s")
            time.sleep(0.01)
        said: dict[str, Any] = json.loads(self._told.read_text())
        return said


@contextmanager
def telling(module: str, folder: Path, options: Sequence[str] = ()) -> Iterator[TellingServer]:
    """Serves `folder`/models by `module`, until the end."""
    address, told = f"127.0.0.1:{free_port()}", folder / "told.json"
    arguments = [
        *(sys.executable, "-m", module, str(told), "serve", str(folder / "models")),
        f"--grpc-port={address.rpartition(':')[2]}",
        *("--http-port=0", "--replicas=1", *options),
    ]
    process = ServerProcess(arguments, {}, folder / "log")
    process.start(lambda printed: "ready grpc=" in printed)
    try:
        yield TellingServer(process.pid, address, told)
    finally:
        process.stop()


def _replica_pid(address: str) -> int:
    tideserve = str(Path(sys.executable).with_name("tideserve"))
    out = subprocess.run(
        [tideserve, "replicas", "--json", "--address", address],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (replica,) = json.loads(out)
    pid: int = replica["pid"]
    return pid
