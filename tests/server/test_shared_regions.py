"""Regions that clients register: what may be one, what is read and written, what is closed."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tideserve.server.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    RegionLimitError,
    TideserveError,
)
from tideserve.server.placement import Place
from tideserve.server.shared_regions import MAX_NAME_BYTES, MAX_REGIONS, SharedRegions
from tideserve.v1.segments import PREFIX

CONTENT = bytes(range(100))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "segment").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def regions(folder: Path) -> SharedRegions:
    return SharedRegions(1 << 20, folder)


def open_files(regions: SharedRegions) -> int:
    """Of this process, in the folder of segments: what other tests' threads open is not counted."""
    folder, count = f"{regions.folder.resolve()}/", 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            count += str(link.readlink()).startswith(folder)
    return count


@pytest.mark.parametrize("key", ["/segment", "segment"])
def test_a_region_is_read_and_written_from_its_offset_on(
    regions: SharedRegions, folder: Path, key: str
) -> None:
    regions.register("r", key, 10, 50)

    assert regions.slice(Place("r", 5, 20), "it").read() == CONTENT[15:35]
    regions.slice(Place("r", 47, 3), "it").write(b"xyz")
    assert (folder / "segment").read_bytes() == CONTENT[:57] + b"xyz" + CONTENT[60:]


def test_the_status_is_of_one_region_or_of_all(regions: SharedRegions) -> None:
    regions.register("a", "/segment", 0, 100)
    regions.register("b", "segment", 60, 40)

    assert [(it.name, it.key, it.offset, it.byte_size) for it in regions.status("")] == [
        ("a", "/segment", 0, 100),
        ("b", "segment", 60, 40),
    ]
    assert [it.name for it in regions.status("b")] == ["b"]
    with pytest.raises(NotFoundError, match=r"'c' is not registered, registered are: 'a', 'b'$"):
        regions.status("c")


def test_a_name_is_registered_once_until_it_is_unregistered(regions: SharedRegions) -> None:
    regions.register("r", "/segment", 0, 100)
    with pytest.raises(AlreadyExistsError, match="'r' is registered already: unregister it first"):
        regions.register("r", "/segment", 0, 100)
    regions.unregister("r")
    regions.register("r", "/segment", 0, 10)

    (region,) = regions.status("r")
    assert region.byte_size == 10


def test_unregistering_without_a_name_is_of_all_and_an_unknown_one_is_no_mistake(
    regions: SharedRegions,
) -> None:
    before = open_files(regions)
    for name in ("a", "b", "c"):
        regions.register(name, "/segment", 0, 100)
    regions.unregister("a")
    regions.unregister("a")
    assert [it.name for it in regions.status("")] == ["b", "c"]
    assert open_files(regions) == before + 2
    regions.unregister("")
    assert not regions.status("")
    assert open_files(regions) == before


@pytest.mark.parametrize(
    ("name", "key", "offset", "byte_size", "kind", "says"),
    [
        ("", "/segment", 0, 1, InvalidRequestError, "a name of 1 to 256 bytes, got 0"),
        ("n" * (MAX_NAME_BYTES + 1), "/segment", 0, 1, InvalidRequestError, "got 257"),
        ("r", "/none", 0, 1, NotFoundError, "no segment '/none' on the server's machine: create"),
        ("r", "", 0, 1, InvalidRequestError, "such as '/input', got ''"),
        ("r", "/", 0, 1, InvalidRequestError, "got '/'"),
        ("r", ".", 0, 1, InvalidRequestError, "got '.'"),
        ("r", "..", 0, 1, InvalidRequestError, "got '..'"),
        ("r", "/../segment", 0, 1, InvalidRequestError, "got '/../segment'"),
        ("r", "//segment", 0, 1, InvalidRequestError, "got '//segment'"),
        ("r", "/folder/segment", 0, 1, InvalidRequestError, "got '/folder/segment'"),
        ("r", "/segment\0", 0, 1, InvalidRequestError, "such as '/input'"),
        ("r", "/" + "k" * 256, 0, 1, InvalidRequestError, "such as '/input'"),
        ("r", "/link", 0, 1, InvalidRequestError, "may read and write at '/link'"),
        ("r", "/folder", 0, 1, InvalidRequestError, "may read and write at '/folder'"),
        ("r", "/pipe", 0, 1, InvalidRequestError, "a file of another kind at key '/pipe'"),
        ("r", "/segment", 0, 0, InvalidRequestError, "a byte_size of 1 or more, got 0"),
        ("r", "/segment", 0, 101, InvalidRequestError, "within the 100 bytes of '/segment'"),
        ("r", "/segment", 100, 1, InvalidRequestError, "got 100 \\+ 1"),
        ("r", "/segment", 2**64 - 1, 2**64 - 1, InvalidRequestError, "within the 100 bytes"),
    ],
)
def test_what_is_no_segment_is_refused_with_what_was_expected(
    regions: SharedRegions,
    folder: Path,
    name: str,
    key: str,
    offset: int,
    byte_size: int,
    kind: type[TideserveError],
    says: str,
) -> None:
    (folder / "folder").mkdir()
    (folder / "folder" / "segment").write_bytes(CONTENT)
    (folder / "link").symlink_to(folder / "segment")
    os.mkfifo(folder / "pipe")
    before = open_files(regions)
    with pytest.raises(kind, match=says) as refused:
        regions.register(name, key, offset, byte_size)
    assert not regions.status("")
    del refused
    assert open_files(regions) == before


def test_the_number_of_regions_is_bounded(regions: SharedRegions) -> None:
    for at in range(MAX_REGIONS):
        regions.register(f"r{at}", "/segment", 0, 100)
    with pytest.raises(RegionLimitError, match="unregister some first"):
        regions.register("more", "/segment", 0, 100)
    with pytest.raises(InvalidRequestError, match=r"'r0', .*, and 504 more"):
        regions.slice(Place("more", 0, 1), "it")


def test_a_server_without_a_file_left_says_so(
    regions: SharedRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", no_file)
    with pytest.raises(RegionLimitError, match="no file left"):
        regions.register("r", "/segment", 0, 100)


@pytest.mark.parametrize(
    ("offset", "byte_size"), [(0, 51), (50, 1), (51, 0), (2**64 - 1, 2**64 - 1)]
)
def test_a_place_beyond_its_region_is_refused_though_the_segment_goes_on(
    regions: SharedRegions, offset: int, byte_size: int
) -> None:
    regions.register("r", "/segment", 0, 50)
    with pytest.raises(InvalidRequestError, match=r"^it: .* within the 50 bytes .* 'r', got"):
        regions.slice(Place("r", offset, byte_size), "it")


def test_a_segment_that_is_cut_short_is_a_refusal_and_is_not_made_longer(
    regions: SharedRegions, folder: Path
) -> None:
    regions.register("r", "/segment", 10, 90)
    place = regions.slice(Place("r", 0, 90), "it")
    os.truncate(folder / "segment", 99)

    with pytest.raises(InvalidRequestError, match="at least 100 bytes, got fewer: it was cut"):
        place.read()
    with pytest.raises(InvalidRequestError, match="at least 100 bytes, got fewer: it was cut"):
        place.write(bytes(90))
    assert (folder / "segment").read_bytes() == CONTENT[:99]
    assert regions.slice(Place("r", 0, 89), "it").read() == CONTENT[10:99]


def test_memory_that_is_out_is_a_refusal(
    regions: SharedRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    regions.register("r", "/segment", 0, 100)
    place = regions.slice(Place("r", 0, 10), "it")
    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(InvalidRequestError, match="cannot be written: No space left"):
        place.write(bytes(10))
    monkeypatch.setattr(os, "pwrite", lambda *_: 4)
    with pytest.raises(InvalidRequestError, match="expected to write 10 bytes, got 4"):
        place.write(bytes(10))


def test_a_place_outlives_its_registration_and_its_segment_and_then_all_is_closed(
    regions: SharedRegions, folder: Path
) -> None:
    before = open_files(regions)
    regions.register("r", "/segment", 0, 100)
    place = regions.slice(Place("r", 0, 100), "it")
    (folder / "segment").unlink()
    regions.unregister("r")

    place.write(CONTENT[::-1])
    assert place.read() == CONTENT[::-1]
    assert open_files(regions) == before + 1
    del place
    assert open_files(regions) == before


def test_what_one_request_reads_is_bounded(regions: SharedRegions) -> None:
    regions.check_size(1 << 20, "model 'm'")
    with pytest.raises(MessageTooLargeError, match="'m': expected inputs of at most 1048576"):
        regions.check_size((1 << 20) + 1, "model 'm'")


def test_a_region_whose_client_locked_it_goes_with_its_client(
    regions: SharedRegions, folder: Path
) -> None:
    before = open_files(regions)
    with (folder / "segment").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        regions.register("locked", "/segment", 0, 100)
        assert regions.sweep() == []
        assert regions.sweep() == []
        place = regions.slice(Place("locked", 0, 100), "it")
    regions.register("plain", "/segment", 0, 100)
    assert regions.sweep() == ["locked"]
    assert regions.sweep() == []

    assert [it.name for it in regions.status("")] == ["plain"]
    assert place.read() == CONTENT
    del place
    regions.close()
    assert open_files(regions) == before


def test_a_client_of_ours_that_was_killed_as_it_registered_leaves_nothing(
    regions: SharedRegions, folder: Path
) -> None:
    """Before the server looked at its segment, or before it had asked."""
    before = open_files(regions)
    for name in ("asked", "silent", "living"):
        (folder / f"{PREFIX}{name}").write_bytes(CONTENT)
    (folder / f"{PREFIX}living-only-in-name").symlink_to(folder / "segment")
    with (folder / f"{PREFIX}living").open("rb") as living:
        fcntl.flock(living, fcntl.LOCK_SH)
        regions.register("asked", f"/{PREFIX}asked", 0, 100)
        assert regions.sweep() == ["asked"]
        assert sorted(it.name for it in folder.iterdir()) == [
            "segment", f"{PREFIX}living", f"{PREFIX}living-only-in-name",
        ]  # fmt: skip
    assert (folder / "segment").read_bytes() == CONTENT
    assert open_files(regions) == before


def test_closing_forgets_all_regions(regions: SharedRegions) -> None:
    before = open_files(regions)
    regions.register("r", "/segment", 0, 100)
    regions.close()
    regions.close()
    assert open_files(regions) == before
