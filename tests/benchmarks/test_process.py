"""A server process: ready, weighed, stopped with all that it started."""

import sys
from pathlib import Path

import pytest

from benchmarks.errors import ServerFailedError
from benchmarks.process import ServerProcess, free_port

# Starts a child in a session of its own, which would outlive it, and says the child's pid.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print("pid", child.pid, "ready", flush=True)
time.sleep(600)
"""


def test_stop_ends_what_the_server_started_too(tmp_path: Path) -> None:
    log = tmp_path / "server" / "log"
    process = ServerProcess([sys.executable, "-S", "-c", PARENT], {}, log)
    process.start(lambda printed: "ready" in printed)
    child = int(log.read_text().split()[1])
    assert process.cpu_seconds() >= 0.0
    process.stop()
    process.stop()
    # Gone, or a zombie where the machine's first process reaps none.
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_server_that_ends_early_is_quoted(tmp_path: Path) -> None:
    arguments = [sys.executable, "-S", "-c", "raise SystemExit('no models here')"]
    process = ServerProcess(arguments, {}, tmp_path / "log")
    with pytest.raises(ServerFailedError, match=r"(?s)ended with 1 before .*no models here"):
        process.start(lambda _: False)


def test_a_server_that_is_gone_has_no_cpu_time(tmp_path: Path) -> None:
    process = ServerProcess([sys.executable, "-S", "-c", "print('x')"], {}, tmp_path / "log")
    with pytest.raises(ServerFailedError, match="ended while it was measured"):
        process.cpu_seconds()


def test_a_free_port_can_be_had() -> None:
    assert 1024 <= free_port() <= 65535
