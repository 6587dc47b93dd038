"""What the headers of a gRPC call say, and the blocks that a server answers with.

Sources: RFC 7541 (HPACK, by the hpack library),
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

import re
from base64 import b64decode
from binascii import Error as BinasciiError
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from tideserve.server.front import Metadata, Status
from tideserve.server.front.native.errors import ProtocolError
from tideserve.v1 import http2
from tideserve.v1.metadata import GRPC_PUSHBACK_METADATA_KEY, PUSHBACK_METADATA_KEY

#: Of one call's headers, as they travel and unpacked.
MAX_HEADER_BYTES: Final = 64 * 1024
# Header blocks and single fields remembered. A client's calls differ in their deadline at most.
_CACHED_BLOCKS: Final = 64
_CACHED_BLOCK_BYTES: Final = 1024
_CACHED_BLOCK_FIELDS: Final = 64
_CACHED_FIELDS: Final = 256
_CACHED_FIELD_BYTES: Final = 512
# What a field counts for beyond its bytes (RFC 9113, section 6.5.2).
_FIELD_OVERHEAD_BYTES: Final = 32
# What the transport means to itself.
_NO_METADATA: Final = frozenset(
    (b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding")
)
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# A refusal takes 40 us to write, and a server with too much to do writes the same one often.
_CACHED_STATUSES: Final = 64
# Clients take some 8 KiB of trailers; a longer sentence is cut.
_MAX_MESSAGE_BYTES: Final = 6 * 1024
# What need not be escaped in grpc-message: printable ASCII but the percent sign.
_PLAIN: Final = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)


class RequestHead(NamedTuple):
    """`timeout_s` None: no deadline. `malformed`: why this is no gRPC call, as HTTP status."""

    path: str
    metadata: Metadata
    timeout_s: float | None
    encoding: bytes
    malformed: int | None


class HeaderReader:
    """One connection's header blocks. Until `forget_table` blocks may refer to earlier ones; from
    then on each means the same whenever it comes, and is read once."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_HEADER_BYTES)
        self._stateless = False
        self._heads: dict[bytes, RequestHead] = {}
        self._fields: dict[bytes, tuple[bytes, bytes]] = {}

    def forget_table(self) -> None:
        """The client has taken our setting of a header table of no size."""
        self._decoder.header_table_size = 0
        self._decoder.max_allowed_table_size = 0
        self._stateless = True

    def read(self, block: bytes) -> RequestHead:
        """Raises `ProtocolError`: what was not understood would change what follows."""
        head = self._heads.get(block)
        if head is not None:
            return head
        if not self._stateless:
            return _head(self._decode(block))
        fields = split_fields(block)
        if fields is None:  # a change of the table's size goes before it
            return _head(self._decode(block))
        if len(fields) * _FIELD_OVERHEAD_BYTES > MAX_HEADER_BYTES:
            raise _too_large(len(fields) * _FIELD_OVERHEAD_BYTES)
        decoded = [self._field(field) for field in fields]
        # A field of one byte may stand for 60: of a smaller block they cannot be too many.
        if len(block) > _CACHED_BLOCK_BYTES:
            size = sum(_FIELD_OVERHEAD_BYTES + len(name) + len(value) for name, value in decoded)
            if size > MAX_HEADER_BYTES:
                raise _too_large(size)
        head = _head(decoded)
        if len(block) <= _CACHED_BLOCK_BYTES and len(fields) <= _CACHED_BLOCK_FIELDS:
            if len(self._heads) >= _CACHED_BLOCKS:
                self._heads.clear()
            self._heads[block] = head
        return head

    def _field(self, field: bytes) -> tuple[bytes, bytes]:
        known = self._fields.get(field)
        if known is not None:
            return known
        decoded = self._decode(field)[0]
        if len(field) <= _CACHED_FIELD_BYTES:
            if len(self._fields) >= _CACHED_FIELDS:
                self._fields.clear()
            self._fields[field] = decoded
        return decoded

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        try:
            return [
                (bytes(name), bytes(value)) for name, value in self._decoder.decode(block, True)
            ]
        except (HPACKError, IndexError) as error:
            raise ProtocolError(
                http2.COMPRESSION_ERROR, f"expected headers, got {len(block)} bytes: {error}"
            ) from error


def _too_large(size_bytes: int) -> ProtocolError:
    return ProtocolError(
        http2.ENHANCE_YOUR_CALM,
        f"expected at most {MAX_HEADER_BYTES} bytes of headers, got {size_bytes}",
    )


def split_fields(block: bytes) -> list[bytes] | None:
    """A block's header fields, each as it came (RFC 7541, section 6). None where it holds more
    than fields, or is cut off."""
    fields = []
    at, size = 0, len(block)
    try:
        while at < size:
            begin = at
            first = block[at]
            if first & 0x80:
                _, at = _integer(block, at, 0x7F)
            elif first & 0xE0 == 0x20:
                return None
            else:
                name, at = _integer(block, at, 0x3F if first & 0x40 else 0x0F)
                if not name:
                    length, at = _integer(block, at, 0x7F)
                    at += length
                length, at = _integer(block, at, 0x7F)
                at += length
            fields.append(block[begin:at])
    except IndexError:
        return None
    return fields if at == size else None


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """A number in HPACK's form whose first byte has `mask` bits of it; and where it ends."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 28:
            return value, at


def _head(fields: list[tuple[bytes, bytes]]) -> RequestHead:
    path = content_type = encoding = method = b""
    timeout_s: float | None = None
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name[:1] == b":":
            if name == b":path":
                path = value
            elif name == b":method":
                method = value
        elif name not in _NO_METADATA:
            metadata += _metadata(name, value)
        elif name == b"grpc-timeout":
            timeout_s = _timeout_s(value)
        elif name == b"content-type":
            content_type = value
        elif name == b"grpc-encoding":
            encoding = value
    malformed = None
    if not content_type.startswith(b"application/grpc"):
        malformed = 415
    elif method != b"POST":
        malformed = 405
    elif not path:
        malformed = 400
    return RequestHead(path.decode("latin-1"), tuple(metadata), timeout_s, encoding, malformed)


def _metadata(name: bytes, value: bytes) -> list[tuple[str, str | bytes]]:
    key = name.decode("latin-1")
    if not name.endswith(b"-bin"):
        return [(key, value.decode("latin-1"))]
    # Several of one name may come joined: base64 has no comma.
    return [(key, _binary(part)) for part in value.split(b",")]


def _binary(value: bytes) -> bytes:
    """As it came where it is no base64."""
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except BinasciiError:
        return value


def _timeout_s(value: bytes) -> float | None:
    """None, so no deadline at all, for what is no time."""
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _UNIT_S[match[2]] if match else None


# --- answers ---------------------------------------------------------------------------------


def _block(*headers: tuple[str, str]) -> bytes:
    """A block in which nothing is indexed, so that it is the same on every connection."""
    encoder = Encoder()
    return encoder.encode([NeverIndexedHeaderTuple(name, value) for name, value in headers])


ANSWER_BEGINS: Final = _block(
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("grpc-accept-encoding", "identity,gzip,deflate"),
)
#: Before the first block of a connection: that no table is used (RFC 7541, section 6.3). A client
#: whose own table is smaller than the 4096 bytes that both begin with has to be told.
NO_TABLE: Final = b"\x20"
ANSWER_IS_OK: Final = _block(("grpc-status", "0"))


@lru_cache(_CACHED_STATUSES)
def status_block(status: Status, *, begins: bool) -> bytes:
    """The trailers of a call that fails; with `begins` they are all of its answer."""
    headers = [(":status", "200"), ("content-type", "application/grpc")] if begins else []
    headers += [
        ("grpc-status", str(int(status.code))),
        ("grpc-message", _escaped(status.message)),
    ]
    if status.pushback_ms is not None:
        pushback = str(status.pushback_ms)
        headers += [(GRPC_PUSHBACK_METADATA_KEY, pushback), (PUSHBACK_METADATA_KEY, pushback)]
    return _block(*headers)


def _escaped(message: str) -> str:
    escaped = quote(message, safe=_PLAIN, errors="replace")
    if len(escaped) <= _MAX_MESSAGE_BYTES:
        return escaped
    # Not within an escape, nor within a character of several.
    plain = message.encode(errors="replace")[: _MAX_MESSAGE_BYTES // 3].decode(errors="ignore")
    return quote(plain + " ...", safe=_PLAIN)


def http_status_block(status: int) -> bytes:
    """The whole answer to what is no gRPC call."""
    return _block((":status", str(status)))
