"""`tideserve status`, `scale` and `logs` on a server that scales, and the autoscaler's HTTP."""

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo import repository
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tideserve.client.aio import Client as AsyncClient

pytestmark = pytest.mark.e2e

MODEL = repository.MODEL


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    models, file = repository.write(folder)
    with running(models, folder / "state", f"--autoscaler={file}") as server:
        yield server


def tideserve(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tideserve.cli", *arguments, "--address", server.address],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def model_status(server: Server) -> dict[str, Any]:
    (model,) = json.loads(tideserve(server, "status", "--json").stdout)["models"]
    assert isinstance(model, dict)
    return model


def get(server: Server, path: str) -> str:
    where = json.loads(tideserve(server, "status", "--json").stdout)["autoscaler_http"]
    with urllib.request.urlopen(f"http://{where}{path}", timeout=5) as response:
        return str(response.read().decode())


def test_a_pin_counts_until_it_is_cleared(server: Server) -> None:
    said = tideserve(server, "scale", MODEL, "2", "--for", "5m")
    assert (said.returncode, said.stdout.strip()) == (0, f"{MODEL}: 2 replicas for 300 s")
    wait_until(lambda: model_status(server)["ready"] == 2, 20, lambda: server.log)
    status = model_status(server)
    assert status["pinned"] == 2
    assert 0 < status["pin_remaining_s"] <= 300
    table = tideserve(server, "status", "--once", "--interval", "0.2").stdout
    assert "pinned at 2" in table
    assert tideserve(server, "scale", MODEL, "--clear").returncode == 0
    # Nobody asks for it: idle for 4 s it goes.
    wait_until(lambda: model_status(server)["ready"] == 0, 30, lambda: server.log)
    assert model_status(server)["pinned"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("scale", "nothing", "2"), 1, "model 'nothing' is not served; there are: digits_standin"),
        (("scale", MODEL, "2", "--version", "9"), 1, "version 9 is not served"),
        (("scale", MODEL), 2, "expected a number of replicas, or --clear"),
        (("scale", MODEL, "1", "--clear"), 2, "expected a number of replicas, or --clear"),
        (("scale", MODEL, "1", "--for", "soon"), 2, "--for: expected a time such as 90s"),
        (("scale", MODEL, "1", "--for", "99h"), 1, "expected 0 to 86400 seconds"),
        (("logs", "nobody"), 1, "no log of a replica 'nobody' is kept here"),
        (("logs", "../../x"), 1, "no log of a replica"),
    ],
)
def test_what_is_wrong_is_said(
    server: Server, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = tideserve(server, *arguments)
    assert said in result.stderr
    assert result.returncode == code


def test_the_log_of_a_replica_is_shown(server: Server) -> None:
    replicas = json.loads(tideserve(server, "replicas", "--json").stdout)
    standby = next(replica["id"] for replica in replicas if replica["state"] == "STANDBY")
    shown = tideserve(server, "logs", standby, "--lines", "5")
    assert shown.returncode == 0
    host, _, port = server.address.rpartition(":")
    assert re.search(rf"joined unix:/\S+/front-{host}-{port}\.sock in epoch", shown.stdout)


def test_the_autoscaler_exports_its_decisions(server: Server, tmp_path: Path) -> None:
    def metrics() -> str:
        return get(server, "/metrics")

    assert f'tideserve_autoscaler_desired{{model="{MODEL}",version="1"}}' in metrics()
    assert 'phase="total"' in metrics()
    decisions = json.loads(get(server, "/decisions?count=1000"))
    of_model = [entry for entry in decisions if entry.get("model") == MODEL]
    assert of_model[0]["desired"] == 1
    assert of_model[0]["reason"].startswith("first start")
    assert of_model[0]["inputs"]["startup_s"] > 0
    (log,) = server.state.glob("tideserve/replicas-*/decisions.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[: len(decisions)] == decisions


def autoscale(server: Server, file: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "tideserve.cli", "autoscale", str(file)),
            *("--address", server.address, "--state-dir", str(server.state / "other"), *options),
        ],
        env={**server.environment, "TIDESERVE_TOKEN": server.token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_explain_tells_the_next_decision_with_its_numbers_and_changes_nothing(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("defaults: {min: 3}")
    # The server's own autoscaler goes on: it may retire an idle one, not start two.
    before = len(server.snapshot().replicas)
    said = autoscale(server, file, "--explain")
    assert said.returncode == 0, said.stderr
    assert f"model '{MODEL}' version 1: desired 3" in said.stdout
    assert "limited by  min: 3" in said.stdout
    assert "rows_per_s_20s" in said.stdout
    assert len(server.snapshot().replicas) <= before
    assert model_status(server)["limited_by"] != "min: 3"


def test_a_dry_run_tells_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("defaults: {min: 3}")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tideserve.cli", "autoscale", str(file), "--dry-run"),
                *("--address", server.address, "--state-dir", str(tmp_path / "state")),
            ],
            env={**server.environment, "TIDESERVE_TOKEN": server.token},
            stderr=stderr,
        )
    try:
        wait_until(lambda: "desired 3" in log.read_text(), 20, log.read_text)
        assert model_status(server)["limited_by"] != "min: 3"
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert "a newer autoscaler" not in server.log
    assert not (tmp_path / "state").exists()


def test_a_wrong_file_ends_with_2_and_its_mistakes(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("modles: {}")
    said = autoscale(server, file, "--dry-run")
    assert (said.returncode, "did you mean models?" in said.stderr) == (2, True)


def test_the_schema_is_one_for_editors() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "tideserve.cli", "autoscale", "--schema"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    schema = json.loads(said.stdout)
    assert schema["properties"].keys() >= {"models", "defaults", "devices", "source", "launcher"}
    assert schema["additionalProperties"] is False


def test_health_by_grpc_health_is_of_the_server_whatever_its_models_are(server: Server) -> None:
    said = tideserve(server, "health", "--live")
    assert (said.returncode, said.stdout.strip()) == (0, f"{server.address}: serving")
    assert tideserve(server, "health", "--live", "--model", MODEL).returncode == 0
    unknown = tideserve(server, "health", "--live", "--model", "nothing")
    assert (unknown.returncode, "nothing" in unknown.stderr) == (1, True)

    async def ask() -> bool:
        async with AsyncClient(server.address) as client:
            return await client.is_healthy()

    assert asyncio.run(ask())
