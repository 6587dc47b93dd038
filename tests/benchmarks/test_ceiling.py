"""What a server could reach at all: nghttpd answers as it is asked to."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import typer

from benchmarks import ceiling
from benchmarks.ceiling import NAME, Contender, Round, find_nghttpd, serve_ceiling, table
from benchmarks.errors import NotInstalledError, WrongAnswerError
from benchmarks.h2load import Callers, Load
from benchmarks.wire import Target, infer_target
from benchmarks.workloads import Workload


def contender(answer_bytes: int) -> Contender:
    """Nobody listens there."""
    target = infer_target("127.0.0.1:1", bytes(1000))
    return Contender("Server", target, answer_bytes, lambda: 0.0)


def test_shares_are_of_the_ceilings_median() -> None:
    measured = {
        NAME: [Round(90.0, 3.0), Round(100.0, 5.0), Round(400.0, 4.0)],
        "Server": [Round(50.0, 8.0)],
    }
    assert table("identity", measured) == [
        f"| identity | {NAME} | 100 | 4 | 1.00 |",
        "| identity | Server | 50 | 8 | 0.50 |",
    ]


def test_answers_of_another_length_give_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(target: Target, requests: int, callers: Callers) -> Load:
        del target, callers
        return Load(requests, 1.0, requests * 20, 0.1, 0.1, None)

    monkeypatch.setattr(ceiling, "send", send)
    monkeypatch.setattr(ceiling, "warm_up", lambda *_: 300.0)
    assert contender(20).run(1.0) == Round(300.0, 0.0)
    with pytest.raises(WrongAnswerError, match="300 answers of 21 bytes, got 6000 bytes"):
        contender(21).run(1.0)


def test_without_nghttpd_it_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with ExitStack() as stack, pytest.raises(NotInstalledError, match="install nghttp2-server"):
        serve_ceiling(contender(1), tmp_path, stack)


def test_what_is_missing_is_said_in_a_sentence_before_any_server_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ceiling, "find_nghttpd", lambda: None)
    monkeypatch.setattr(ceiling, "Tideserve", lambda *_: pytest.fail("it was started"))
    with pytest.raises(typer.Exit) as left:
        ceiling.main("identity", 1, 0.1, triton=False)
    assert left.value.exit_code == 1
    assert capsys.readouterr().err == (
        "failed: nghttpd is not installed: apt-get install nghttp2-server\n"
    )


@pytest.mark.parametrize(
    ("triton", "installed", "beside"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_triton_is_left_out_and_named_where_it_is_missing_and_was_not_asked_for(
    triton: bool | None,
    installed: bool,
    beside: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def measure(
        workload: Workload, rounds: int, seconds: float, *, beside_triton: bool
    ) -> dict[str, list[Round]]:
        asked.append((workload.model, rounds, seconds, beside_triton))
        return {NAME: [Round(10.0, 1.0)]}

    monkeypatch.setattr(ceiling, "is_installed", lambda: installed)
    monkeypatch.setattr(ceiling, "measure", measure)
    ceiling.main("identity,sentence", 3, 0.5, triton)
    assert asked == [("identity", 3, 0.5, beside), ("sentence", 3, 0.5, beside)]
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2:] == [
        f"| identity | {NAME} | 10 | 1 | 1.00 |",
        f"| sentence | {NAME} | 10 | 1 | 1.00 |",
    ]
    assert ("left out" in printed.err) is (triton is None and not installed)


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match=r"expected some of identity, .* got 'resnet'"):
        ceiling.main("identity,resnet", 1, 0.1, triton=False)


@pytest.mark.skipif(
    find_nghttpd() is None or shutil.which("h2load") is None,
    reason="needs nghttp2-server and nghttp2-client",
)
@pytest.mark.parametrize("answer_bytes", [64, 600_000])
def test_nghttpd_takes_a_request_in_and_answers_with_as_many_bytes(
    answer_bytes: int, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        served = serve_ceiling(contender(answer_bytes), tmp_path, stack)
        measured = served.run(0.1)
        assert measured.requests_per_s > 100.0
        assert measured.cpu_us > 0.0
