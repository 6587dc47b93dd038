"""The memory of one life, from both ends."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tideserve.replica.arena import Outbox, open_arena
from tideserve.replica.errors import WireError
from tideserve.server.arena import TRIM_AFTER_S, Arena, Arenas
from tideserve.v1 import replica_pb2
from tideserve.v1.arena import MIN_BYTES

CAPACITY_BYTES = 1 << 20
HELD = {1: None}


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(CAPACITY_BYTES)
    yield arena
    arena.close()


def file_bytes(arena: Arena) -> int:
    """Of pages in use."""
    return Path(arena.message().path).stat().st_blocks * 512


def test_a_lease_is_read_where_it_was_joined(arena: Arena) -> None:
    replica = open_arena(arena.message())
    assert replica is not None
    offsets = arena.place(1, [[b"ab", memoryview(b"cde")], [b"second"]])
    assert offsets is not None
    assert bytes(replica.tensor(offsets[0], 5)) == b"abcde"
    assert bytes(replica.tensor(offsets[1], 6)) == b"second"
    assert all(offset % 64 == 0 for offset in offsets)
    with pytest.raises(TypeError):
        replica.tensor(offsets[0], 5)[0] = 0


def test_outputs_are_read_where_they_were_put_until_they_are_freed(arena: Arena) -> None:
    replica = open_arena(arena.message())
    assert replica is not None
    outbox = Outbox(replica)
    transposed = np.arange(8192, dtype=np.float32).reshape(64, 128).T
    offsets = outbox.put([transposed, b"text" * 100, np.empty((0, 3), np.int64)])
    assert offsets is not None
    assert bytes(arena.output(offsets[0], transposed.nbytes)) == transposed.tobytes()
    assert bytes(arena.output(offsets[1], 400)) == b"text" * 100
    with pytest.raises(TypeError):
        arena.output(offsets[1], 400)[0] = 0
    assert replica.used_bytes == transposed.nbytes + 448
    assert outbox.extent == offsets[0]
    replica.free(offsets[0])
    assert replica.used_bytes == 0


def test_small_outputs_and_those_without_room_travel_in_the_message(arena: Arena) -> None:
    replica = open_arena(arena.message())
    assert replica is not None
    for data in (bytes(MIN_BYTES - 1), bytes(CAPACITY_BYTES + 1)):
        outbox = Outbox(replica)
        assert outbox.put([data]) is None
        assert outbox.extent is None
    assert Outbox(replica).put([bytes(MIN_BYTES)]) is not None


def test_places_are_freed_when_leases_are_no_longer_held(arena: Arena) -> None:
    half = bytes(CAPACITY_BYTES // 2)
    first = arena.place(1, [[half]])
    assert arena.place(2, [[half]]) is not None
    assert arena.place(3, [[b"x"]]) is None
    arena.tend({2: None}, 0.0)
    assert arena.used_bytes == CAPACITY_BYTES // 2
    assert arena.place(3, [[half]]) == first


def test_a_lease_that_is_placed_again_stays_as_it_is(arena: Arena) -> None:
    """A replica may be reading it: its second copy is not even written."""
    replica = open_arena(arena.message())
    assert replica is not None
    first = arena.place(1, [[b"first"]])
    assert first is not None
    assert arena.place(1, [[b"again"]]) == first
    assert bytes(replica.tensor(first[0], 5)) == b"first"
    assert arena.used_bytes == 64


def test_pages_go_back_when_nothing_was_held_for_long(arena: Arena) -> None:
    replica = open_arena(arena.message())
    assert replica is not None
    arena.place(1, [[bytes(CAPACITY_BYTES)]])
    offsets = Outbox(replica).put([bytes(CAPACITY_BYTES)])
    assert offsets is not None
    arena.output(offsets[0], CAPACITY_BYTES)
    arena.tend(HELD, 100.0)
    arena.tend({}, 100.0 + TRIM_AFTER_S / 2)
    assert file_bytes(arena) > 2 * CAPACITY_BYTES
    for windows in (1, 2):
        arena.tend({}, 100.0 + windows * TRIM_AFTER_S)
    # The page of the key, and one that belongs to both halves.
    assert file_bytes(arena) <= 2 * 4096
    # The key and what comes later are as they were.
    again = open_arena(arena.message())
    place = arena.place(2, [[b"later"]])
    assert again is not None
    assert place is not None
    assert bytes(again.tensor(place[0], 5)) == b"later"


def test_pages_of_a_burst_go_back_though_small_leases_are_always_held(arena: Arena) -> None:
    replica = open_arena(arena.message())
    assert replica is not None
    small = arena.place(1, [[b"small"]])
    arena.place(2, [[bytes(CAPACITY_BYTES - 64)]])
    assert small is not None
    for windows in range(1, 4):
        arena.tend(HELD, 100.0 + windows * TRIM_AFTER_S)
    assert file_bytes(arena) <= 2 * 4096
    assert bytes(replica.tensor(small[0], 5)) == b"small"


def test_pages_that_a_device_has_registered_stay() -> None:
    arena = Arena(CAPACITY_BYTES, keeps_pages=True)
    assert arena.message().keeps_pages
    assert open_arena(arena.message())
    arena.place(1, [[bytes(CAPACITY_BYTES)]])
    for windows in range(1, 4):
        arena.tend({}, 100.0 + windows * TRIM_AFTER_S)
    assert file_bytes(arena) > CAPACITY_BYTES
    arena.close()


def test_a_copy_stays_when_its_place_is_used_again(arena: Arena) -> None:
    replica = open_arena(arena.message())
    assert replica is not None
    outbox = Outbox(replica)
    offsets = outbox.put([b"x" * MIN_BYTES])
    assert offsets is not None
    copied = arena.copy_of(offsets[0], MIN_BYTES)
    replica.write(offsets[0], bytes(MIN_BYTES))
    assert bytes(copied) == b"x" * MIN_BYTES


def test_a_system_that_takes_no_pages_back_changes_nothing(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        def madvise(self, *_: int) -> None:
            raise OSError(38, "Function not implemented")

    arena.place(1, [[bytes(CAPACITY_BYTES)]])
    monkeypatch.setattr(arena, "_memory", Memory())
    for windows in range(1, 4):
        arena.tend({}, 100.0 + windows * TRIM_AFTER_S)
    assert arena.used_bytes == 0


def test_outputs_elsewhere_are_refused(arena: Arena) -> None:
    begin, end = arena.message().outcome_begin, arena.message().end
    assert arena.output(begin, end - begin)
    for offset, size_bytes in ((0, 64), (begin - 1, 64), (end - 64, 65), (end + 1, 0)):
        with pytest.raises(ValueError, match="expected an output between"):
            arena.output(offset, size_bytes)


def test_inputs_elsewhere_are_refused(arena: Arena) -> None:
    replica = open_arena(arena.message())
    assert replica is not None
    with pytest.raises(WireError, match="expected an input in the arena's first"):
        replica.tensor(arena.message().outcome_begin - 1, 2)


def test_a_replica_cannot_shrink_it_under_the_frontend(arena: Arena) -> None:
    file = os.open(arena.message().path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def test_what_is_not_the_memory_that_was_meant_is_not_used(arena: Arena, tmp_path: Path) -> None:
    meant = arena.message()
    other = tmp_path / "other"
    other.write_bytes(bytes(meant.end))
    smaller = tmp_path / "smaller"
    smaller.write_bytes(meant.key)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (other, smaller, pipe, tmp_path, tmp_path / "missing"):
        strange = replica_pb2.Arena()
        strange.CopyFrom(meant)
        strange.path = str(path)
        assert open_arena(strange) is None


def test_memory_whose_file_was_passed_is_mapped_from_it_alone(arena: Arena, tmp_path: Path) -> None:
    """In a container the path means something else, or nothing."""
    message = arena.message(file_sent=True)
    assert open_arena(message) is None
    message.path = "/nowhere"
    file = os.dup(arena.file)
    replica = open_arena(message, file)
    assert replica is not None
    offsets = arena.place(1, [[b"lease"]])
    assert offsets is not None
    assert bytes(replica.tensor(offsets[0], 5)) == b"lease"
    assert inode(file) != inode(arena.file)
    strange = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.ftruncate(strange, message.end)
    opened = inode(strange)
    assert open_arena(message, strange) is None
    assert inode(strange) != opened


def inode(file: int) -> int | None:
    """What the number stands for; a closed one may stand for what another thread has opened since."""
    try:
        return os.fstat(file).st_ino
    except OSError:
        return None


def test_views_outlive_a_closed_arena() -> None:
    arenas = Arenas(CAPACITY_BYTES)
    opened = arenas.open("r")
    assert opened is not None
    message = opened.message()
    assert arenas.of("r") is None
    replica = open_arena(message)
    arenas.on_mapped("r")
    arena = arenas.of("r")
    assert arena is not None
    assert replica is not None
    offsets = Outbox(replica).put([b"x" * MIN_BYTES])
    assert offsets is not None
    view = arena.output(offsets[0], MIN_BYTES)
    assert (arenas.mapped, arenas.used_bytes) == (1, 0)
    arenas.close_all()
    assert bytes(view) == b"x" * MIN_BYTES
    assert arenas.of("r") is None
    assert not Path(message.path).exists()


def test_without_capacity_there_is_none() -> None:
    assert Arenas(0).open("r") is None
