"""What is read from h2load, and what is refused."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.errors import LoadFailedError, NotInstalledError
from benchmarks.h2load import MANY_CALLERS, ONE_CALLER, SOME_CALLERS, Callers, parse, send
from benchmarks.wire import Target

GRPC = Target(
    url="http://127.0.0.1:1/Infer",
    headers=("content-type: application/grpc",),
    body=b"abc",
    is_http1=False,
)

OUTPUT = """
finished in 5.00s, 800.00 req/s, 1.35MB/s
requests: 4 total, 4 started, 4 done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 6.73KB (6894) total, 292B (292) headers (space savings 96.29%), 412B (412) data
"""
# Start in us since 1970, HTTP status, duration in us.
LOG = "1000000\t200\t1000\n1000500\t200\t2000\n1001000\t200\t3000\n1001000\t200\t4000\n"


def printed(succeeded: int = 4, failed: int = 0) -> str:
    return OUTPUT.format(succeeded=succeeded, failed=failed)


def test_rate_and_latency_come_from_the_log() -> None:
    load = parse(printed(), LOG, requests=4)
    assert load.seconds == pytest.approx(0.005)
    assert load.requests_per_s == pytest.approx(800.0)
    assert load.p50_s == pytest.approx(0.0025)
    assert load.p99_s == pytest.approx(0.00397)
    assert load.data_bytes == 412
    assert load.p999_s is None


def test_the_slowest_of_a_thousand_are_told_from_many_requests_only() -> None:
    log = "".join(f"1000000\t200\t{duration_us}\n" for duration_us in range(1, 2001))
    closing = (
        "requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored\n"
        "traffic: 1KB (1) total, 0B (0) headers (space savings 0%), 1KB (1) data\n"
    )
    assert parse(closing, log, requests=2000).p999_s == pytest.approx(0.001998, rel=1e-3)


def test_a_failed_request_gives_no_figures() -> None:
    with pytest.raises(LoadFailedError, match="expected 4 requests with HTTP 200, got 3 succ"):
        parse(printed(succeeded=3, failed=1), LOG, requests=4)


def test_a_request_missing_in_the_log_gives_no_figures() -> None:
    with pytest.raises(LoadFailedError, match="3 in the log"):
        parse(printed(), LOG.split("\n", 1)[1], requests=4)


def test_output_without_closing_lines_is_shown() -> None:
    with pytest.raises(LoadFailedError, match="no closing lines:\nConnection refused"):
        parse("Connection refused", "", requests=4)


def fake_h2load(folder: Path, script: str) -> None:
    program = folder / "h2load"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def run_fake(folder: Path, target: Target, callers: Callers) -> list[str]:
    """Sends 4 requests with a program that keeps its arguments, which are returned, and its body."""
    (folder / "printed").write_text(printed())
    (folder / "logged").write_text(LOG)
    fake_h2load(
        folder,
        f'for a in "$@"; do echo "$a" >> {folder}/arguments; case "$a" in\n'
        f'--data=*) /bin/cp "${{a#--data=}}" {folder}/body;;\n'
        f'--log-file=*) /bin/cp {folder}/logged "${{a#--log-file=}}";; esac; done\n'
        f"/bin/cat {folder}/printed",
    )
    assert send(target, 4, callers).requests == 4
    return (folder / "arguments").read_text().splitlines()


def test_the_callers_are_connections_times_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = run_fake(tmp_path, GRPC, ONE_CALLER)
    assert (tmp_path / "body").read_bytes() == b"abc"
    assert "--clients=1" in arguments
    assert "--max-concurrent-streams=1" in arguments
    assert "--header=content-type: application/grpc" in arguments
    assert "--h1" not in arguments
    assert arguments[-1] == "http://127.0.0.1:1/Infer"
    assert [group.count for group in (ONE_CALLER, SOME_CALLERS, MANY_CALLERS)] == [1, 16, 64]


def test_over_http1_every_caller_has_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = run_fake(tmp_path, replace(GRPC, is_http1=True), Callers(1, 3))
    assert "--clients=3" in arguments
    assert "--max-concurrent-streams=1" in arguments
    assert "--h1" in arguments


def test_h2load_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_h2load(tmp_path, "echo no such option >&2; exit 3")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadFailedError, match="h2load ended with 3: no such option"):
        send(GRPC, 4, ONE_CALLER)


def test_without_h2load_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="nghttp2-client"):
        send(GRPC, 4, ONE_CALLER)
