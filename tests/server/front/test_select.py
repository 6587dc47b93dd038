"""Which front is chosen, and what is said about it."""

import sys
from pathlib import Path

import pytest

from tideserve.server.errors import UnsupportedFrontError
from tideserve.server.front import FrontSettings, TlsFiles
from tideserve.server.front.grpcio import GrpcioFront
from tideserve.server.front.native.front import NativeFront
from tideserve.server.front.select import choose, make_front
from tideserve.v1.methods import Kind

PLAIN = FrontSettings()
TLS = FrontSettings(tls=TlsFiles(Path("a.crt"), Path("a.key")))
METHODS = (("/test.Echo/Unary", Kind.UNARY),)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no epoll."""
    monkeypatch.setattr(sys, "platform", "darwin")


def test_auto_is_native_where_it_can_serve() -> None:
    assert choose("auto", PLAIN) == ("native", "it takes the least CPU a call")
    assert isinstance(make_front("auto", METHODS, PLAIN), NativeFront)


def test_auto_is_grpcio_for_tls() -> None:
    assert choose("auto", TLS) == ("grpcio", "the native front has no TLS")
    assert isinstance(make_front("auto", METHODS, TLS), GrpcioFront)


def test_native_is_refused_for_settings_that_it_cannot_serve() -> None:
    with pytest.raises(UnsupportedFrontError, match=r"native front .*--front grpcio"):
        make_front("native", METHODS, TLS)


def test_auto_is_grpcio_where_there_is_no_epoll(elsewhere: None) -> None:
    kind, reason = choose("auto", PLAIN)
    assert kind == "grpcio"
    assert "only Linux" in reason
    assert isinstance(make_front("auto", METHODS, PLAIN), GrpcioFront)


def test_native_where_there_is_no_epoll_is_refused(elsewhere: None) -> None:
    with pytest.raises(UnsupportedFrontError, match=r"only Linux.*--front grpcio"):
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
