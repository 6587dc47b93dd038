"""TLS and mTLS from files, with the replicas behind them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.client.certificates import Certificates, make_certificates
from tests.e2e.server import EXAMPLES, Server
from tideserve.client import Client, TlsOptions
from tideserve.client.errors import TideserveClientError

pytestmark = pytest.mark.e2e


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "identity").symlink_to(EXAMPLES / "identity")
    return repository


def test_a_client_with_the_authoritys_certificate_is_served_over_tls(
    start_server: Callable[..., Server], identity: Path, certificates: Certificates
) -> None:
    server = start_server(
        identity,
        f"--tls-cert={certificates.certificate}",
        f"--tls-key={certificates.key}",
        "--host=localhost",
    )
    values = np.arange(32, dtype=np.float32).reshape(2, 16)
    address = f"localhost:{server.grpc_port}"
    with Client(address, tls=TlsOptions(ca=certificates.ca)) as client:
        np.testing.assert_array_equal(client.infer("identity", {"IN": values})["OUT"], values)
    with Client(address, timeout_s=3) as plain, pytest.raises(TideserveClientError):
        plain.infer("identity", {"IN": values})
    assert server.stop() == 0


def test_mtls_serves_only_who_shows_a_certificate(
    start_server: Callable[..., Server], identity: Path, certificates: Certificates
) -> None:
    server = start_server(
        identity,
        f"--tls-cert={certificates.certificate}",
        f"--tls-key={certificates.key}",
        f"--tls-client-ca={certificates.ca}",
        "--host=localhost",
    )
    values = np.ones((1, 16), dtype=np.float32)
    address = f"localhost:{server.grpc_port}"
    shown = TlsOptions(
        ca=certificates.ca, certificate=certificates.certificate, key=certificates.key
    )
    with Client(address, tls=shown) as client:
        np.testing.assert_array_equal(client.infer("identity", {"IN": values})["OUT"], values)
    with (
        Client(address, tls=TlsOptions(ca=certificates.ca), timeout_s=3) as unknown,
        pytest.raises(TideserveClientError),
    ):
        unknown.infer("identity", {"IN": values})


def test_a_native_front_with_tls_is_refused_with_the_reason(
    start_server: Callable[..., Server], identity: Path, certificates: Certificates
) -> None:
    server = start_server(
        identity,
        "--front=native",
        f"--tls-cert={certificates.certificate}",
        f"--tls-key={certificates.key}",
        ready=False,
    )
    assert server.wait_end() == 2
    assert "no TLS" in server.log
