"""`tideserve autoscale`, and `python -m tideserve.autoscaler` as a child of the server.

Exit codes: 0 after a graceful stop, when a newer autoscaler took over, or when the parent
process is gone (the replicas stay in the last two cases); 2 for an option, a state folder or
a token that does not work; 1 for a defect.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import typer

from tideserve.autoscaler.core.fixed import FixedCount
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.errors import AutoscalerError, SettingsError
from tideserve.autoscaler.launchers.process import ProcessLauncher, ProcessSettings
from tideserve.autoscaler.loop import Ending, Loop, LoopSettings
from tideserve.autoscaler.sources.frontend import (
    FrontendControl,
    FrontendSettings,
    FrontendWatch,
    open_channel,
)
from tideserve.autoscaler.wake import Wake

_LOG: Final = logging.getLogger("tideserve.autoscaler")
_BAD_SETTINGS: Final = 2
_MAX_REPLICAS: Final = 4096
_LEVELS: Final = ("debug", "info", "warning", "error")
# Libraries size their pools by these when they are imported, in the forkserver.
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def autoscale(
    address: Annotated[
        str,
        typer.Option(envvar="TIDESERVE_ADDRESS", help="HOST:PORT of the frontend."),
    ] = "127.0.0.1:8001",
    replicas: Annotated[
        int, typer.Option(min=0, max=_MAX_REPLICAS, help="Replicas of each model version.")
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of each replica's model; by default cores / replicas."),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="Indexes such as 0,1: replicas take turns on them.")
    ] = "",
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for records and logs of replicas. By default tideserve/replicas-PORT in "
            "the user's runtime or state folder."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the frontend's token; by default $TIDESERVE_TOKEN."),
    ] = None,
    start_timeout_s: Annotated[
        float, typer.Option(min=1.0, help="A replica that is not READY by then is replaced.")
    ] = 120.0,
    drain_timeout_s: Annotated[
        float, typer.Option(min=0.0, help="How long a stop waits for replicas to finish.")
    ] = 10.0,
    child: Annotated[
        bool,
        typer.Option("--child", help="Leave when the parent process dies; ignore SIGINT."),
    ] = False,
    log_level: Annotated[str, typer.Option(help="One of debug, info, warning, error.")] = "info",
) -> None:
    """Keep a fixed number of replicas for every model version that a frontend serves."""
    try:
        _set_up_logging(log_level)
        port = _port_of(address)
        frontend = FrontendSettings(
            address=address, token=_token(token_file), generation=time.time_ns()
        )
        count = threads or max(1, len(os.sched_getaffinity(0)) // max(1, replicas))
        for variable in _THREAD_VARIABLES:
            os.environ.setdefault(variable, str(count))
        settings = LoopSettings(
            address=address,
            token=frontend.token,
            threads=count,
            stop_timeout_s=drain_timeout_s,
            rules=Rules(start_timeout_s=start_timeout_s, devices=_devices(gpus)),
        )
        launching = ProcessSettings(state_dir or _default_state_dir(port))
        ending = _run(frontend, settings, launching, FixedCount(replicas), child=child)
    except AutoscalerError as error:
        typer.echo(f"tideserve autoscale: {error}", err=True)
        raise typer.Exit(_BAD_SETTINGS) from error
    _LOG.info("ended: %s", ending.value)


def _run(
    frontend: FrontendSettings,
    settings: LoopSettings,
    launching: ProcessSettings,
    policy: FixedCount,
    *,
    child: bool,
) -> Ending:
    """Starts the parts, runs the loop, closes the parts in reverse order."""
    parent = os.getppid()
    wake = Wake()
    channel = open_channel(frontend)
    try:
        launcher = ProcessLauncher(launching, on_exit=wake.ring)
        watch = FrontendWatch(channel, frontend, on_change=wake.ring)
        loop = Loop(
            watch,
            watch,
            FrontendControl(channel, frontend),
            launcher,
            policy,
            settings,
            wake,
            life=frontend.generation,
            orphaned=lambda: child and os.getppid() != parent,
        )
        _obey_signals(loop, child=child)
        launcher.open()
        try:
            watch.start()
            try:
                return loop.run()
            finally:
                watch.close()
        finally:
            launcher.close()
    finally:
        channel.close()


def _obey_signals(loop: Loop, *, child: bool) -> None:
    """SIGTERM stops. So does SIGINT, but not for a child: a terminal sends it to the whole
    group, and the server still needs replicas to finish what it admitted."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        loop.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN if child else stop)


def _set_up_logging(level: str) -> None:
    if level not in _LEVELS:
        raise SettingsError(f"--log-level: expected one of {', '.join(_LEVELS)}, got {level!r}")
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s autoscaler: %(message)s",
    )


def _port_of(address: str) -> int:
    """The port of HOST:PORT; 0 for a unix socket, whose starter names the state folder."""
    if address.startswith("unix:/"):
        return 0
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise SettingsError(
            f"--address: expected HOST:PORT, such as 127.0.0.1:8001, or unix:/PATH, got {address!r}"
        )
    return int(port)


def _token(token_file: Path | None) -> str:
    """The token, which leaves the environment: what is started later must not inherit it."""
    token = os.environ.pop("TIDESERVE_TOKEN", "")
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--token-file: cannot read {token_file}: {error}") from error
    if not token:
        raise SettingsError(
            "expected the frontend's token in $TIDESERVE_TOKEN or a --token-file, got none"
        )
    if not token.isascii() or not token.isprintable():
        raise SettingsError("expected a token of printable ASCII characters, got others")
    return token


def _devices(gpus: str) -> tuple[str, ...]:
    if not gpus:
        return ("cpu",)
    indexes = [index.strip() for index in gpus.split(",")]
    for index in indexes:
        if not (index.isascii() and index.isdigit()):
            raise SettingsError(f"--gpus: expected indexes such as 0,1, got {gpus!r}")
    return tuple(f"gpu:{int(index)}" for index in indexes)


def _default_state_dir(port: int) -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_STATE_HOME")
    base = Path(runtime) if runtime else Path.home() / ".local" / "state"
    return base / "tideserve" / f"replicas-{port}"


if __name__ == "__main__":
    typer.run(autoscale)
