"""`tideserve autoscale`, and `python -m tideserve.autoscaler` as a child of the server.

Exit codes: 0 after a graceful stop, when a newer autoscaler took over, or when the parent
process is gone (the replicas stay in the last two cases); 2 for an option, a state folder or
a token that does not work; 1 for a defect.
"""

import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from tideserve.autoscaler.assembly import Plan, next_decisions, rules_of, run
from tideserve.autoscaler.config import AutoscalerFile, ServerSection
from tideserve.autoscaler.core.decision import Policy
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fixed import FixedCount
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.errors import AutoscalerError, SettingsError
from tideserve.autoscaler.explain import explain as explanation
from tideserve.autoscaler.reload import WatchedConfig
from tideserve.autoscaler.section import MAX_REPLICAS
from tideserve.autoscaler.sources.frontend import FrontendSettings

_LOG: Final = logging.getLogger("tideserve.autoscaler")
_BAD_SETTINGS: Final = 2
_LEVELS: Final = ("debug", "info", "warning", "error")
# Libraries size their pools by these when they are imported, in the forkserver.
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def autoscale(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Autoscaler file; without it a fixed count."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="TIDESERVE_ADDRESS",
            help="HOST:PORT of the frontend; by default the file's, else 127.0.0.1:8001.",
        ),
    ] = None,
    local_address: Annotated[
        str | None,
        typer.Option(
            help="Where replica processes on this machine dial, such as unix:/PATH; by default "
            "as --address."
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_REPLICAS,
            help="Without a file: replicas of each model version; by default as many as the "
            "instance_group of its config.pbtxt says, else 1.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Without a file: threads of each replica's model; by default cores / replicas.",
        ),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="Without a file: indexes such as 0,1; replicas take turns on them.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide and tell in the log, and change nothing.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Print the next decisions with every number, and end."),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the file, and end.")
    ] = False,
    http_host: Annotated[str, typer.Option(help="Address of its own HTTP server.")] = "127.0.0.1",
    http_port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Its port: metrics, decisions, logs; 0: any free one."),
    ] = 8003,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for records and logs of replicas. By default tideserve/replicas-PORT in "
            "the user's runtime or state folder."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the frontend's token; by default the file's, else $TIDESERVE_TOKEN."
        ),
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
    """Start and retire replicas of every model version that a frontend serves."""
    if schema:
        typer.echo(json.dumps(AutoscalerFile.model_json_schema(), indent=2))
        return
    try:
        _set_up_logging(log_level)
        watched = WatchedConfig(file) if file is not None else None
        config = watched.config if watched is not None else None
        server = config.server if config is not None else ServerSection()
        where = address or server.address
        port = _port_of(where)
        frontend = FrontendSettings(
            address=where,
            token=_token(token_file or server.token_file),
            generation=time.time_ns(),
        )
        rules = Rules(start_timeout_s=start_timeout_s)
        policy: Policy
        if config is None:
            count = threads or max(1, len(os.sched_getaffinity(0)) // max(1, replicas or 1))
            policy, rules = FixedCount(replicas), replace(rules, devices=_devices(gpus, count))
        else:
            policy, rules = ElasticPolicy(config.scaling()), rules_of(config, rules)
        most_threads = max(device.threads for device in rules.devices)
        for variable in _THREAD_VARIABLES:
            os.environ.setdefault(variable, str(max(1, most_threads)))
        plan = Plan(
            frontend=frontend,
            local_address=local_address,
            state_dir=state_dir or _default_state_dir(port),
            weights_folder=_weights_folder(),
            policy=policy,
            rules=rules,
            watched=watched,
            stop_timeout_s=drain_timeout_s,
            child=child,
            dry_run=dry_run,
            http_host=http_host,
            http_port=None if dry_run else http_port,
            environment=dict(os.environ),
        )
        if explain:
            typer.echo(explanation(next_decisions(plan)))
            return
        ending = run(plan)
    except AutoscalerError as error:
        typer.echo(f"tideserve autoscale: {error}", err=True)
        raise typer.Exit(_BAD_SETTINGS) from error
    _LOG.info("ended: %s", ending.value)


def _set_up_logging(level: str) -> None:
    if level not in _LEVELS:
        raise SettingsError(f"--log-level: expected one of {', '.join(_LEVELS)}, got {level!r}")
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s autoscaler: %(message)s",
    )
    # A line for each request, otherwise.
    logging.getLogger("httpx").setLevel(logging.WARNING)


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


def _devices(gpus: str, threads: int) -> tuple[Device, ...]:
    """As many slots as anyone may ask for: the count is fixed."""
    if not gpus:
        return (Device("cpu", MAX_REPLICAS, threads=threads),)
    indexes = [index.strip() for index in gpus.split(",")]
    for index in indexes:
        if not (index.isascii() and index.isdigit()):
            raise SettingsError(f"--gpus: expected indexes such as 0,1, got {gpus!r}")
    return tuple(Device(f"gpu:{int(index)}", MAX_REPLICAS, threads=threads) for index in indexes)


def _default_state_dir(port: int) -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_STATE_HOME")
    base = Path(runtime) if runtime else Path.home() / ".local" / "state"
    return base / "tideserve" / f"replicas-{port}"


def _weights_folder() -> Path | None:
    """In the user's cache (XDG base directories): what is there can be made again. None for a user
    without a home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = cache if cache.is_absolute() else Path.home() / ".cache"
        return base / "tideserve" / "weights"
    except RuntimeError:
        return None


if __name__ == "__main__":
    typer.run(autoscale)
