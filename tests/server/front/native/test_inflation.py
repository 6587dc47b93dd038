"""A compressed message, step by step."""

import gzip
import tracemalloc
import zlib

import pytest

from tideserve.server.errors import Code
from tideserve.server.front.native.errors import RefusedMessageError
from tideserve.server.front.native.inflation import Inflation

MIB = 1 << 20


def finish(inflation: Inflation) -> list[int]:
    """What was held after each step."""
    held = []
    while not inflation.is_done:
        inflation.step()
        held.append(inflation.held_bytes)
    return held


def inflated(packed: bytes, limit_bytes: int) -> list[int]:
    """How much came out after each step."""
    inflation = Inflation(b"gzip", packed, limit_bytes)
    out = [held_bytes - len(packed) for held_bytes in finish(inflation)]
    assert len(inflation.take()) == out[-1]
    return out


def test_a_step_gives_out_a_bounded_part() -> None:
    """All of it at once held the loop for 0.3 s at 128 MB."""
    out = inflated(gzip.compress(bytes(8 * MIB)), 8 * MIB)
    assert out[-1] == 8 * MIB
    assert max(after - before for before, after in zip([0, *out], out, strict=False)) <= MIB // 4


def test_a_step_takes_in_a_bounded_part() -> None:
    """A message of empty blocks gives out nothing for all that it takes in."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b"x") + packer.flush(zlib.Z_FULL_FLUSH)
    empty = bytes.fromhex("000000ffff")
    packed += empty * (MIB // len(empty)) + packer.flush()
    out = inflated(packed, 100)
    assert out[-1] == 1
    assert len(out) >= len(packed) // (16 * 1024)


def test_no_more_than_the_limit_ever_comes_out() -> None:
    packed = gzip.compress(bytes(64 * MIB))
    tracemalloc.start()
    inflation = Inflation(b"gzip", packed, 3 * MIB)
    with pytest.raises(RefusedMessageError) as caught:
        finish(inflation)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.status.code == Code.RESOURCE_EXHAUSTED
    assert str(3 * MIB) in caught.value.status.message
    assert inflation.held_bytes <= 3 * MIB + len(packed)
    assert most_bytes < 8 * MIB
    assert inflated(gzip.compress(bytes(3 * MIB)), 3 * MIB)[-1] == 3 * MIB


@pytest.mark.parametrize("packed", [b"", gzip.compress(bytes(MIB))[:-9], gzip.compress(b"")[:5]])
def test_a_part_of_a_message_is_none(packed: bytes) -> None:
    with pytest.raises(RefusedMessageError, match="a part"):
        inflated(packed, MIB)


def test_messages_that_wait_take_the_memory_of_their_bytes() -> None:
    packed = gzip.compress(b"small")
    tracemalloc.start()
    waiting = [Inflation(b"gzip", packed, MIB) for _ in range(1000)]
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken_bytes < 1000 * 1000
    assert finish(waiting[-1])[-1] == len(packed) + len(b"small")


def test_a_message_of_nothing_is_one() -> None:
    assert inflated(gzip.compress(b""), 0) == [0]
