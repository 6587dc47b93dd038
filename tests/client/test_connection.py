from pathlib import Path

import pytest

from tideserve.client import Client, InvalidArgument, TlsError, TlsOptions
from tideserve.client.connection import checked_address, checked_timeout_s


@pytest.mark.parametrize("address", ["localhost:8001", "[::1]:8001", "unix:/run/x", "dns:///a:1"])
def test_addresses_that_grpc_knows_are_taken(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize(
    "address", ["localhost", "", ":8001", "http://localhost:8001", "localhost:http", "a:70000"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="expected HOST:PORT"):
        Client(address)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_timeout_is_more_than_nothing(timeout_s: float) -> None:
    with pytest.raises(InvalidArgument, match="timeout_s"):
        checked_timeout_s(timeout_s, 1.0)


def test_a_token_that_no_header_can_carry_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="printable ASCII"):
        Client(token="a\nb")


def test_tls_files_are_read_at_once_and_named_when_wrong(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"ca: cannot read .*none\.pem"):
        Client(tls=TlsOptions(ca=tmp_path / "none.pem"))
    (tmp_path / "not.pem").write_text("nothing")
    with pytest.raises(TlsError, match="expected a PEM file"):
        Client(tls=TlsOptions(ca=tmp_path / "not.pem"))
    with pytest.raises(TlsError, match="got only the certificate"):
        Client(tls=TlsOptions(certificate=tmp_path / "not.pem"))
