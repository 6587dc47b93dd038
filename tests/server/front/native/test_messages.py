"""gRPC messages out of a stream's DATA, however it is cut."""

import gzip
import itertools
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.errors import Code
from tideserve.server.front.native.errors import RefusedMessageError
from tideserve.server.front.native.messages import MessageReader
from tideserve.v1.http2 import MESSAGE_PREFIX

LIMIT_BYTES = 20_000


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    return MESSAGE_PREFIX.pack(compressed, len(message)) + message


@given(
    messages=st.lists(
        st.binary(max_size=30) | st.integers(5_000, LIMIT_BYTES).map(bytes), max_size=6
    ),
    cuts=st.lists(st.integers(0, 60_000), max_size=10),
    views=st.booleans(),
)
def test_any_parts_give_the_same_messages_and_what_is_held_is_counted(
    messages: list[bytes], cuts: list[int], views: bool
) -> None:
    data = b"".join(map(framed, messages))
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    reader, got, taken = MessageReader(b"", LIMIT_BYTES), [], 0
    for begin, end in itertools.pairwise(places):
        part = data[begin:end]
        got += reader.read(memoryview(part) if views else part)
        taken = end
        done = sum(len(framed(message)) for message in got)
        # The prefix of the next message is not held once it is read.
        assert reader.held_bytes in (taken - done, taken - done - MESSAGE_PREFIX.size)
        assert reader.is_within_a_message == (taken > done)
    assert got == messages
    assert all(type(message) is bytes for message in got)
    assert reader.held_bytes == 0


def read(reader: MessageReader, data: bytes) -> list[bytes]:
    """With all the work that it makes."""
    messages = reader.read(data)
    while reader.has_work:
        messages += reader.step()
    return messages


def refusal(encoding: bytes, data: bytes) -> RefusedMessageError:
    with pytest.raises(RefusedMessageError) as caught:
        read(MessageReader(encoding, LIMIT_BYTES), data)
    return caught.value


def test_a_message_that_is_too_large_is_refused_at_its_prefix() -> None:
    status = refusal(b"", MESSAGE_PREFIX.pack(0, LIMIT_BYTES + 1)).status
    assert status.code == Code.RESOURCE_EXHAUSTED
    assert str(LIMIT_BYTES + 1) in status.message


@pytest.mark.parametrize(
    ("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)]
)
def test_compressed_messages_come_out_whole_and_bounded(
    encoding: bytes, compress: Callable[[bytes], bytes]
) -> None:
    plain = bytes(LIMIT_BYTES)
    reader = MessageReader(encoding, LIMIT_BYTES)
    packed = framed(compress(plain), compressed=True)
    assert read(reader, packed + framed(b"plain")) == [plain, b"plain"]
    assert reader.held_bytes == 0
    bomb = framed(compress(bytes(50 * LIMIT_BYTES)), compressed=True)
    assert refusal(encoding, bomb).status.code == Code.RESOURCE_EXHAUSTED
    cut = framed(compress(plain)[:-9], compressed=True)
    assert "a part" in refusal(encoding, cut).status.message
    garbage = refusal(encoding, framed(b"garbage", compressed=True)).status
    assert garbage.code == Code.INVALID_ARGUMENT


def test_an_encoding_that_we_do_not_have_is_named() -> None:
    status = refusal(b"snappy", framed(b"x", compressed=True)).status
    assert status.code == Code.UNIMPLEMENTED
    assert "'snappy'" in status.message


@given(
    messages=st.lists(
        st.tuples(
            st.booleans(), st.binary(max_size=30) | st.integers(5_000, LIMIT_BYTES).map(bytes)
        ),
        max_size=6,
    ),
    cuts=st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 3)), max_size=10),
    views=st.booleans(),
)
def test_compressed_or_not_messages_keep_their_order(
    messages: list[tuple[bool, bytes]], cuts: list[tuple[int, int]], views: bool
) -> None:
    data = b"".join(
        framed(gzip.compress(plain) if packs else plain, compressed=packs)
        for packs, plain in messages
    )
    places = sorted({(min(cut, len(data)), steps) for cut, steps in cuts} | {(len(data), 0)})
    reader, got, at = MessageReader(b"gzip", LIMIT_BYTES), list[bytes](), 0
    for end, steps in places:
        part = data[at:end]
        got += reader.read(memoryview(part) if views else part)
        at = end
        for _ in range(steps):
            got += reader.step()
    got += read(reader, b"")
    assert got == [plain for _, plain in messages]
    assert all(type(message) is bytes for message in got)
    assert (reader.held_bytes, reader.is_within_a_message) == (0, False)


def test_what_comes_behind_a_message_that_is_inflated_is_counted_and_read_in_steps() -> None:
    """A gigabyte of the smallest messages may have gathered by then."""
    packed, count = framed(gzip.compress(b"first"), compressed=True), 100_000
    reader = MessageReader(b"gzip", LIMIT_BYTES)
    assert reader.read(packed) == []
    for _ in range(10):
        assert reader.read(framed(b"") * (count // 10)) == []
    assert reader.held_bytes == len(packed) - MESSAGE_PREFIX.size + count * MESSAGE_PREFIX.size
    assert reader.step() == [b"first"]
    steps = []
    while reader.has_work:
        steps.append(len(reader.step()))
    assert sum(steps) == count
    assert max(steps) <= 64 * 1024 // MESSAGE_PREFIX.size + 1
