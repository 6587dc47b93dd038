"""The import contracts hold, and each of them fires when it is broken.

A contract that cannot fail protects nothing: every one is broken in a copy of the sources, all
in one run of import-linter.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
ROOTS = ("proto", "server", "autoscaler", "clients")
CONFIG = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = CONFIG["tool"]["importlinter"]["contracts"]


@dataclass(frozen=True)
class Breach:
    """`line` in a module of the copy breaks the contract whose name begins with `contract`."""

    contract: str
    module: str
    line: str


BREACHES = (
    Breach("server, replica, autoscaler", "server/tideserve/replica/link.py", "import tideserve.server.errors"),
    Breach("server, replica, autoscaler", "autoscaler/tideserve/autoscaler/loop.py", "import tideserve.client"),
    Breach("server, replica, autoscaler", "server/tideserve/server/app.py", "import tideserve.autoscaler.loop"),
    Breach("the simulator imports", "server/tideserve/server/core/queue.py", "import tideserve.sim.book"),
    Breach("the simulator imports", "clients/tideserve/cli/record.py", "import tideserve.sim.arrivals"),
    Breach("virtual time", "autoscaler/tideserve/sim/engine.py", "import time"),
    Breach("virtual time", "autoscaler/tideserve/sim/fleet.py", "import tideserve.autoscaler.loop"),
    Breach("the wire imports nothing", "proto/tideserve/v1/methods.py", "import tideserve.client"),
    Breach("nothing imports the command line", "clients/tideserve/cli/infer.py", "import tideserve.server.errors"),
    Breach("C1: the server's core", "server/tideserve/server/core/queue.py", "import time"),
    Breach("C1: the server's core", "server/tideserve/server/core/queue.py", "import grpc"),
    Breach("C1: the server's core", "server/tideserve/server/core/queue.py", "import tideserve.v1.methods"),
    Breach("C1: the autoscaler's core", "autoscaler/tideserve/autoscaler/core/reconcile.py", "import random"),
    Breach("C1: the autoscaler's core", "autoscaler/tideserve/autoscaler/core/reconcile.py", "import tideserve.autoscaler.launchers.process"),
    Breach("a front carries bytes", "server/tideserve/server/front/native/calls.py", "import tideserve.server.core.queue"),
    Breach("a front carries bytes", "server/tideserve/server/front/grpcio.py", "import tideserve.server.service.leases"),
    Breach("a replica does without grpcio", "server/tideserve/replica/link.py", "import grpc"),
    Breach("a replica does without grpcio", "proto/tideserve/v1/methods.py", "import grpc"),
)  # fmt: skip


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the source roots in `folder`, with the checkout's contracts."""
    return subprocess.run(
        [
            Path(sys.executable).with_name("lint-imports"),
            f"--config={CHECKOUT / 'pyproject.toml'}",
            "--no-cache",
            "--no-logo",
        ],
        cwd=folder,
        # Before the editable install: the packages are those of the folder.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(folder / root) for root in ROOTS),
            "COLUMNS": "300",
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def verdicts(output: str) -> dict[str, bool]:
    """By contract: whether it was kept."""
    found = {}
    for line in output.splitlines():
        for contract in CONTRACTS:
            rest = line.removeprefix(contract["name"]).split()
            if line.startswith(contract["name"]) and rest[:1] in (["KEPT"], ["BROKEN"]):
                found[contract["name"]] = rest == ["KEPT"]
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source roots."""
    folder = tmp_path_factory.mktemp("sources")
    for root in ROOTS:
        shutil.copytree(
            CHECKOUT / root, folder / root, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def test_the_sources_keep_every_contract(sources: Path) -> None:
    done = lint(sources)

    assert done.returncode == 0, done.stdout
    assert verdicts(done.stdout) == {contract["name"]: True for contract in CONTRACTS}


@pytest.mark.parametrize("breach", BREACHES, ids=lambda it: f"{Path(it.module).stem}: {it.line}")
def test_a_forbidden_import_breaks_its_contract(sources: Path, breach: Breach) -> None:
    module = sources / breach.module
    text = module.read_text(encoding="utf-8")
    module.write_text(f"{text}\n{breach.line}\n", encoding="utf-8")
    try:
        done = lint(sources)
    finally:
        module.write_text(text, encoding="utf-8")

    assert done.returncode == 1, done.stdout + done.stderr
    broken = [name for name, kept in verdicts(done.stdout).items() if not kept]
    assert any(name.startswith(breach.contract) for name in broken), done.stdout


def test_every_contract_is_shown_to_fire() -> None:
    for contract in CONTRACTS:
        assert any(contract["name"].startswith(breach.contract) for breach in BREACHES), contract
