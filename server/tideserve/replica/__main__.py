"""Starts a replica: from the command line, or in a child that a launcher forked.

A forked child calls `run` and must not pay for what only the command line needs: typer is
imported with `command`, when `replica` is asked for.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

from tideserve.replica.errors import SettingsError
from tideserve.replica.process import Process
from tideserve.replica.settings import ExitCode, ReplicaSettings

__all__ = ["ReplicaSettings", "main", "run"]

_LOG: Final = logging.getLogger("tideserve.replica")


def run(settings: ReplicaSettings) -> int:
    """A replica's whole life; returns its `ExitCode`.

    Writes its log, and whatever the model prints, to `log_file`, else to stderr. SIGTERM
    drains; SIGINT too when started by hand, while a launched replica leaves the terminal's
    Ctrl-C to the server.
    """
    if settings.log_file is not None:
        _redirect_output(settings.log_file)
    _start_log()
    try:
        settings.check()
    except SettingsError as error:
        _LOG.error("%s", error)
        return ExitCode.BAD_SETTINGS
    process = Process(settings)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: process.ask_to_leave())
        if settings.launched_at is None:
            signal.signal(signal.SIGINT, lambda *_: process.ask_to_leave())
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process.run()


def main(settings: ReplicaSettings) -> None:
    """`run`, then ends the process without waiting for threads that a model or a runtime
    may have left in a call."""
    code = run(settings)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect_output(path: Path) -> None:
    """Runtimes write to file descriptors 1 and 2 past Python's streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _start_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    _LOG.handlers = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False


def __getattr__(name: str) -> Any:
    """The entry point `tideserve.replica.__main__:replica`."""
    if name == "replica":
        from tideserve.replica.command import replica

        return replica
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    from tideserve.replica.command import app

    app()
