"""`tideserve replica`: what a launcher runs where it cannot fork."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tideserve.replica.settings import ExitCode, ReplicaSettings

app = typer.Typer(add_completion=False)


@app.command()
def replica(
    replica_id: Annotated[str, typer.Option(help="The id that was announced to the frontend.")],
    address: Annotated[str, typer.Option(help="The frontend's HOST:PORT.")],
    local_address: Annotated[
        str, typer.Option(help="unix:/PATH, dialled in its place while somebody listens there.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or gpu:INDEX.")] = "cpu",
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of the model; 0: the runtime's default.")
    ] = 0,
    log_file: Annotated[
        Path | None, typer.Option(help="Where the log and the model's own output go; else stderr.")
    ] = None,
    launched_at: Annotated[
        float | None, typer.Option(help="Unix time of the launcher's request.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Holds the token; else TIDESERVE_TOKEN does.")
    ] = None,
    prefetch: Annotated[
        bool, typer.Option(help="Ask for the next batch while one computes.")
    ] = True,
    reconnect_s: Annotated[
        float, typer.Option(min=0.0, help="Leave after so long without a frontend.")
    ] = 20.0,
    weights_folder: Annotated[
        Path | None, typer.Option(help="Share weights there with replicas of this machine.")
    ] = None,
) -> None:
    """Serve one model version on one device, as the frontend assigns it."""
    from tideserve.replica.__main__ import main

    main(
        ReplicaSettings(
            replica_id=replica_id,
            address=address,
            local_address=local_address,
            token=_token(token_file),
            device=device,
            threads=threads,
            log_file=log_file,
            launched_at=launched_at,
            prefetch=prefetch,
            reconnect_s=reconnect_s,
            weights_folder=weights_folder,
        )
    )


def _token(token_file: Path | None) -> str:
    if token_file is None:
        return os.environ.get("TIDESERVE_TOKEN", "")
    try:
        return token_file.read_text().strip()
    except OSError as error:
        typer.echo(f"error: token-file {token_file}: {error.strerror}", err=True)
        raise typer.Exit(ExitCode.BAD_SETTINGS) from error
