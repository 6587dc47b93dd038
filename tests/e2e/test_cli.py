"""The command line against a real server: what scripts rely on (docs/cli.md)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from examples.train.split import split
from tests.e2e.model_folder import link_example
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tideserve.cli.__main__ import app
from tideserve.cli.catalog import installed_catalog

pytestmark = pytest.mark.e2e

MODELS = ("digits_onnx", "identity", "text_python")
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "repository").mkdir()
    for model in MODELS:
        link_example(folder / "repository", model)
    link_example(folder / "repository", "accelerator_standin")
    with running(
        folder / "repository",
        folder / "state",
        "--model-control=explicit",
        *(f"--load-model={model}" for model in MODELS),
    ) as server:
        yield server


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `tideserve ARGUMENTS` as the user who started the server, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDESERVE_TOKEN", raising=False)

    def run(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(
            app(installed_catalog(), arguments),
            arguments,
            env={**_user(server), **environment},
            prog_name="tideserve",
        )

    return run


def test_the_installed_command_is_the_one_that_is_tested_here(server: Server) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("tideserve"), "infer", "identity", "--random=1", "--json"],
        env={**os.environ, **_user(server)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(done.stdout)["rows"] == 1
    assert done.stderr == ""


@pytest.mark.parametrize("form", [".npy", ".json", ".csv"])
def test_infer_reads_a_file_and_its_scores_are_right(run: Run, tmp_path: Path, form: str) -> None:
    digits = split().held_out
    images, labels = digits.images[:100], digits.labels[:100]
    file = tmp_path / f"digits{form}"
    match form:
        case ".npy":
            np.save(file, images)
        case ".json":
            file.write_text(json.dumps(images.tolist()))
        case _:
            np.savetxt(file, images.reshape(100, -1), delimiter=",")
    done = run("infer", "digits_onnx", str(file), "--batch", "32", "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["rows"], answer["requests"]) == ("digits_onnx", 100, 4)
    scores = answer["outputs"]["scores"]
    assert (scores["datatype"], scores["shape"]) == ("FP32", [100, 10])
    assert (np.array(scores["data"]).reshape(100, 10).argmax(axis=1) == labels).mean() >= 0.97
    assert done.stderr == ""


def test_infer_makes_random_rows_and_saves_outputs(run: Run, tmp_path: Path) -> None:
    done = run("infer", "identity", "--random", "130", "--save", "out.npy", "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["rows"], answer["requests"], answer["saved"]) == (130, 3, "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (130, 16)


def test_infer_shows_people_a_table(run: Run) -> None:
    done = run("infer", "text_python", "--random", "2")
    assert done.exit_code == 0, done.stderr
    assert "NORMALIZED" in done.stdout
    assert "2 rows in 1 requests" in done.stdout


def test_models_lists_every_version_with_its_state(run: Run) -> None:
    entries = _json(run("models", "--json"))
    assert {(it["name"], it["version"], it["state"]) for it in entries} == {
        *((model, "1", "READY") for model in MODELS),
        ("accelerator_standin", "", "UNAVAILABLE"),
    }
    ready = _json(run("models", "--ready", "--json"))
    assert sorted(it["name"] for it in ready) == sorted(MODELS)
    assert "digits_onnx" in run("models").stdout


def test_replicas_finds_the_token_that_the_server_wrote(run: Run, server: Server) -> None:
    found = _json(run("replicas", "--json"))
    assert sorted(it["model"] for it in found) == sorted(MODELS)
    pids = {it.pid for it in server.processes()}
    for it in found:
        assert (it["version"], it["state"], it["device"]) == ("1", "READY", "cpu")
        assert it["pid"] in pids
        assert it["host"]
        assert it["memory_bytes"] > 1_000_000
    assert found[0]["id"] in run("replicas").stdout


def test_without_the_token_replicas_is_told_no(run: Run, server: Server, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run("replicas", "--json", XDG_RUNTIME_DIR=str(elsewhere))
    assert done.exit_code == 1
    assert "--token-file" in done.stderr
    wrong = run("replicas", TIDESERVE_TOKEN="not the one")
    assert wrong.exit_code == 1
    given = tmp_path / "token"
    given.write_text(server.token)
    assert run("replicas", f"--token-file={given}", TIDESERVE_TOKEN="wrong").exit_code == 0


def test_health_answers_by_its_exit_code(run: Run, server: Server) -> None:
    assert run("health").exit_code == 0
    assert _json(run("health", "--model", "identity", "--json")) == {
        "address": server.address,
        "model": "identity",
        "ready": True,
    }
    assert run("health", "--model", "identity", "--version", "2").exit_code == 1
    assert run("health", "--model", "accelerator_standin").exit_code == 1
    assert run("health", "--model", "identity", "--wait", "5").exit_code == 0
    began = run("health", "--model", "accelerator_standin", "--wait", "0.3")
    assert began.exit_code == 1


def test_load_and_unload(run: Run) -> None:
    assert _json(run("load", "accelerator_standin", "--json")) == {
        "model": "accelerator_standin",
        "done": "loaded",
    }
    assert run("infer", "accelerator_standin", "--random", "1").exit_code == 0
    assert "unloaded" in run("unload", "accelerator_standin").stdout
    gone = run("infer", "accelerator_standin", "--random", "1")
    assert gone.exit_code == 1
    assert "not served" in gone.stderr
    again = run("unload", "accelerator_standin")
    assert again.exit_code == 1
    assert "is not loaded" in again.stderr

    def is_only_in_the_repository() -> bool:
        entries = _json(run("models", "--json"))
        return [it["version"] for it in entries if it["name"] == "accelerator_standin"] == [""]

    wait_until(is_only_in_the_repository, 10)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("infer", "no_such_model", "--random", "1"), 1, "identity"),
        (("infer", "identity", "no_such_file.npy"), 2, "no_such_file.npy"),
        (("infer", "identity"), 2, "IN"),
        (("infer", "identity", "--random", "1", "--input", "IN=x.npy"), 2, "one of"),
        (("infer", "identity", "--random", "0"), 2, ""),
        (("infer", "identity", "--random", "1", "--output", "NOPE"), 1, "NOPE"),
        (("load", "no_such_model"), 1, "no_such_model"),
        (("models", "--address", "nonsense:port"), 2, "nonsense"),
        (("no_such_command",), 2, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_has_its_code_and_a_sentence(
    run: Run, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == code, done.stderr
    assert done.stdout == ""
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["health", "models", "replicas", "infer identity --random 1"])
def test_a_port_where_nobody_listens_is_told_by_the_code(run: Run, command: str) -> None:
    done = run(*command.split(), "--timeout", "5", TIDESERVE_ADDRESS="127.0.0.1:1")
    assert done.exit_code == 3, done.stderr
    assert re.fullmatch(r"error: cannot reach the server: .*127\.0\.0\.1:1.*\n", done.stderr)


# --- inside ------------------------------------------------------------------------------------


def _user(server: Server) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(server.state), "TIDESERVE_ADDRESS": server.address}


def _json(done: Result) -> Any:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)
