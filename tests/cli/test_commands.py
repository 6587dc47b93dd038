import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from tests.client.fake_server import TOKEN, Failure, FakeServer
from tideserve.cli.__main__ import app
from tideserve.cli.catalog import Catalog

Run = Callable[..., Result]


# --- finding commands --------------------------------------------------------------------


def invoke(catalog: Catalog, *arguments: str) -> Result:
    return CliRunner().invoke(app(catalog, arguments), arguments)


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "tideserve.commands")


POINTS = [
    point("health", "tideserve.cli.health:health"),
    point("train", "no_such_module_of_an_extra.x:y"),
    point("broken", "tideserve.cli.no_such_module:x"),
]


def test_only_the_invoked_command_is_imported() -> None:
    script = (
        "import sys; from tideserve.cli.__main__ import main\n"
        "sys.argv[1:] = ['health', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "names = ('numpy', 'tideserve.cli.infer', 'tideserve.server', 'tideserve.replica')\n"
        "assert not [name for name in names if name in sys.modules], sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)


def test_help_lists_all_and_says_which_need_an_extra() -> None:
    result = invoke(Catalog(POINTS), "--help")
    assert result.exit_code == 0
    lines = {
        line.strip("│ ").split()[0]: line for line in result.stdout.splitlines() if "│" in line
    }
    assert "Say whether the server" in lines["health"]
    assert "needs tideserve[cpu]" in lines["train"]
    assert "cannot be imported" in lines["broken"]


def test_a_command_without_its_extra_says_what_to_install() -> None:
    result = invoke(Catalog(POINTS), "train", "--epochs", "3")
    assert result.exit_code == 2
    assert "pip install 'tideserve[cpu]'" in result.stderr
    assert "no_such_module_of_an_extra" in result.stderr


def test_an_unknown_command_gets_the_nearest_known_one(run: Run) -> None:
    result = run("replica5")
    assert result.exit_code == 2
    assert "Did you mean" in result.stderr
    assert "'replicas'" in result.stderr


def test_no_command_shows_the_help() -> None:
    result = invoke(Catalog(POINTS))
    assert result.exit_code == 2
    assert "Usage" in result.output


# --- health ------------------------------------------------------------------------------


def test_health_answers_by_exit_code(run: Run, server: FakeServer) -> None:
    assert run("health").exit_code == 0
    assert run("health", "--model", "echo").exit_code == 0
    server.ready = False
    assert run("health").exit_code == 1
    assert run("health", "--model", "echo").exit_code == 1


def test_health_as_json(run: Run, server: FakeServer) -> None:
    result = run("health", "--model", "echo", "--json")
    assert json.loads(result.stdout) == {"address": server.address, "model": "echo", "ready": True}


def test_health_waits(run: Run, server: FakeServer) -> None:
    server.not_ready_answers = 1
    assert run("health", "--wait", "20").exit_code == 0


def test_a_server_that_is_not_there_is_3(run: Run) -> None:
    result = run("health", "--address", "localhost:1", "--timeout", "5")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: cannot reach the server: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("health", "--address", "localhost"),
        ("health", "--tls-ca", "/no/such/file"),
        ("health", "--timeout", "0"),
        ("health", "extra"),
        ("infer",),
    ],
)
def test_wrong_arguments_are_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


# --- models, load, unload ----------------------------------------------------------------


def test_models_as_json(run: Run) -> None:
    models = json.loads(run("models", "--json").stdout)
    assert {"name": "echo", "version": "1", "state": "READY", "reason": ""} in models
    assert models[-1]["state"] == "UNAVAILABLE"
    assert all(
        model["state"] == "READY" for model in json.loads(run("models", "--json", "--ready").stdout)
    )


def test_models_as_a_table(run: Run) -> None:
    table = run("models").stdout
    assert "digits_onnx" in table
    assert "config.pbtxt:3: no" in table


def test_unload_and_load(run: Run, server: FakeServer, tmp_path: Path) -> None:
    assert json.loads(run("unload", "echo", "--json").stdout) == {
        "model": "echo",
        "done": "unloaded",
    }
    missing = run("unload", "echo")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("error: no model 'echo'")
    config = tmp_path / "config.json"
    config.write_text('{"max_batch_size": 4}')
    assert run("load", "echo", "--config", str(config)).stdout == "echo: loaded\n"
    assert server.loads[-1].parameters["config"].string_param == '{"max_batch_size": 4}'
    config.write_text("{")
    assert run("load", "echo", "--config", str(config)).exit_code == 2


# --- replicas ----------------------------------------------------------------------------


def test_replicas_as_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDESERVE_TOKEN", TOKEN)
    first, second = json.loads(run("replicas", "--json").stdout)
    wanted = {
        "id": "replica-1",
        "model": "identity",
        "version": "1",
        "state": "READY",
        "pid": 4321,
        "host": "node",
        "device": "cpu",
    }
    assert wanted.items() <= first.items()
    assert (second["model"], second["state"]) == ("", "STANDBY")


def test_replicas_as_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDESERVE_TOKEN", TOKEN)
    table = run("replicas").stdout
    assert "replica-2" in table
    assert "STANDBY" in table


def test_the_token_that_serve_wrote_is_found(run: Run, server: FakeServer, tmp_path: Path) -> None:
    refused = run("replicas")
    assert refused.exit_code == 1
    assert "--token-file" in refused.stderr
    directory = tmp_path / "runtime" / "tideserve"
    directory.mkdir(parents=True)
    path = directory / f"token-{server.port}"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    assert run("replicas", "--json").exit_code == 0


def test_a_refusal_is_one_line_and_1(run: Run, server: FakeServer) -> None:
    server.failures.append(Failure(grpc.StatusCode.INTERNAL, "the model raised:\n  ValueError"))
    result = run("infer", "echo", "--random", "1")
    assert result.exit_code == 1
    assert result.stderr == "error: the model raised: ValueError\n"
