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
    ("kind", "flags"), [(http2.HEADERS, 0), (http2.DATA, http2.PADDED), (77, 0)]
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
