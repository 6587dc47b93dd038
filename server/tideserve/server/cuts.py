"""A request's bytes, cut into what is remembered of it and its raw contents.

Only what is laid out as protobuf libraries write it: all else goes through protobuf.
"""

from typing import Final, NamedTuple

from tideserve.server.parts import Parts
from tideserve.server.wire import Buffer
from tideserve.v1.inference_pb2 import ModelInferRequest

# A head longer than this is not worth its memory.
MAX_HEAD_BYTES: Final = 4096
# With more fields than this a request is nothing that clients send, and not worth this loop.
MAX_FIELDS: Final = 4096
# In parts a field takes up to a microsecond, 25 times what it does in one piece, and as long as to
# join so many bytes: beside the first fields, a message has one for as many, or it is joined.
PARTS_FIELDS: Final = 64
_FIELD_SHARE_BYTES: Final = 4096
# Below this, copying a content costs less than a view on it.
COPY_BYTES: Final = 1024

# A field's tag, and its length: below 2**35, in base 128.
_FIELD_BYTES: Final = 1 + 5
_MAX_LENGTH_SHIFT: Final = 7 * 5
# No message has so many bytes.
_NEVER: Final = 1 << 40
# Of a message in parts, looked at in one piece.
_WINDOW_BYTES: Final = MAX_HEAD_BYTES + COPY_BYTES

RAW_TAG: Final = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2
_ID_TAG: Final = ModelInferRequest.ID_FIELD_NUMBER << 3 | 2
_HEAD_TAGS: Final = frozenset(
    number << 3 | 2
    for number in (
        ModelInferRequest.MODEL_NAME_FIELD_NUMBER,
        ModelInferRequest.MODEL_VERSION_FIELD_NUMBER,
        ModelInferRequest.PARAMETERS_FIELD_NUMBER,
        ModelInferRequest.INPUTS_FIELD_NUMBER,
        ModelInferRequest.OUTPUTS_FIELD_NUMBER,
    )
)


class Cut(NamedTuple):
    """A request's bytes, taken apart."""

    head: bytes
    request_id: str
    raw: list[Buffer | Parts]


def take_apart(message: bytes | Parts) -> Cut | None:
    """Cuts a request whose raw contents come last, as protobuf libraries write it; None for
    bytes that are laid out in another way, or are no request.

    Of one in parts contents are left in the parts they came in; None also where its head is so long
    that nobody remembers it, or its fields are so many that to join the parts costs less."""
    end = len(message)
    window, fields = _first_window(message)
    at = base = id_begin = id_end = 0  # a place in the window is one less `base`
    request_id = ""
    head: bytes | None = None
    raw: list[Buffer | Parts] = []
    try:
        for _ in range(fields):
            if at >= end:
                break
            if at + _FIELD_BYTES > base + len(window) < end:
                if head is None:
                    return None
                assert isinstance(message, Parts), "bytes are all in the window"
                base = at
                window = message.read(at, min(end, at + _FIELD_BYTES))
            begin = at - base
            tag = window[begin]
            length, inner = _length(window, begin + 1)
            at = base + inner
            stop = at + length
            if stop > end:
                return None
            if tag == RAW_TAG:
                if head is None:
                    head = window[:id_begin] + window[id_end:begin]
                raw.append(_content(message, at, stop))
            elif (
                raw or (tag not in _HEAD_TAGS and (tag != _ID_TAG or id_end)) or stop > len(window)
            ):
                return None
            elif tag == _ID_TAG:
                request_id = window[inner:stop].decode()
                id_begin, id_end = begin, stop
            at = stop
        else:
            return None
    except (IndexError, UnicodeDecodeError):
        return None
    if head is None:  # no raw contents: it was all in the window
        head = window[:id_begin] + window[id_end:]
    return Cut(head, request_id, raw)


def _first_window(message: bytes | Parts) -> tuple[bytes, int]:
    """What its head is read from, and how many fields it may have."""
    if isinstance(message, bytes):
        return message, MAX_FIELDS
    end = len(message)
    fields = min(MAX_FIELDS, PARTS_FIELDS + end // _FIELD_SHARE_BYTES)
    return message.read(0, min(end, _WINDOW_BYTES)), fields


def _content(message: bytes | Parts, begin: int, end: int) -> Buffer | Parts:
    is_small = end - begin <= COPY_BYTES
    if isinstance(message, bytes):
        return message[begin:end] if is_small else memoryview(message)[begin:end]
    if is_small:
        return message.read(begin, end)
    pieces = message.cut(begin, end)
    return pieces[0] if len(pieces) == 1 else Parts(pieces, end - begin)


def _length(window: bytes, at: int) -> tuple[int, int]:
    """A length, and where it ends. No message is so long that its length takes more than five
    bytes."""
    length = window[at]
    at += 1
    if length < 0x80:
        return length, at
    length &= 0x7F
    for shift in range(7, _MAX_LENGTH_SHIFT, 7):
        more = window[at]
        at += 1
        length |= (more & 0x7F) << shift
        if more < 0x80:
            return length, at
    return _NEVER, at
