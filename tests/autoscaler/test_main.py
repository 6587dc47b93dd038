"""`python -m tideserve.autoscaler`: options, exit codes, signals, a parent that dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.autoscaler.fake_control import TOKEN, FakeControl
from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.__main__ import _weights_folder, autoscale

APP = typer.Typer()
APP.command()(autoscale)


@pytest.fixture
def frontend() -> Iterator[FakeControl]:
    control = FakeControl()
    yield control
    control.stop()


def command(frontend: FakeControl, folder: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tideserve.autoscaler",
        f"--address={frontend.address}",
        f"--state-dir={folder / 'state'}",
        *options,
    ]


def environment(token: str = TOKEN) -> dict[str, str]:
    return {**os.environ, "TIDESERVE_TOKEN": token}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "nowhere"], "expected HOST:PORT"),
        (["--address", "a:99999"], "expected HOST:PORT"),
        (["--gpus", "0,x"], "expected indexes such as 0,1, got '0,x'"),
        (["--log-level", "loud"], "expected one of debug, info, warning, error, got 'loud'"),
        (["--token-file", "/nowhere/token"], "--token-file: cannot read"),
    ],
)
def test_a_bad_option_ends_with_2_and_says_what_was_expected(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDESERVE_TOKEN", TOKEN)
    result = CliRunner().invoke(APP, options)
    assert result.exit_code == 2
    assert said in result.output


def test_without_a_token_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDESERVE_TOKEN", raising=False)
    result = CliRunner().invoke(APP, [])
    assert result.exit_code == 2
    assert "expected the frontend's token in $TIDESERVE_TOKEN" in result.output


def test_a_count_below_zero_is_refused() -> None:
    assert CliRunner().invoke(APP, ["--replicas", "-1"]).exit_code == 2


def test_a_token_that_the_frontend_refuses_ends_with_2(
    frontend: FakeControl, tmp_path: Path
) -> None:
    ended = subprocess.run(
        command(frontend, tmp_path),
        env=environment("wrong"),
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert ended.returncode == 2
    assert "the frontend does not accept the token" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_0(
    frontend: FakeControl, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    process = subprocess.Popen(
        command(frontend, tmp_path, f"--token-file={tmp_path / 'token'}"),
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: frontend.said("Watch"))
    process.send_signal(number)
    assert process.wait(5) == 0


def test_a_child_ignores_the_terminals_interrupt(frontend: FakeControl, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(frontend, tmp_path, "--child"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: frontend.said("Watch"))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=5)
    assert process.returncode == 0
    assert said.count("stopping:") == 1


def test_a_newer_autoscaler_ends_it_with_0(frontend: FakeControl, tmp_path: Path) -> None:
    frontend.generation = 2**63
    ended = subprocess.run(
        command(frontend, tmp_path),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert ended.returncode == 0
    assert "leaving, the replicas stay: a newer autoscaler acts" in ended.stderr


def test_a_child_leaves_when_its_parent_dies(frontend: FakeControl, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    with log.open("w") as stderr:
        parent = subprocess.Popen(
            [sys.executable, "-c", script, *command(frontend, tmp_path, "--child")],
            env=environment(),
            stderr=stderr,
        )
    eventually(lambda: frontend.said("Watch"))
    parent.kill()
    parent.wait(5)
    eventually(lambda: "ended: orphaned" in log.read_text())


@pytest.mark.parametrize(
    ("cache", "folder"),
    [
        ("/cache", "/cache/tideserve/weights"),
        ("", "/home/me/.cache/tideserve/weights"),
        ("relative", "/home/me/.cache/tideserve/weights"),
    ],
)
def test_weights_are_shared_in_the_users_cache(
    cache: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert _weights_folder() == Path(folder)
