"""An engine that stops, freezes and comes back, under a launcher."""

import gc
import logging
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.autoscaler.waiting import eventually
from tests.docker.conftest import OpenLauncher
from tests.docker.looking import exit_of, handle_of, spec
from tests.docker.own_engine import OwnEngine
from tideserve.autoscaler.errors import LaunchError

# The SDK leaves a socket that could not connect to the garbage collector.
pytestmark = [
    pytest.mark.docker,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
LOGGER = "tideserve.autoscaler.launchers.docker"


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Such sockets, while their warning is expected."""
    yield
    gc.collect()


def test_an_engine_that_crashed_ends_nothing_refuses_at_once_and_starts_again_when_it_is_back(
    own_engine: OwnEngine, open_launcher: OpenLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    launcher = open_launcher(engine_url=own_engine.url, poll_s=0.2)
    launcher.start(spec("survivor-1-0-a"))
    own_engine.crash()
    eventually(lambda: "does not answer" in caplog.text)
    began_s = time.monotonic()
    handle = handle_of(launcher, "survivor-1-0-a")
    assert handle is not None
    assert handle.exit is None
    with pytest.raises(LaunchError, match="see that dockerd runs"):
        launcher.start(spec("late-1-0-a"))
    assert time.monotonic() - began_s < 0.5
    own_engine.start()
    eventually(lambda: "answers again" in caplog.text, timeout_s=15)
    launcher.start(spec("late-1-0-a"))
    assert caplog.text.count("does not answer") == 1


def test_containers_that_a_stopping_engine_ended_are_reported_when_it_is_back(
    own_engine: OwnEngine, open_launcher: OpenLauncher, exits: threading.Event
) -> None:
    launcher = open_launcher(engine_url=own_engine.url, poll_s=0.2)
    launcher.start(spec("stopped-1-0-a"))
    own_engine.stop()
    own_engine.start()
    assert exits.wait(15)
    # SIGTERM drains a replica; without a frontend it leaves at once.
    assert exit_of(launcher, "stopped-1-0-a").cause
    launcher.start(spec("next-1-0-a"))


def test_a_frozen_engine_blocks_a_start_no_longer_than_its_time_limit_and_the_list_never(
    own_engine: OwnEngine, open_launcher: OpenLauncher
) -> None:
    launcher = open_launcher(engine_url=own_engine.url, timeout_s=1.0, poll_s=0.2)
    launcher.start(spec("steady-1-0-a"))
    own_engine.send(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        with pytest.raises(LaunchError, match="does not answer"):
            launcher.start(spec("abandoned-1-0-a"))
        assert time.monotonic() - began_s < 3.0
        assert [handle.exit for handle in launcher.list()] == [None]
    finally:
        own_engine.send(signal.SIGCONT)
    # The engine carries the abandoned start out when it thaws.
    eventually(lambda: "abandoned" not in own_engine.docker("ps", "-a"), timeout_s=15)
    assert [handle.replica_id for handle in launcher.list()] == ["steady-1-0-a"]


def test_a_launcher_that_opens_while_the_engine_is_away_adopts_later(
    own_engine: OwnEngine, open_launcher: OpenLauncher
) -> None:
    first = open_launcher(engine_url=own_engine.url)
    first.start(spec("waiting-1-0-a"))
    first.close()
    own_engine.send(signal.SIGSTOP)
    try:
        second = open_launcher(engine_url=own_engine.url, timeout_s=0.5)
        assert second.list() == []
    finally:
        own_engine.send(signal.SIGCONT)
    eventually(lambda: handle_of(second, "waiting-1-0-a"), timeout_s=15)
