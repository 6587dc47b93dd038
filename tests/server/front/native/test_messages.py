"""gRPC messages out of a stream's DATA, however it is cut."""

import gzip
import itertools
import zlib

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


def refusal(encoding: bytes, data: bytes) -> RefusedMessageError:
    with pytest.raises(RefusedMessageError) as caught:
        MessageReader(encoding, LIMIT_BYTES).read(data)
    return caught.value


def test_a_message_that_is_too_large_is_refused_at_its_prefix() -> None:
    status = refusal(b"", MESSAGE_PREFIX.pack(0, LIMIT_BYTES + 1)).status
    assert status.code == Code.RESOURCE_EXHAUSTED
    assert str(LIMIT_BYTES + 1) in status.message


@pytest.mark.parametrize(
    ("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)]
)
def test_compressed_messages_come_out_whole_and_bounded(encoding: bytes, compress: object) -> None:
    assert callable(compress)
    plain = bytes(LIMIT_BYTES)
    reader = MessageReader(encoding, LIMIT_BYTES)
    packed = framed(compress(plain), compressed=True)
    assert reader.read(packed + framed(b"plain")) == [plain, b"plain"]
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
