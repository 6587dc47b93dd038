"""The autoscaler's process: kept alive with patience, stopped in order."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tideserve.server.autoscaler_child import (
    MAX_BACKOFF_S,
    MIN_BACKOFF_S,
    STEADY_S,
    AutoscalerChild,
)

WAITS = "import sys, time; print('up', flush=True); time.sleep(60)"
POLITE = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
    "open(sys.argv[1], 'w').close(); time.sleep(60)"
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., AutoscalerChild]


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    made = []

    def make_child(code: str, *arguments: str, **environment: str) -> AutoscalerChild:
        child = AutoscalerChild([sys.executable, "-c", code, *arguments], environment, clock)
        made.append(child)
        return child

    yield make_child
    for child in made:
        child.kill()


def wait_for_end(child: AutoscalerChild) -> None:
    assert child._process is not None
    child._process.wait(10)


def is_pausing(child: AutoscalerChild) -> bool:
    return child.pid is None


def test_it_gets_its_environment_and_nothing_else(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    child = make(
        "import os; print(os.environ['TIDESERVE_TOKEN'], 'PATH' in os.environ)", TIDESERVE_TOKEN="t"
    )
    child.start()
    wait_for_end(child)

    assert capfd.readouterr().out == "t False\n"


def test_one_that_dies_is_started_again_after_a_growing_pause(
    make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    child = make("raise SystemExit(3)")
    child.start()
    pause_s = MIN_BACKOFF_S
    for _ in range(3):
        wait_for_end(child)
        child.check()
        assert is_pausing(child)
        assert f"ended with code 3; it is started again in {pause_s:.1f} s" in caplog.text
        clock.now_s += pause_s * 0.9
        child.check()
        assert is_pausing(child)
        clock.now_s += pause_s * 0.2
        child.check()
        assert not is_pausing(child)
        pause_s = 2 * pause_s


def test_the_pause_has_a_limit_and_begins_anew_after_a_steady_life(
    make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    child = make("pass")
    child._backoff_s = MAX_BACKOFF_S
    child.start()
    wait_for_end(child)
    child.check()
    clock.now_s += MAX_BACKOFF_S
    child.check()
    assert child._backoff_s == MAX_BACKOFF_S
    clock.now_s += STEADY_S + 1.0
    wait_for_end(child)
    child.check()

    assert f"started again in {MIN_BACKOFF_S:.1f} s" in caplog.text


def test_one_that_runs_is_left_alone(make: Make, clock: Clock) -> None:
    child = make("import time; time.sleep(60)")
    child.start()
    pid = child.pid
    clock.now_s += 1000.0
    child.check()

    assert child.pid == pid
    assert not child.has_ended()


def test_asked_to_stop_it_ends_by_itself_and_is_not_started_again(
    make: Make, clock: Clock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    up = tmp_path_factory.mktemp("child") / "up"
    child = make(POLITE, str(up))
    child.start()
    deadline_s = time.monotonic() + 20
    while not up.exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    child.ask_to_stop()
    wait_for_end(child)

    assert child.has_ended()
    assert child._process is not None
    assert child._process.returncode == 0


def test_asked_to_stop_while_it_pauses_it_is_not_started_again(make: Make, clock: Clock) -> None:
    child = make("pass")
    child.start()
    wait_for_end(child)
    child.check()
    child.ask_to_stop()
    clock.now_s += 100.0
    child.check()

    assert child.pid is None
    assert child.has_ended()


def test_kill_ends_and_reaps_it(make: Make) -> None:
    child = make("import time; time.sleep(60)")
    child.start()
    process = child._process
    assert process is not None
    child.kill()
    child.kill()

    assert process.returncode == -9
    assert child.has_ended()


def test_one_that_cannot_be_started_again_is_tried_again_and_nothing_else_is_lost(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child = make("pass")
    child.start()
    wait_for_end(child)
    child.check()

    def no_more(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", no_more)
        clock.now_s += 60.0
        child.check()
    assert is_pausing(child)
    assert "Resource temporarily unavailable" in caplog.text
    clock.now_s += 60.0
    child.check()

    assert not is_pausing(child)
