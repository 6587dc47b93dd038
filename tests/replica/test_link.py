"""What the ends of a life's calls mean, against a server of grpcio's."""

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from tideserve.replica.errors import (
    CallBrokenError,
    CallRefusedError,
    JoinRefusedError,
    ReplicaError,
)
from tideserve.replica.link import Link
from tideserve.replica.settings import ReplicaSettings
from tideserve.v1.replica_pb2 import BeatRequest, Command, Drain, JoinRequest

_SERVICE = "/tideserve.v1.ReplicaService/"
DRAIN = Command(drain=Drain())


class Frontend(grpc.GenericRpcHandler):
    """Ends every call with `code`, Join after `commands`."""

    def __init__(self, code: grpc.StatusCode, commands: tuple[bytes, ...] = ()) -> None:
        self.code = code
        self.commands = commands
        self.beats: list[bytes] = []
        self.joins: list[bytes] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == _SERVICE + "Join":
            return grpc.unary_stream_rpc_method_handler(self._join)
        assert details.method in (_SERVICE + "Beat", _SERVICE + "Exchange")
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _join(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.joins.append(request)
        yield from self.commands
        self._end(context)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.beats.append(request)
        self._end(context)
        return b"answer"

    def _end(self, context: grpc.ServicerContext) -> None:
        if self.code is not grpc.StatusCode.OK:
            context.abort(self.code, "why")


@contextmanager
def linked(frontend: Frontend) -> Iterator[Link]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((frontend,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    address = f"127.0.0.1:{port}"
    link = Link(ReplicaSettings(replica_id="r1", address=address, token="t"), address)
    try:
        yield link
    finally:
        link.close()
        server.stop(0).wait()


def end_of_join(frontend: Frontend) -> tuple[list[Command], Exception]:
    commands: list[Command] = []
    with linked(frontend) as link, pytest.raises(ReplicaError) as raised:
        commands.extend(link.commands(0.5))
    return commands, raised.value


JOIN_ENDS = {
    "INVALID_ARGUMENT": JoinRefusedError,
    "PERMISSION_DENIED": JoinRefusedError,
    "UNAUTHENTICATED": JoinRefusedError,
    "UNIMPLEMENTED": JoinRefusedError,
    "FAILED_PRECONDITION": CallRefusedError,
    "NOT_FOUND": CallBrokenError,
    "UNAVAILABLE": CallBrokenError,
}
CALL_ENDS = {
    "INVALID_ARGUMENT": CallRefusedError,
    "PERMISSION_DENIED": CallRefusedError,
    "UNAUTHENTICATED": CallRefusedError,
    "UNIMPLEMENTED": CallRefusedError,
    "FAILED_PRECONDITION": CallRefusedError,
    "NOT_FOUND": CallRefusedError,
    "UNAVAILABLE": CallBrokenError,
    "RESOURCE_EXHAUSTED": CallBrokenError,
}


@pytest.mark.parametrize("code", JOIN_ENDS)
def test_a_life_line_yields_commands_and_ends_as_its_status_says(code: str) -> None:
    frontend = Frontend(grpc.StatusCode[code], (DRAIN.SerializeToString(),) * 2)
    commands, error = end_of_join(frontend)
    assert commands == [DRAIN, DRAIN]
    assert type(error) is JOIN_ENDS[code]
    assert str(error) == f"{code}: why"
    request = JoinRequest.FromString(frontend.joins[0])
    assert (request.replica_id, request.launch_s) == ("r1", 0.5)


def test_a_life_line_that_ends_well_is_broken() -> None:
    commands, error = end_of_join(Frontend(grpc.StatusCode.OK))
    assert (commands, type(error)) == ([], CallBrokenError)
    assert str(error) == "the frontend ended the life line"


def test_what_is_no_command_breaks_the_life_line() -> None:
    commands, error = end_of_join(Frontend(grpc.StatusCode.OK, (b"\xff",)))
    assert (commands, type(error)) == ([], CallBrokenError)


@pytest.mark.parametrize("code", CALL_ENDS)
def test_a_beat_and_an_exchange_end_as_their_status_says(code: str) -> None:
    with linked(Frontend(grpc.StatusCode[code])) as link:
        for call in (lambda: link.beat(BeatRequest()), lambda: link.exchange(b"x")):
            with pytest.raises(CALL_ENDS[code], match=f"^{code}: why$"):
                call()


def test_a_beat_and_an_exchange_that_are_answered() -> None:
    frontend = Frontend(grpc.StatusCode.OK)
    with linked(frontend) as link:
        link.beat(beat := BeatRequest(replica_id="r1", epoch=3))
        assert link.exchange(b"x") == b"answer"
    assert frontend.beats == [beat.SerializeToString(), b"x"]


def test_nothing_is_asked_after_close() -> None:
    frontend = Frontend(grpc.StatusCode.OK)
    with linked(frontend) as link:
        link.close()
        for call in (
            lambda: list(link.commands(0.0)),
            lambda: link.beat(BeatRequest()),
            lambda: link.exchange(b"x"),
        ):
            with pytest.raises(CallBrokenError, match="the life is closed"):
                call()
    assert frontend.beats == frontend.joins == []
