"""What is read from h2load, and what is refused."""

import stat
from pathlib import Path

import pytest

from benchmarks.errors import LoadFailedError, NotInstalledError
from benchmarks.h2load import MANY_CALLERS, ONE_CALLER, parse, send

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


def test_the_body_is_one_grpc_frame_and_the_callers_are_connections_times_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "body"
    (tmp_path / "printed").write_text(printed())
    (tmp_path / "logged").write_text(LOG)
    fake_h2load(
        tmp_path,
        f'for a in "$@"; do echo "$a" >> {tmp_path}/arguments; case "$a" in\n'
        f'--data=*) /bin/cp "${{a#--data=}}" {copy};;\n'
        f'--log-file=*) /bin/cp {tmp_path}/logged "${{a#--log-file=}}";; esac; done\n'
        f"/bin/cat {tmp_path}/printed",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    load = send("127.0.0.1:1", b"abc", 4, ONE_CALLER)
    assert load.requests == 4
    assert copy.read_bytes() == b"\0\0\0\0\x03abc"
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert "--clients=1" in arguments
    assert "--max-concurrent-streams=1" in arguments
    assert "--header=content-type: application/grpc" in arguments
    assert arguments[-1] == "http://127.0.0.1:1/inference.GRPCInferenceService/ModelInfer"
    assert (MANY_CALLERS.connections, MANY_CALLERS.streams, MANY_CALLERS.count) == (8, 8, 64)


def test_h2load_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_h2load(tmp_path, "echo no such option >&2; exit 3")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadFailedError, match="h2load ended with 3: no such option"):
        send("127.0.0.1:1", b"", 4, ONE_CALLER)


def test_without_h2load_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="nghttp2-client"):
        send("127.0.0.1:1", b"", 4, ONE_CALLER)
