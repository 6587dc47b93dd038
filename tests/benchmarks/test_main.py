"""The command line says what it expects."""

import pytest

from benchmarks.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--peers", "tideserve,mosec"], "expected some of tideserve, triton, grpcio, ort"),
        (["--callers", "64,7"], "--callers: expected some of [1, 64], got [7]"),
        (["--rounds", "0"], "expected 1 or more, got 0"),
        (["--seconds", "nan"], "expected more than 0, got nan"),
        (["--triton", "2"], "expected INSTANCES:QUEUE_DELAY_US, got '2'"),
        (["--triton", "0:100"], "expected INSTANCES:QUEUE_DELAY_US, got '0:100'"),
        (["--workloads", "resnet"], "expected some of identity, digits_onnx, got 'resnet'"),
    ],
)
def test_a_bad_option_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
