"""Which front serves: asked for by name, or the fastest that can do what the settings ask."""

from collections.abc import Sequence

from tideserve.server.errors import UnsupportedFrontError
from tideserve.server.front import Front, FrontSettings
from tideserve.server.front.native import unsupported
from tideserve.v1.methods import Kind

KINDS = ("auto", "native", "grpcio")


def choose(kind: str, settings: FrontSettings) -> tuple[str, str]:
    """The front (`native` or `grpcio`) that serves these settings, and why.

    Raises `UnsupportedFrontError` when the one asked for cannot.
    """
    if kind not in KINDS:
        raise UnsupportedFrontError(
            f"front {kind!r} does not exist; expected auto, native or grpcio"
        )
    if kind == "grpcio":
        return "grpcio", "asked for"
    obstacle = unsupported(settings)
    if obstacle is None:
        return "native", "asked for" if kind == "native" else "it takes the least CPU a call"
    if kind == "native":
        raise UnsupportedFrontError(f"{obstacle}: choose the grpcio front (--front grpcio)")
    return "grpcio", obstacle


def make_front(kind: str, methods: Sequence[tuple[str, Kind]], settings: FrontSettings) -> Front:
    """The chosen front, constructed and not started. Raises as `choose` does."""
    chosen, _ = choose(kind, settings)
    # Each where it is chosen: one needs epoll, the other 20 MB of grpcio.
    if chosen == "native":
        from tideserve.server.front.native.front import NativeFront

        return NativeFront(methods, settings)
    from tideserve.server.front.grpcio import GrpcioFront

    return GrpcioFront(methods, settings)
