"""Which front is chosen, and what is said about it."""

import sys
from pathlib import Path

import pytest

from tideserve.server.errors import UnsupportedFrontError
from tideserve.server.front import FrontSettings, TlsFiles
from tideserve.server.front.grpcio import GrpcioFront
from tideserve.server.front.native import NativeFront
from tideserve.server.front.select import choose, make_front
from tideserve.v1.methods import Kind

PLAIN = FrontSettings()
TLS = FrontSettings(tls=TlsFiles(Path("a.crt"), Path("a.key")))
CONNECTIONS = FrontSettings(max_connections=10)
METHODS = (("/test.Echo/Unary", Kind.UNARY),)


@pytest.fixture
def without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the wheel does not exist: its import fails."""
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    monkeypatch.delitem(sys.modules, "tideserve.server.front.native")


def test_auto_is_native_where_it_can_serve() -> None:
    assert choose("auto", PLAIN) == ("native", "it takes the least CPU a call")
    assert isinstance(make_front("auto", METHODS, PLAIN), NativeFront)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (TLS, "the native front has no TLS"),
        (CONNECTIONS, "the native front cannot limit the number of connections"),
    ],
)
def test_auto_is_grpcio_for_settings_that_native_cannot_serve(
    settings: FrontSettings, reason: str
) -> None:
    assert choose("auto", settings) == ("grpcio", reason)
    assert isinstance(make_front("auto", METHODS, settings), GrpcioFront)


@pytest.mark.parametrize("settings", [TLS, CONNECTIONS])
def test_native_is_refused_for_settings_that_it_cannot_serve(settings: FrontSettings) -> None:
    with pytest.raises(UnsupportedFrontError, match=r"native front .*--front grpcio"):
        make_front("native", METHODS, settings)


def test_auto_is_grpcio_without_the_wheel(without_wheel: None) -> None:
    kind, reason = choose("auto", PLAIN)
    assert kind == "grpcio"
    assert "pygrpc-native" in reason
    assert isinstance(make_front("auto", METHODS, PLAIN), GrpcioFront)


def test_native_without_the_wheel_is_refused(without_wheel: None) -> None:
    with pytest.raises(UnsupportedFrontError, match=r"pygrpc-native.*--front grpcio"):
        make_front("native", METHODS, PLAIN)


@pytest.mark.parametrize("settings", [PLAIN, TLS])
def test_grpcio_is_served_when_asked_for(settings: FrontSettings) -> None:
    assert choose("grpcio", settings) == ("grpcio", "asked for")
    assert isinstance(make_front("grpcio", METHODS, settings), GrpcioFront)


def test_native_is_served_when_asked_for() -> None:
    assert choose("native", PLAIN) == ("native", "asked for")


def test_an_unknown_front_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnsupportedFrontError, match=r"'rust'.*auto, native or grpcio"):
        choose("rust", PLAIN)
