"""`tideserve replicas`."""

from dataclasses import asdict

from tideserve.cli.options import (
    ADDRESS,
    Address,
    Json,
    Timeout,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    control_client,
)
from tideserve.cli.output import write_json, write_table


def replicas(
    address: Address = ADDRESS,
    json: Json = False,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """List the replicas: what they serve, their state and where they run."""
    with control_client(
        address, token_file, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        found = client.replicas()
    if json:
        write_json([asdict(replica) for replica in found])
        return
    write_table(
        ("id", "model", "version", "state", "pid", "host", "device", "for", "note"),
        (
            (
                r.id,
                r.model or "-",
                r.version or "-",
                r.state,
                str(r.pid),
                r.host,
                r.device,
                f"{r.state_age_s:.0f} s",
                r.reason or r.phase,
            )
            for r in found
        ),
    )
