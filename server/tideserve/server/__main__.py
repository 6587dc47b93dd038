"""`tideserve serve`: the only place of the frontend that reads argv and the environment."""

import gc
import logging
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from tideserve.server.app import App
from tideserve.server.config import ServeSettings
from tideserve.server.errors import RepositoryError, StartError
from tideserve.server.front import FrontSettings, TlsFiles
from tideserve.server.heap import keep_freed_memory
from tideserve.server.service.repository import ModelControl
from tideserve.server.tokens import check_token, read_token

EXIT_CANNOT_START = 2


def serve(
    repository: Annotated[
        Path, typer.Argument(metavar="MODEL_REPOSITORY", help="Folder of models, as Triton's.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="gRPC port, 0 for any.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port of /metrics and health, 0 for any.")] = 8002,
    replicas: Annotated[
        int | None,
        typer.Option(help="Replicas of each model version; default: its instance_group's, else 1."),
    ] = None,
    autoscaler: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="Autoscaler file, in place of --replicas; none: another process scales.",
        ),
    ] = None,
    autoscaler_http_port: Annotated[
        int | None,
        typer.Option(help="The autoscaler's own HTTP port; default: --http-port + 1."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads a replica; default: cores / replicas.")
    ] = None,
    front: Annotated[str, typer.Option(help="auto, native or grpcio.")] = "auto",
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM; clients must show a certificate that it signed.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Token of the replica and control planes.")
    ] = None,
    model_control: Annotated[
        ModelControl, typer.Option(help="none: as at the start; poll: as it is; explicit: by call.")
    ] = ModelControl.NONE,
    load_model: Annotated[
        list[str] | None, typer.Option(help="With explicit: load this one at the start.")
    ] = None,
    poll_interval_s: Annotated[float, typer.Option(help="With poll: how often.")] = 2.0,
    max_message_bytes: Annotated[int, typer.Option(help="Largest message.")] = 128 * 1024 * 1024,
    arena_bytes: Annotated[
        int,
        typer.Option(help="Memory shared with each local replica, each way; 0: none."),
    ] = 64 * 1024 * 1024,
    link_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a socket for replicas in containers of this machine, which are given "
            "it as a volume and share memory with the server."
        ),
    ] = None,
    max_connections: Annotated[int | None, typer.Option(help="Connections at a time.")] = None,
    max_concurrent_streams: Annotated[int, typer.Option(help="Calls a connection.")] = 4096,
    keepalive_time_s: Annotated[float, typer.Option(help="Idle time before a ping.")] = 7200.0,
    keepalive_timeout_s: Annotated[float, typer.Option(help="Wait for a ping's answer.")] = 20.0,
    busy_poll_us: Annotated[
        float,
        typer.Option(
            help="Look so long for what comes next before sleeping: lone callers wait less, for a "
            "core that is never idle under load."
        ),
    ] = 0.0,
    shutdown_timeout_s: Annotated[
        float, typer.Option(help="How long admitted requests may take when stopping.")
    ] = 30.0,
    triton_metrics: Annotated[bool, typer.Option(help="Also export nv_inference_* names.")] = False,
    shared_memory: Annotated[
        bool,
        typer.Option(help="Take and give tensors in shared memory (callers on this machine)."),
    ] = True,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve a model repository over gRPC."""
    _log(log_level)
    keep_freed_memory(os.environ)
    try:
        app = App(
            ServeSettings(
                repository=repository,
                front=FrontSettings(
                    host=host,
                    port=grpc_port,
                    max_message_bytes=max_message_bytes,
                    max_concurrent_streams=max_concurrent_streams,
                    max_connections=max_connections,
                    keepalive_time_s=keepalive_time_s,
                    keepalive_timeout_s=keepalive_timeout_s,
                    busy_poll_s=busy_poll_us / 1e6,
                    tls=_tls(tls_cert, tls_key, tls_client_ca),
                    own_folder=_state_folder(),
                    link_folder=None if link_folder is None else link_folder.absolute(),
                ),
                front_kind=front,
                http_port=http_port,
                replicas=replicas,
                autoscaler_file=Path(autoscaler) if autoscaler not in (None, "none") else None,
                own_autoscaler=autoscaler != "none",
                autoscaler_http_port=autoscaler_http_port,
                threads=threads,
                model_control=model_control,
                load_models=tuple(load_model or ()),
                poll_interval_s=poll_interval_s,
                shutdown_timeout_s=shutdown_timeout_s,
                arena_bytes=arena_bytes,
                triton_metrics=triton_metrics,
                shared_memory=shared_memory,
                log_level=log_level,
            ),
            state_folder=_state_folder(),
            environment=os.environ,
            token=_token(token_file),
            version=version("tideserve"),
            on_ready=lambda line: print(line, flush=True),  # noqa: T201 - scripts wait for it
        )

        def stop(_signal: int, _frame: FrameType | None) -> None:
            app.request_stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        app.start()
    except (StartError, RepositoryError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        raise typer.Exit(EXIT_CANNOT_START) from error
    # Modules and tables that stay: a full collection walks 50,000 objects less, and takes 1 ms
    # instead of 28 (docs/decisions/0013).
    gc.collect()
    gc.freeze()
    app.serve()


def _log(level: str) -> None:
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels:
        raise typer.BadParameter(
            f"expected debug, info, warning or error, got '{level}'", param_hint="--log-level"
        )
    logging.basicConfig(
        level=levels[level.upper()],
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise StartError("TLS: expected both --tls-cert and --tls-key, got only one of them")
    return TlsFiles(cert, key, client_ca)


def _token(token_file: Path | None) -> str | None:
    token = os.environ.get("TIDESERVE_TOKEN")
    if token:
        check_token(token, "TIDESERVE_TOKEN")
        return token
    return None if token_file is None else read_token(token_file)


def _state_folder() -> Path:
    """Where this user's programs keep run-time files (XDG base directories)."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "tideserve"
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "tideserve"


if __name__ == "__main__":
    typer.run(serve)
