"""Which front serves: asked for by name, or the fastest that can do what the settings ask."""

from collections.abc import Sequence

from tideserve.server.errors import UnsupportedFrontError
from tideserve.server.front import Front, FrontSettings
from tideserve.v1.methods import Kind

KINDS = ("auto", "direct", "native", "grpcio")


def choose(kind: str, settings: FrontSettings) -> tuple[str, str]:
    """The front (`direct`, `native` or `grpcio`) that serves these settings, and why.

    Raises `UnsupportedFrontError` when the one asked for cannot.
    """
    match kind:
        case "grpcio":
            return kind, "asked for"
        case "auto":
            obstacle = _obstacle("direct", settings)
            if obstacle is None:
                return "direct", "it takes the least CPU a call"
            return "grpcio", obstacle
        case "direct" | "native":
            obstacle = _obstacle(kind, settings)
            if obstacle is None:
                return kind, "asked for"
            raise UnsupportedFrontError(f"{obstacle}: choose the grpcio front (--front grpcio)")
        case _:
            raise UnsupportedFrontError(
                f"front {kind!r} does not exist; expected auto, direct, native or grpcio"
            )


def make_front(kind: str, methods: Sequence[tuple[str, Kind]], settings: FrontSettings) -> Front:
    """The chosen front, constructed and not started. Raises as `choose` does."""
    match choose(kind, settings)[0]:
        case "direct":
            from tideserve.server.front.direct.front import DirectFront

            return DirectFront(methods, settings)
        case "native":
            from tideserve.server.front.native import NativeFront

            return NativeFront(methods, settings)
        case _:
            from tideserve.server.front.grpcio import GrpcioFront

            return GrpcioFront(methods, settings)


def _obstacle(kind: str, settings: FrontSettings) -> str | None:
    """Why this front cannot serve here."""
    if kind == "direct":
        from tideserve.server.front.direct import front

        return front.unsupported(settings)
    try:
        from tideserve.server.front.native import unsupported
    except ImportError as error:
        return f"the pygrpc-native package cannot be imported ({error})"
    return unsupported(settings)
