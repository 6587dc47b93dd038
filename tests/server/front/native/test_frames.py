"""Bytes into frames, however they are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.front.native.errors import ProtocolError
from tideserve.server.front.native.frames import Frame, FrameReader
from tideserve.v1 import http2

KINDS = (http2.DATA, http2.HEADERS, http2.SETTINGS, http2.PING, http2.WINDOW_UPDATE, 77)
frames = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from((0, http2.END_STREAM, http2.END_HEADERS)),
    st.integers(0, http2.LAST_STREAM),
    st.binary(max_size=40) | st.integers(4_000, 20_000).map(bytes),
)


def whole(parts: list[Frame]) -> list[tuple[int, int, int, bytes]]:
    """DATA that came in parts put together again: all but the last part have no flags."""
    joined: list[tuple[int, int, int, bytes]] = []
    open_part = False
    for kind, flags, stream, payload in parts:
        if open_part and kind == http2.DATA:
            _, _, of, before = joined.pop()
            assert of == stream
            joined.append((kind, flags, stream, before + bytes(payload)))
        else:
            joined.append((kind, flags, stream, bytes(payload)))
        open_part = kind == http2.DATA and bool(stream & 1) and not flags & http2.END_STREAM
    return joined


@given(sent=st.lists(frames, max_size=8), cuts=st.lists(st.integers(0, 60_000), max_size=12))
def test_any_reads_give_the_same_frames(
    sent: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    # A part of DATA is told from the next DATA by its end, so here every DATA has one.
    sent = [
        (kind, flags | http2.END_STREAM, stream | 1, body)
        if kind == http2.DATA
        else (kind, flags, stream, body)
        for kind, flags, stream, body in sent
    ]
    data = http2.PREFACE + b"".join(http2.frame(*frame) for frame in sent)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    reader, got = FrameReader(), []
    for begin, end in itertools.pairwise(places):
        got += reader.read(data[begin:end])
    assert whole(got) == sent
    assert reader.taken_bytes == sum(len(body) for kind, _, _, body in sent if kind == http2.DATA)
    assert reader.expected_bytes == 0


@pytest.mark.parametrize("kind", [http2.DATA, http2.HEADERS])
def test_padding_is_taken_off_and_counted(kind: int) -> None:
    reader = FrameReader()
    padded = http2.frame(kind, http2.PADDED, 1, b"\3" + b"body" + bytes(3))
    ((_, _, _, payload),) = reader.read(http2.PREFACE + padded)
    assert payload == b"body"
    assert reader.taken_bytes == (8 if kind == http2.DATA else 0)
    assert reader.padding == ({1: 4} if kind == http2.DATA else {})


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from([0, 1, 10, 70_000, 200_000]), st.integers(0, 255)), max_size=5
    ),
    cuts=st.lists(st.integers(0, 400_000), max_size=12),
)
def test_padded_data_of_any_size_comes_as_it_is_sent(
    sizes: list[tuple[int, int]], cuts: list[int]
) -> None:
    flags = http2.PADDED | http2.END_STREAM
    data = http2.PREFACE + b"".join(
        http2.frame(http2.DATA, flags, 1, bytes((padding,)) + b"x" * size + bytes(padding))
        for size, padding in sizes
    )
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    reader, got = FrameReader(), []
    for begin, end in itertools.pairwise(places):
        got += reader.read(data[begin:end])
    assert whole(got) == [(http2.DATA, flags, 1, b"x" * size) for size, _ in sizes]
    assert reader.taken_bytes == sum(1 + size + padding for size, padding in sizes)
    assert sum(reader.padding.values()) == sum(1 + padding for _, padding in sizes)


@pytest.mark.parametrize("kind", [77, http2.GOAWAY])
def test_of_a_large_frame_that_means_nothing_only_the_head_is_given(kind: int) -> None:
    """It ended the connection, and what nobody knows is to be passed over."""
    large = http2.frame(kind, 0, 1, bytes(200_000))
    ping = http2.frame(http2.PING, 0, 0, bytes(8))
    data = http2.PREFACE + large + ping
    for cut in (len(data), 40, 100_000):
        reader = FrameReader()
        got = reader.read(data[:cut]) + reader.read(data[cut:])
        assert got == [(kind, 0, 1, b""), (http2.PING, 0, 0, bytes(8))]
        assert reader._unread == b""


def test_a_priority_goes_before_the_headers() -> None:
    flags = http2.PADDED | http2.WITH_PRIORITY
    frame = http2.frame(http2.HEADERS, flags, 1, b"\1" + b"12345" + b"block" + b"\0")
    ((_, _, _, payload),) = FrameReader().read(http2.PREFACE + frame)
    assert payload == b"block"


@pytest.mark.parametrize("payload", [b"", b"\5abc", b"\4abc"])
def test_more_padding_than_there_is_breaks_the_connection(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="padding"):
        FrameReader().read(http2.PREFACE + http2.frame(http2.DATA, http2.PADDED, 1, payload))


@pytest.mark.parametrize(
    ("kind", "flags"), [(http2.HEADERS, 0), (http2.HEADERS, http2.PADDED), (http2.SETTINGS, 0)]
)
def test_what_is_taken_whole_is_bounded_at_its_head(kind: int, flags: int) -> None:
    head = http2.HEAD.pack(1, 1, kind, flags, 1)
    with pytest.raises(ProtocolError, match="at most 65536 bytes, got 65537") as caught:
        FrameReader().read(http2.PREFACE + head)
    assert caught.value.code == http2.FRAME_SIZE_ERROR


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"P", b"\x16\x03\x01"])
def test_only_http2_begins_a_connection(said: bytes) -> None:
    reader = FrameReader()
    if http2.PREFACE.startswith(said):
        assert reader.read(said) == []
        assert not reader.has_begun
    else:
        with pytest.raises(ProtocolError, match="expected HTTP/2"):
            reader.read(said)
