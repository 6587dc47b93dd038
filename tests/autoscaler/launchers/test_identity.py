import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.launchers.identity import (
    has_ended,
    identity_of,
    kill_session,
    open_pidfd,
)


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_itself_and_not_another_with_its_pid(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    identity = identity_of(sleeper.pid)
    assert identity is not None
    assert identity == identity_of(sleeper.pid)
    assert open_pidfd(replace(identity, start_ticks=identity.start_ticks + 1)) is None
    assert open_pidfd(replace(identity, boot_id="another boot")) is None


def test_a_zombie_does_not_run(sleeper: "subprocess.Popen[bytes]") -> None:
    identity = identity_of(sleeper.pid)
    assert identity is not None
    sleeper.kill()
    eventually(lambda: identity_of(sleeper.pid) is None)
    assert open_pidfd(identity) is None


def test_a_killed_process_has_ended_and_may_be_killed_again(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    identity = identity_of(sleeper.pid)
    assert identity is not None
    pidfd = open_pidfd(identity)
    assert pidfd is not None
    assert not has_ended(pidfd)
    kill_session(pidfd, sleeper.pid)
    eventually(lambda: has_ended(pidfd))
    kill_session(pidfd, sleeper.pid)
    os.close(pidfd)


def test_no_such_process_has_no_identity() -> None:
    assert identity_of(2**22 + 1) is None
