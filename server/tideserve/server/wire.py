"""Protobuf's wire format, for the few messages whose tensors are joined without a copy.

A serialized message may be put together from serialized pieces in any order
(https://protobuf.dev/programming-guides/encoding/), so a batch's bytes go from the callers'
requests into the answer by one join.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tideserve.v1.varint import varint

Buffer = bytes | memoryview


class Absent(ABC):
    """Bytes that lie elsewhere, and are fetched where they are wanted. Never raises: who fetches
    has no word for what is wrong with them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def write_to(self, target: memoryview) -> None:
        """All of them, into as much room."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """All of them."""


def header(field_number: int, length: int) -> bytes:
    """What precedes a length-delimited field of `length` bytes."""
    return varint(field_number << 3 | 2) + varint(length)


def embedded(field_number: int, pieces: Sequence[Buffer]) -> list[Buffer]:
    """The pieces as one length-delimited field (a message, string or bytes)."""
    return [header(field_number, sum(map(len, pieces))), *pieces]
