"""gRPC's messages from bytes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.replica.errors import Http2Error
from tideserve.replica.http2 import Ending
from tideserve.replica.messages import MessageReader, reply_of

OK = Ending(0, "")


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4) + message


def test_a_reply_has_one_message_in_any_parts() -> None:
    body = framed(b"answer")
    assert reply_of(OK, [memoryview(body)]) == (0, "", b"answer")
    assert reply_of(OK, [memoryview(body[:3]), memoryview(body[3:])]) == (0, "", b"answer")


def test_what_came_with_an_error_is_not_looked_at() -> None:
    assert reply_of(Ending(5, "no such thing"), [memoryview(b"\1")]) == (5, "no such thing", b"")


@pytest.mark.parametrize(
    "body", [b"", b"\0\0\0\0", b"\1\0\0\0\1x", b"\0\0\0\0\2x", framed(b"x") * 2]
)
def test_what_is_not_one_message_is_refused(body: bytes) -> None:
    with pytest.raises(Http2Error, match="expected one uncompressed message"):
        reply_of(OK, [memoryview(body)])


@given(st.lists(st.binary(max_size=20), max_size=6), st.lists(st.integers(0, 150), max_size=10))
def test_messages_are_read_from_parts_that_end_anywhere(
    messages: list[bytes], ends: list[int]
) -> None:
    body = memoryview(b"".join(map(framed, messages)))
    cuts = [0, *sorted(min(end, len(body)) for end in ends), len(body)]
    parts = [body[begin:end] for begin, end in pairwise(cuts)]
    reader = MessageReader()
    assert [message for part in parts for message in reader.read([part])] == messages
    assert not reader.within_message
    assert MessageReader().read(parts) == messages


def test_a_message_that_began_is_told() -> None:
    reader = MessageReader()
    assert reader.read([memoryview(framed(b"xy")[:-1])]) == []
    assert reader.within_message


@pytest.mark.parametrize("head", [b"\1\0\0\0\1", b"\0\0\0\0\x65"])
def test_a_compressed_or_too_large_message_is_refused_by_its_head(head: bytes) -> None:
    with pytest.raises(
        Http2Error, match=f"at most 100 bytes, got one that begins with {head.hex()}"
    ):
        MessageReader(max_message_bytes=100).read([memoryview(head)])
