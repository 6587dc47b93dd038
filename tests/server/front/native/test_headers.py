"""What a call's headers say; the hpack library writes them."""

from urllib.parse import unquote

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.front import Status
from tideserve.server.front.native.errors import ProtocolError
from tideserve.server.front.native.headers import (
    ANSWER_BEGINS,
    HeaderReader,
    RequestHead,
    split_fields,
    status_block,
)
from tideserve.v1 import http2

CALL = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/package.Service/Method"),
    (b":authority", b"host:1"),
    (b"content-type", b"application/grpc+proto"),
    (b"te", b"trailers"),
)
names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20).map(str.encode)
names = names.filter(lambda name: name != b"content-type")
values = st.binary(max_size=200).filter(lambda value: value == value.strip())
fields = st.lists(st.tuples(names, values), max_size=8)


def block(
    *more: tuple[bytes, bytes], huffman: bool = True, encoder: Encoder | None = None
) -> bytes:
    return (encoder or Encoder()).encode([*CALL, *more], huffman)


def read(*more: tuple[bytes, bytes]) -> RequestHead:
    return HeaderReader().read(block(*more))


@given(more=fields, huffman=st.booleans())
def test_the_fields_of_a_block_are_those_that_the_library_finds(
    more: list[tuple[bytes, bytes]], huffman: bool
) -> None:
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.encode([])  # the change of the table's size goes with the first block
    data = block(*more, huffman=huffman, encoder=encoder)
    cut = split_fields(data)
    assert cut is not None
    assert b"".join(cut) == data
    decoder = Decoder()
    decoder.header_table_size = 0
    found = [tuple(header) for field in cut for header in decoder.decode(field, True)]
    assert found == [*CALL, *more]
    assert split_fields(data[:-1]) is None


@given(more=fields, huffman=st.booleans(), indexed=st.booleans())
def test_a_call_reads_the_same_with_and_without_a_table(
    more: list[tuple[bytes, bytes]], huffman: bool, indexed: bool
) -> None:
    kind = HeaderTuple if indexed else NeverIndexedHeaderTuple
    encoder, reader = Encoder(), HeaderReader()
    message = [kind(*field) for field in (*CALL, *more)]
    first = reader.read(encoder.encode(message, huffman))
    again = reader.read(encoder.encode(message, huffman))
    reader.forget_table()
    encoder.header_table_size = 0
    later = [reader.read(encoder.encode(message, huffman)) for _ in range(3)]
    assert [first, again, *later] == [first] * 5
    assert first.path == "/package.Service/Method"
    assert first.malformed is None


def test_metadata_is_what_the_caller_gave() -> None:
    head = read(
        (b"key", b"value"),
        (b"blob-bin", b"AP/+"),
        (b"bad-bin", b"=?"),
        (b"key", b"2"),
        (b"two-bin", b"AQ,Ag"),
    )
    assert head.metadata == (
        ("key", "value"),
        ("blob-bin", b"\x00\xff\xfe"),
        ("bad-bin", b"=?"),
        ("key", "2"),
        ("two-bin", b"\x01"),
        ("two-bin", b"\x02"),
    )


@pytest.mark.parametrize(
    ("value", "timeout_s"),
    [
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"20S", 20.0),
        (b"250m", 0.25),
        (b"5u", 5e-6),
        (b"7n", 7e-9),
        (b"123456789S", None),
        (b"S", None),
        (b"1.5S", None),
        (b"-1S", None),
    ],
)
def test_a_timeout_is_read_by_its_unit(value: bytes, timeout_s: float | None) -> None:
    assert read((b"grpc-timeout", value)).timeout_s == pytest.approx(timeout_s)


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [(b"content-type", b"text/html", 415), (b":method", b"GET", 405), (b":path", b"", 400)],
)
def test_what_is_no_grpc_call_has_a_status_of_http(name: bytes, value: bytes, status: int) -> None:
    changed = [(key, value if key == name else old) for key, old in CALL]
    assert HeaderReader().read(Encoder().encode(changed)).malformed == status


def test_a_block_that_means_nothing_breaks_the_connection() -> None:
    for forget in (False, True):
        reader = HeaderReader()
        if forget:
            reader.forget_table()
        with pytest.raises(ProtocolError, match="expected headers") as caught:
            reader.read(b"\xff\xff\xff\x0f")
        assert caught.value.code == http2.COMPRESSION_ERROR


def trailers_of(status: Status) -> dict[str, str]:
    return {
        str(name): str(value) for name, value in Decoder().decode(status_block(status, begins=True))
    }


@given(message=st.text(max_size=300))
def test_any_sentence_survives(message: str) -> None:
    message = message.encode(errors="ignore").decode()
    told = trailers_of(Status(3, message, pushback_ms=5))
    assert unquote(told["grpc-message"]) == message
    assert told["grpc-message"].isascii()
    assert (told["grpc-status"], told["grpc-retry-pushback-ms"]) == ("3", "5")


def test_a_sentence_with_half_a_character_is_told_without_it() -> None:
    assert unquote(trailers_of(Status(3, "a \ud800 b"))["grpc-message"]) == "a ? b"


@pytest.mark.parametrize("message", ["模型" * 5000, "%" * 9000, "x" * 100_000])
def test_a_long_sentence_is_cut_where_it_still_reads(message: str) -> None:
    told = trailers_of(Status(3, message))["grpc-message"]
    assert len(told) < 8192
    assert message.startswith(unquote(told).removesuffix(" ..."))


def test_answers_index_nothing() -> None:
    decoder = Decoder()
    for data in (ANSWER_BEGINS, status_block(Status(5, "no"), begins=True)):
        decoder.decode(data)
    assert not decoder.header_table.dynamic_entries
