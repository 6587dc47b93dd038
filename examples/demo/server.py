"""The demo's server: `tideserve serve` on free ports, in a folder of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

READY_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 30.0
_READY: Final = re.compile(r"^ready grpc=(\S+) http=(\S+)$", re.MULTILINE)


class DemoFailed(Exception):  # noqa: N818 - it is what happened
    """The demo did not show what it should."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready."""

    address: str
    http_address: str
    token: str
    log: Path


@contextmanager
def serving(
    repository: Path, autoscaler: Path, folder: Path, options: Sequence[str] = ()
) -> Iterator[Running]:
    """From the ready line to a graceful stop. `options` name the gRPC port, if not any free
    one. Raises `DemoFailed`."""
    state, log, out = folder / "run", folder / "server.log", folder / "server.out"
    state.mkdir(mode=0o700)
    command = [
        *(sys.executable, "-m", "tideserve.cli", "serve", str(repository)),
        *("--http-port=0", f"--autoscaler={autoscaler}", *(options or ("--grpc-port=0",))),
    ]
    with log.open("wb") as log_file, out.open("wb") as out_file:
        process = subprocess.Popen(
            command,
            stdout=out_file,
            stderr=log_file,
            env={**os.environ, "XDG_RUNTIME_DIR": str(state)},
            start_new_session=True,
        )
    try:
        ready = _wait_ready(process, out, log)
        port = ready[1].rpartition(":")[2]
        token = (state / "tideserve" / f"token-{port}").read_text(encoding="utf-8").strip()
        yield Running(f"127.0.0.1:{port}", ready[2], token, log)
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_TIMEOUT_S)
        if code != 0:
            raise DemoFailed(f"expected the server to end with 0, it ended with {code}: see {log}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_ready(process: "subprocess.Popen[bytes]", out: Path, log: Path) -> re.Match[str]:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        ready = _READY.search(out.read_text(encoding="utf-8"))
        if ready is not None:
            return ready
        time.sleep(0.05)
    tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise DemoFailed(f"expected a ready server in {READY_TIMEOUT_S:.0f} s, its log ends:\n{tail}")
