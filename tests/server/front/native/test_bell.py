"""Bell: heard once however often it rings, whenever it rings."""

import os
import select
import threading
from collections.abc import Iterator

import pytest

from tideserve.server.front.native.bell import Bell


@pytest.fixture
def bell() -> Iterator[Bell]:
    bell = Bell()
    bell.open()
    yield bell
    bell.close()


def is_heard(bell: Bell) -> bool:
    return bool(select.select((bell.fd,), (), (), 0)[0])


def test_rings_are_heard_once(bell: Bell) -> None:
    assert not is_heard(bell)
    for _ in range(3):
        bell.ring()
        bell.ring()
        assert is_heard(bell)
        bell.quiet()
        assert not is_heard(bell)


def test_it_ends_a_wait_of_another_thread(bell: Bell) -> None:
    ringing = threading.Thread(target=bell.ring)
    ringing.start()
    assert select.select((bell.fd,), (), (), 20)[0] == [bell.fd]
    ringing.join()


def test_rings_of_many_threads_are_one(bell: Bell) -> None:
    threads = [threading.Thread(target=bell.ring) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.eventfd_read(bell.fd) == 1


def test_a_ring_before_it_is_opened_is_heard() -> None:
    bell = Bell()
    bell.ring()
    fd = bell.open()
    assert fd == bell.fd
    assert is_heard(bell)
    bell.quiet()
    bell.ring()
    assert is_heard(bell)
    bell.close()


@pytest.mark.parametrize("rung", [False, True])
def test_a_ring_after_it_is_closed_hurts_nobody(rung: bool) -> None:
    """The file's number may be another's by then."""
    bell = Bell()
    fd = bell.open()
    if rung:
        bell.ring()
    bell.close()
    reader, writer = os.pipe()
    assert fd in (reader, writer)
    os.set_blocking(reader, False)
    bell.ring()
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)
