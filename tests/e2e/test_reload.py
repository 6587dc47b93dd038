"""Files that change, models that come and go, under load: no call is lost (design 15.5)."""

import asyncio
import shutil
from collections.abc import Awaitable, Iterator

import grpc
import numpy as np
import pytest

from tests.e2e.adder import CONFIG, Adding, replace, until, write_adder
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tideserve.client import Client, InvalidArgument, NotFound, Unavailable
from tideserve.client.retry import NO_RETRY

pytestmark = pytest.mark.e2e

ALL_VERSIONS = CONFIG + "version_policy { all {} }\n"


@pytest.fixture(scope="module")
def polling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that follows its repository, which is empty at the start."""
    folder = tmp_path_factory.mktemp("polling")
    (folder / "repository").mkdir()
    with running(
        folder / "repository",
        folder / "state",
        "--model-control=poll",
        "--poll-interval-s=0.1",
        "--replicas=2",
    ) as server:
        yield server


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that loads what it is told to; `loaded_at_start` is."""
    folder = tmp_path_factory.mktemp("explicit")
    write_adder(folder / "repository", 7, name="loaded_at_start")
    write_adder(folder / "repository", 7, name="not_loaded")
    with running(
        folder / "repository",
        folder / "state",
        "--model-control=explicit",
        "--load-model=loaded_at_start",
        "--replicas=2",
    ) as server:
        yield server


# --- poll ----------------------------------------------------------------------------------


def test_changed_files_take_over_without_a_failed_call(polling: Server) -> None:
    name = _arrived(polling, "changing", 1)
    adding = Adding(polling.address, model=name)

    async def change() -> None:
        await until(adding, 1)
        for number in (2, 3):
            write_adder(polling.repository, number, name=name)
            await until(adding, number)

    _run(adding, change())
    assert not adding.failed
    assert set(adding.added) == {1, 2, 3}
    with Client(polling.address) as client:
        assert _answer(client, name) == 3
    wait_until(lambda: len(_replicas(polling, name)) == 2, 20)
    assert _rows(polling, name) == [("1", "READY", "")]


def test_a_changed_configuration_takes_over_too(polling: Server) -> None:
    name = _arrived(polling, "configured", 1)
    with Client(polling.address) as client:
        assert client.model_config(name).max_batch_size == 16
        write_adder(polling.repository, 1, name=name, config=CONFIG.replace("size: 16", "size: 2"))
        wait_until(lambda: client.model_config(name).max_batch_size == 2, 20)
        with pytest.raises(InvalidArgument, match="1 to 2 rows"):
            client.infer(name, {"IN": np.zeros((3, 1), np.float32)})


@pytest.mark.parametrize("broken", ["model", "config"])
def test_broken_new_files_leave_the_old_serving_and_the_index_says_why(
    polling: Server, broken: str
) -> None:
    name = _arrived(polling, f"broken_{broken}", 1)
    adding = Adding(polling.address, model=name)
    folder = polling.repository / name

    async def break_and_mend() -> None:
        await until(adding, 1)
        if broken == "model":
            replace(folder / "1" / "model.py", "this is no Python\n")
            reason = "SyntaxError"
        else:
            replace(folder / "config.pbtxt", "max_batch_size: true_love\n")
            reason = "config.pbtxt:1"
        await asyncio.to_thread(
            wait_until,
            lambda: any(reason in row[2] for row in _rows(polling, name)),
            20,
            lambda: str(_rows(polling, name)),
        )
        await until(adding, 1)
        rows = await asyncio.to_thread(_rows, polling, name)
        assert [row[:2] for row in rows] == [("1", "READY")], rows
        assert await asyncio.to_thread(_is_ready, polling, name)
        write_adder(polling.repository, 2, name=name)
        await until(adding, 2)

    _run(adding, break_and_mend())
    assert not adding.failed
    assert set(adding.added) == {1, 2}
    wait_until(lambda: _rows(polling, name) == [("1", "READY", "")], 20)


def test_a_new_version_takes_the_unversioned_calls_and_the_old_one_leaves(polling: Server) -> None:
    name = _arrived(polling, "versioned", 1)
    adding = Adding(polling.address, model=name)

    async def add_version() -> None:
        await until(adding, 1)
        write_adder(polling.repository, 2, name=name, version=2)
        await until(adding, 2)

    _run(adding, add_version())
    assert not adding.failed
    with Client(polling.address) as client:
        assert _answer(client, name) == 2
        assert client.model_metadata(name).versions == ("2",)
        with pytest.raises(NotFound, match=f"{name} 2"):
            _answer(client, name, "1")
    wait_until(lambda: _rows(polling, name) == [("2", "READY", "")], 20)


def test_with_the_policy_all_each_version_answers_its_own_calls(polling: Server) -> None:
    write_adder(polling.repository, 1, name="both", config=ALL_VERSIONS)
    write_adder(polling.repository, 2, name="both", version=2, config=ALL_VERSIONS)
    with Client(polling.address) as client:
        wait_until(lambda: len(_rows(polling, "both")) == 2, 20)
        _wait_ready(client, "both", "1")
        _wait_ready(client, "both", "2")
        assert [_answer(client, "both", version) for version in ("", "1", "2")] == [2, 1, 2]
        # The newest READY one, not the newest there is.
        write_adder(polling.repository, 3, name="both", version=3, config=ALL_VERSIONS)
        replace(polling.repository / "both" / "3" / "model.py", "import no_such_module\n")
        wait_until(
            lambda: any(
                row[0] == "3" and "no_such_module" in row[2] for row in _rows(polling, "both")
            ),
            30,
        )
        assert _answer(client, "both") == 2
        with pytest.raises(Unavailable, match="no_such_module"):
            _answer(client, "both", "3")
        replace(
            polling.repository / "both" / "config.pbtxt",
            CONFIG + "version_policy { specific { versions: 1 } }\n",
        )
        wait_until(lambda: [row[0] for row in _rows(polling, "both")] == ["1"], 20)
        assert _answer(client, "both") == 1


def test_a_model_whose_folder_goes_is_not_found_and_its_replicas_leave(polling: Server) -> None:
    name = _arrived(polling, "leaving", 1)
    adding = Adding(polling.address, model=name)

    async def take_away() -> None:
        await until(adding, 1)
        shutil.rmtree(polling.repository / name)
        async with asyncio.timeout(20):
            while not adding.failed:
                await asyncio.sleep(0.01)

    _run(adding, take_away())
    assert set(adding.codes) == {grpc.StatusCode.NOT_FOUND}
    wait_until(lambda: not _replicas(polling, name), 20)
    wait_until(lambda: _rows(polling, name) == [], 20)


# --- explicit --------------------------------------------------------------------------------


def test_only_what_was_named_is_loaded_at_the_start(explicit: Server) -> None:
    assert _rows(explicit, "loaded_at_start") == [("1", "READY", "")]
    assert _rows(explicit, "not_loaded") == [("", "UNAVAILABLE", "not loaded")]
    with Client(explicit.address) as client:
        assert _answer(client, "loaded_at_start") == 7
        with pytest.raises(NotFound):
            _answer(client, "not_loaded")
        with pytest.raises(NotFound, match="is not loaded"):
            client.unload("not_loaded")
        with pytest.raises(NotFound, match="not in the repository"):
            client.load("no_such_model")


def test_after_an_unload_calls_find_nothing_and_a_load_serves_again(explicit: Server) -> None:
    name = _loaded(explicit, "going", 1)
    adding = Adding(explicit.address, model=name, callers=16)

    async def go_and_come() -> None:
        with Client(explicit.address) as client:
            for _ in range(3):
                await until(adding, 1)
                await asyncio.to_thread(client.unload, name)
                failed = sum(adding.failed.values())
                async with asyncio.timeout(20):
                    while sum(adding.failed.values()) == failed:
                        await asyncio.sleep(0.01)
                # Now nothing else is in flight: each caller asks in vain.
                await asyncio.to_thread(client.load, name)
                assert await asyncio.to_thread(_answer, client, name) == 1

    _run(adding, go_and_come())
    # What was admitted was answered: nobody was told anything but that there is no such model.
    assert set(adding.codes) == {grpc.StatusCode.NOT_FOUND}
    assert adding.added[1] > 16
    wait_until(lambda: len(explicit.ready_pids(name)) == 2, 20)
    assert len(_replicas(explicit, name)) == 2


def test_a_load_reads_changed_files_anew_and_fails_no_call(explicit: Server) -> None:
    name = _loaded(explicit, "reloaded", 1)
    adding = Adding(explicit.address, model=name)

    async def reload() -> None:
        with Client(explicit.address) as client:
            for number in (2, 3):
                await until(adding, number - 1)
                write_adder(explicit.repository, number, name=name)
                await asyncio.to_thread(client.load, name)
                assert await asyncio.to_thread(_answer, client, name) == number
                await until(adding, number)

    _run(adding, reload())
    assert not adding.failed
    assert set(adding.added) == {1, 2, 3}


def test_a_load_of_broken_files_says_why_and_the_old_ones_serve_on(explicit: Server) -> None:
    name = _loaded(explicit, "spoiled", 1)
    adding = Adding(explicit.address, model=name)

    async def spoil() -> None:
        with Client(explicit.address) as client:
            await until(adding, 1)
            replace(explicit.repository / name / "1" / "model.py", "import no_such_module\n")
            with pytest.raises(InvalidArgument, match="no_such_module"):
                await asyncio.to_thread(client.load, name)
            (row,) = await asyncio.to_thread(_rows, explicit, name)
            assert row[1] == "READY"
            assert "no_such_module" in row[2]
            replace(explicit.repository / name / "config.pbtxt", "nonsense: 1\n")
            with pytest.raises(InvalidArgument, match=r"config\.pbtxt:1"):
                await asyncio.to_thread(client.load, name)
            await until(adding, 1)

    _run(adding, spoil())
    assert not adding.failed
    assert set(adding.added) == {1}


def test_a_load_that_an_unload_overtakes_is_not_called_done(explicit: Server) -> None:
    write_adder(explicit.repository, 1, name="overtaken")
    slow = "import time\ntime.sleep(1)\n"
    file = explicit.repository / "overtaken" / "1" / "model.py"
    replace(file, slow + file.read_text())

    async def overtake() -> None:
        with Client(explicit.address, retry=NO_RETRY) as client:
            load = asyncio.create_task(asyncio.to_thread(client.load, "overtaken"))
            await asyncio.to_thread(wait_until, lambda: bool(_replicas(explicit, "overtaken")), 20)
            await asyncio.to_thread(client.unload, "overtaken")
            with pytest.raises(Unavailable, match="unloaded"):
                await load

    asyncio.run(overtake())
    wait_until(lambda: not _replicas(explicit, "overtaken"), 20)


def test_a_model_that_comes_and_goes_quickly_leaves_no_replica_behind(explicit: Server) -> None:
    name = _loaded(explicit, "hasty", 1)
    with Client(explicit.address) as client:
        for _ in range(10):
            client.unload(name)
            client.load(name)
        client.unload(name)
    # Some were drained before they had joined.
    wait_until(lambda: not _replicas(explicit, name), 3, lambda: explicit.log)
    wait_until(
        lambda: not [it for it in explicit.processes() if it.name().startswith(name)],
        3,
        lambda: explicit.log,
    )


# --- inside ------------------------------------------------------------------------------------


def _arrived(server: Server, name: str, number: int) -> str:
    """A model that came into a polled repository."""
    write_adder(server.repository, number, name=name)
    with Client(server.address) as client:
        _wait_ready(client, name)
    return name


def _loaded(server: Server, name: str, number: int) -> str:
    write_adder(server.repository, number, name=name)
    with Client(server.address) as client:
        client.load(name)
    return name


def _wait_ready(client: Client, name: str, version: str = "") -> None:
    wait_until(lambda: client.is_model_ready(name, version), 20)


def _run(adding: Adding, during: Awaitable[None]) -> None:
    asyncio.run(adding.run(during))


def _answer(client: Client, name: str, version: str = "") -> int:
    values = np.zeros((1, 1), np.float32)
    return int(client.infer(name, {"IN": values}, version=version)["OUT"][0, 0])


def _rows(server: Server, name: str) -> list[tuple[str, str, str]]:
    """What the repository index says of one model."""
    with Client(server.address) as client:
        return [
            (entry.version, entry.state, entry.reason)
            for entry in client.models()
            if entry.name == name
        ]


def _is_ready(server: Server, name: str) -> bool:
    with Client(server.address) as client:
        return client.is_model_ready(name) and client.is_ready()


def _replicas(server: Server, name: str) -> list[str]:
    return [it.id for it in server.snapshot().replicas if it.model == name]
