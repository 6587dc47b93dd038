"""The bounded pool of segments of shared memory."""

import fcntl
import os
from pathlib import Path

import pytest

from tideserve.client import segments
from tideserve.client.segments import MAX_SEGMENTS, MIN_SEGMENT_BYTES, Segment, SegmentPool
from tideserve.v1.segments import PREFIX


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(segments, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def pool(folder: Path) -> SegmentPool:
    return SegmentPool(is_on=True)


def make(pool: SegmentPool, byte_size: int) -> Segment:
    segment, dropped = pool.make(byte_size)
    assert segment is not None
    assert not dropped
    return segment


def test_a_segment_is_the_owners_alone_and_locked_until_it_is_dropped(
    pool: SegmentPool, folder: Path
) -> None:
    segment = make(pool, 5)
    path = folder / segment.name
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 >= segment.byte_size == MIN_SEGMENT_BYTES
    with path.open("rb") as seen:
        segment.unlink()
        segment.unlink()
        assert not path.exists()
        with pytest.raises(BlockingIOError):
            fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)
        segment.memory[:3] = b"abc"
        assert seen.read(3) == b"abc"
        pool.discard(segment)
        fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("asked", "made"),
    [(1, 1 << 20), (1 << 20, 1 << 20), ((1 << 20) + 1, 1 << 21), (3 << 20, 1 << 22)],
)
def test_sizes_are_rounded_up_to_be_of_use_again(pool: SegmentPool, asked: int, made: int) -> None:
    assert make(pool, asked).byte_size == made


def test_the_smallest_free_one_that_is_large_enough_is_taken(pool: SegmentPool) -> None:
    large, small = make(pool, 1 << 22), make(pool, 1 << 20)
    assert pool.take(1) is None
    pool.give_back(large)
    pool.give_back(small)

    assert pool.take(1 << 20) is small
    assert pool.take(1 << 20) is large
    assert pool.take(1 << 20) is None


def test_a_pool_that_is_full_makes_room_of_what_is_free(pool: SegmentPool) -> None:
    held = [make(pool, 1) for _ in range(MAX_SEGMENTS)]
    assert pool.make(1) == (None, [])
    pool.give_back(held[3])

    segment, dropped = pool.make(1 << 22)

    assert segment is not None
    assert dropped == [held[3].name]
    assert pool.make(1) == (None, [])


def test_the_bytes_are_bounded_too(pool: SegmentPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MAX_BYTES", 8 << 20)
    first, second = make(pool, 4 << 20), make(pool, 4 << 20)
    assert pool.make(1) == (None, [])
    pool.give_back(first)
    assert pool.make(9 << 20) == (None, [])
    assert pool.take(4 << 20) is first
    pool.give_back(first)
    pool.give_back(second)

    segment, dropped = pool.make(8 << 20)

    assert segment is not None
    assert sorted(dropped) == sorted([first.name, second.name])


def test_forgotten_segments_go_at_once_or_as_they_are_given_back(pool: SegmentPool) -> None:
    free, taken = make(pool, 1), make(pool, 1)
    pool.give_back(free)
    pool.forget(taken)
    assert [free.memory.closed, taken.memory.closed] == [True, False]
    pool.give_back(taken)
    assert [free.memory.closed, taken.memory.closed] == [True, True]
    assert pool.take(1) is None
    assert pool.is_on


def test_a_server_that_knows_none_of_the_new_ones_either_is_asked_no_more(
    pool: SegmentPool,
) -> None:
    first, beside = make(pool, 1), make(pool, 1)
    pool.forget(first)
    # Of the same time: it says nothing new.
    pool.forget(beside)
    # Unless the server was told of it after it was started again.
    answered, dropped = pool.make(1)
    assert answered is not None
    assert dropped == [beside.name]
    pool.give_back(answered)
    pool.forget(answered)
    last = make(pool, 1)
    pool.forget(last)
    assert pool.make(1) == (None, [])
    for segment in (first, beside, last):
        pool.give_back(segment)
    assert not pool.is_on
    assert pool.close() == []


def test_one_that_somebody_still_looks_at_goes_from_the_pool_and_then_by_itself(
    pool: SegmentPool,
) -> None:
    """As one whose copying was interrupted: the traceback refers to it."""
    segment = make(pool, 1)
    with memoryview(segment.memory):
        pool.abandon(segment)
        others = [pool.make(1) for _ in range(MAX_SEGMENTS)]
    assert [dropped for _, dropped in others] == [[segment.name]] + [[]] * (MAX_SEGMENTS - 1)
    assert None not in [other for other, _ in others]


def test_a_closed_pool_names_what_is_to_be_unregistered_and_makes_no_more(
    pool: SegmentPool,
) -> None:
    free, taken = make(pool, 1), make(pool, 1)
    pool.give_back(free)

    assert sorted(pool.close()) == sorted([free.name, taken.name])
    assert pool.close() == []
    assert pool.make(1) == (None, [])
    assert pool.take(1) is None
    pool.give_back(taken)
    assert taken.memory.closed


def test_without_memory_there_is_no_segment_and_no_file(
    pool: SegmentPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    assert pool.make(1) == (None, [])
    assert not list(folder.iterdir())


def test_at_most_half_of_what_is_left_is_taken(
    pool: SegmentPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(folder)
    blocks = 3 * MIN_SEGMENT_BYTES // real.f_frsize
    fields = (*real[:4], blocks, *real[5:])
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert pool.make(2 * MIN_SEGMENT_BYTES) == (None, [])
    make(pool, MIN_SEGMENT_BYTES)
    assert pool.is_on


def test_a_pool_that_is_off_makes_nothing(folder: Path) -> None:
    pool = SegmentPool(is_on=False)
    assert pool.make(1) == (None, [])
    assert pool.take(1) is None
    assert pool.close() == []
    assert not list(folder.iterdir())


def test_what_a_killed_client_left_goes_and_what_lives_stays(
    pool: SegmentPool, tmp_path: Path
) -> None:
    living, _ = pool.make(MIN_SEGMENT_BYTES)
    assert living is not None
    orphan = tmp_path / f"{PREFIX}orphan"
    orphan.write_bytes(b"left")
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"not ours")
    another, _ = pool.make(MIN_SEGMENT_BYTES)
    assert another is not None
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {living.name, another.name, "stranger"}
