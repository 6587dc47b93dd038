import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from typer.testing import Result

from tests.client.fake_server import Failure, FakeServer
from tideserve.v1.inference_pb2 import ModelInferResponse

Run = Callable[..., Result]


def outputs(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    return {name: tensor["data"] for name, tensor in document["outputs"].items()}


def test_random_rows_need_no_file(run: Run, server: FakeServer) -> None:
    result = json.loads(run("infer", "digits_onnx", "--random", "3", "--json").stdout)
    assert (result["model"], result["rows"], result["requests"]) == ("digits_onnx", 3, 1)
    assert result["outputs"]["scores"]["shape"] == [3, 10]
    assert result["outputs"]["scores"]["datatype"] == "FP32"
    again = json.loads(run("infer", "digits_onnx", "--random", "3", "--json").stdout)
    assert again["outputs"] == result["outputs"]


@pytest.mark.parametrize("model", ["text", "pair", "single"])
def test_random_values_fit_every_model(run: Run, model: str) -> None:
    assert run("infer", model, "--random", "1").exit_code == 0


def test_an_npy_file_is_cast_and_reshaped_to_the_model(
    run: Run, server: FakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "digits.npy"
    np.save(path, np.arange(128, dtype=np.float64).reshape(2, 64))
    table = run("infer", "digits_onnx", str(path))
    assert table.exit_code == 0, table.stderr
    assert "2 rows in 1 requests" in table.stdout
    (sent,) = server.requests
    assert (sent.inputs[0].datatype, list(sent.inputs[0].shape)) == ("FP32", [2, 1, 8, 8])


def test_csv_rows_are_batch_rows_below_a_header(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    cells = ",".join(str(n) for n in range(16))
    path.write_text(",".join(f"c{n}" for n in range(16)) + f"\n{cells}\n{cells}\n")
    rows = outputs(run("infer", "identity", str(path), "--json"))["OUT"]
    assert rows == [list(range(16))] * 2


def test_csv_integers_keep_all_their_digits(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{2**62 + 1},-3\n")
    (tmp_path / "b.json").write_text("[[1, 2, 3]]")
    result = run(
        "infer", "pair", "--input", f"a={tmp_path / 'a.csv'}", "--input",
        f"b={tmp_path / 'b.json'}", "--json",
    )  # fmt: skip
    assert outputs(result) == {"a": [[2**62 + 1, -3]], "b": [[1.0, 2.0, 3.0]]}


def test_text_goes_in_and_out(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    path.write_text('["grün", "b"]')
    assert outputs(run("infer", "text", str(path), "--json"))["TEXT"] == [["grün"], ["b"]]


def test_one_file_holds_all_inputs_by_name(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", a=np.array([[1, 2]]), b=np.ones((1, 3)))
    (tmp_path / "all.json").write_text('{"a": [[1, 2]], "b": [[1, 1, 1]]}')
    expected = {"a": [[1, 2]], "b": [[1.0, 1.0, 1.0]]}
    for name in ("all.npz", "all.json"):
        assert outputs(run("infer", "pair", str(tmp_path / name), "--json")) == expected


def test_a_model_that_does_not_batch_gets_one_request(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2\n3,4\n")
    result = run("infer", "single", str(tmp_path / "x.csv"), "--json")
    assert outputs(result)["x"] == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(("batch", "requests"), [(("--batch", "7"), 15), ((), 2)])
def test_many_rows_travel_in_several_requests(
    run: Run, server: FakeServer, tmp_path: Path, batch: tuple[str, ...], requests: int
) -> None:
    array = np.arange(100 * 16, dtype=np.float32).reshape(100, 16)
    np.save(tmp_path / "in.npy", array)
    saved = tmp_path / "out.npy"
    result = run(
        "infer", "identity", str(tmp_path / "in.npy"), *batch, "--save", str(saved), "--json"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["rows"], document["requests"], document["saved"]) == (
        100,
        requests,
        str(saved),
    )
    assert len(server.requests) == requests
    np.testing.assert_array_equal(np.load(saved), array)


def test_an_error_in_one_piece_ends_the_command(
    run: Run, server: FakeServer, tmp_path: Path
) -> None:
    server.failures.append(Failure(grpc.StatusCode.INTERNAL, "raised"))
    result = run("infer", "identity", "--random", "64", "--batch", "1", "--concurrency", "1")
    assert result.exit_code == 1
    assert result.stderr == "error: raised\n"
    assert len(server.requests) < 64


def test_outputs_are_saved_in_every_format(run: Run, tmp_path: Path) -> None:
    npz, text = tmp_path / "o.npz", tmp_path / "o.json"
    assert run("infer", "pair", "--random", "2", "--save", str(npz)).exit_code == 0
    assert run("infer", "pair", "--random", "2", "--save", str(text)).exit_code == 0
    saved = np.load(npz)
    assert saved["a"].dtype == np.int64
    assert json.loads(text.read_text())["a"]["data"] == saved["a"].tolist()
    only = tmp_path / "b.npy"
    assert (
        run("infer", "pair", "--random", "2", "--output", "b", "--save", str(only)).exit_code == 0
    )
    np.testing.assert_array_equal(np.load(only), saved["b"])


def test_what_json_has_no_number_for_comes_as_text(run: Run, server: FakeServer) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    response = ModelInferResponse(raw_output_contents=[values.tobytes(), b"\2\0\0\0\xff\xfe"])
    response.outputs.add(name="y", datatype="FP32", shape=[1, 4])
    response.outputs.add(name="blob", datatype="BYTES", shape=[1])
    server.response = response
    document = json.loads(run("infer", "echo", "--random", "1", "--json").stdout)
    assert document["outputs"]["y"]["data"] == [["NaN", "Infinity", "-Infinity", 1.5]]
    assert document["outputs"]["blob"] == {
        "datatype": "BYTES", "shape": [1], "encoding": "base64", "data": ["//4="],
    }  # fmt: skip


FILES = {
    "rank.npy": np.ones((2, 3, 4)),
    "fraction.npy": np.array([[0.5, 1.0]]),
    "objects.npy": np.array([["a", None]], dtype=object),
    "text.npy": np.array([["a", "b"]]),
}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("identity",), "give FILE, --input NAME=FILE or --random ROWS"),
        (("identity", "rank.npy"), "expected shape [-1, 16]"),
        (("identity", "rank.npy", "--random", "2"), "got several"),
        (("identity", "none.npy"), "No such file"),
        (("identity", "data.txt"), "expected .npy, .json or .csv, got .txt"),
        (("identity", "objects.npy"), "without objects"),
        (("identity", "text.npy"), "expected numbers for FP32"),
        (("identity", "ragged.csv"), "as many cells in every line"),
        (("identity", "broken.json"), "expected JSON"),
        (("identity", "ragged.json"), "nested lists of one shape"),
        (("identity", "names.json"), "no input is called 'WRONG'"),
        (("identity", "--input", "IN"), "expected NAME=FILE"),
        (("identity", "--input", "X=rank.npy"), "expected one of IN"),
        (("identity", "--input", "IN=rank.npy", "--input", "IN=rank.npy"), "given twice"),
        (("identity", "--random", "2", "--save", "out.txt"), "--save"),
        (("pair", "rank.npy"), "the model has 2 inputs (a, b)"),
        (("pair", "--input", "a=fraction.npy"), "some values are no INT64"),
        (("pair", "--random", "2", "--save", "o.npy"), ".npy holds one output"),
        (("pair", "rows.json"), "a has 1, b has 2"),
        (("single", "--random", "2"), "does not batch"),
        (("single", "--random", "1", "--batch", "2"), "does not batch"),
        (("text", "numbers.json"), "expected strings for BYTES"),
    ],
)
def test_wrong_input_is_2_and_says_what_was_expected(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, array in FILES.items():
        np.save(tmp_path / name, array)
    (tmp_path / "data.txt").write_text("1")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    (tmp_path / "broken.json").write_text("[1,")
    (tmp_path / "ragged.json").write_text("[[1], [1, 2]]")
    (tmp_path / "names.json").write_text('{"WRONG": [1]}')
    (tmp_path / "rows.json").write_text('{"a": [[1, 2]], "b": [[1, 2, 3], [1, 2, 3]]}')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    result = run("infer", *arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stderr.startswith("error: ")
