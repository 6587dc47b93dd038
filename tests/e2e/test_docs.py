"""The commands and the Python of README.md and docs/ run, as they stand there."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pytest

from examples.train.split import split
from tests.e2e.model_folder import link_example, write_model
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until

pytestmark = pytest.mark.e2e

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
ADDRESS: Final = "localhost:8001"
# What CI runs by itself: a fresh clone, and containers.
COVERED_BY_CI: Final = {
    "make serve",
    "make demo",
    "make wheel",
    "make test",
    "make check",
    "make bench",
    "make bench-setup",
    "make kills",
}
COVERED_PROGRAMS: Final = {"docker", "export"}
PAIR_CONFIG: Final = """
backend: "python"
max_batch_size: 8
input { name: "a" data_type: TYPE_FP32 dims: 2 }
input { name: "b" data_type: TYPE_FP32 dims: 2 }
output { name: "a" data_type: TYPE_FP32 dims: 2 }
output { name: "b" data_type: TYPE_FP32 dims: 2 }
"""
PAIR: Final = """
class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        return dict(inputs)

    def unload(self):
        pass
"""


class Block(NamedTuple):
    """A fenced block; `line` is that of its first line of code."""

    page: str
    line: int
    language: str
    text: str


def blocks() -> Iterator[Block]:
    """Every fenced block of the pages."""
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start(2)) + 1
            yield Block(page.name, line, match[1], match[2])


def commands() -> Iterator[Block]:
    """Every line of a shell block that is a command."""
    for block in blocks():
        if block.language in ("sh", "bash", "console", "shell"):
            joined = block.text.replace("\\\n", " ")
            for number, line in enumerate(joined.splitlines()):
                command = re.sub(r"\s+#.*", "", line).strip()
                if command and not command.startswith("#"):
                    yield Block(block.page, block.line + number, "sh", command)


PYTHON: Final = [block for block in blocks() if block.language == "python"]
SHELL: Final = [
    command
    for command in commands()
    if command.text not in COVERED_BY_CI and command.text.split()[0] not in COVERED_PROGRAMS
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "repository").mkdir()
    for model in ("identity", "digits_onnx", "text_python"):
        link_example(folder / "repository", model)
    write_model(folder / "repository", "pair", PAIR_CONFIG, PAIR)
    with running(folder / "repository", folder / "state") as server:
        yield server


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout, with the files that the pages name."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "examples").symlink_to(ROOT / "examples")
    (checkout / ".venv").symlink_to(sys.prefix)
    images = split().held_out.images[:40]
    np.save(checkout / "digits.npy", images)
    np.savetxt(checkout / "digits.csv", images.reshape(40, -1), delimiter=",")
    np.save(checkout / "a.npy", np.ones((3, 2), np.float32))
    (checkout / "b.json").write_text(json.dumps([[1, 2], [3, 4], [5, 6]]))
    return checkout


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.line}")
def test_a_python_block_runs(
    block: Block, server: Server, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDESERVE_TOKEN", server.token)
    monkeypatch.chdir(checkout)
    source = block.text.replace(ADDRESS, server.address)
    assert source != block.text or "Client" not in source, "an example names the server's address"
    exec(compile(source, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("command", SHELL, ids=lambda command: f"{command.page}:{command.line}")
def test_a_command_runs(command: Block, server: Server, checkout: Path) -> None:
    folder = checkout.parent / "state"
    folder.mkdir(mode=0o700)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TIDESERVE_ADDRESS": server.address,
        "XDG_RUNTIME_DIR": str(server.state),
    }
    if " serve " in command.text:
        environment["XDG_RUNTIME_DIR"] = str(folder)
        _serve(command.text, checkout, environment)
        return
    done = subprocess.run(
        ["bash", "-ec", command.text.replace(ADDRESS, server.address)],
        env=environment,
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_make_targets_that_the_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {command.text for command in commands() if command.text in COVERED_BY_CI}
    assert targets
    for target in targets:
        name = target.split()[1]
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), target


def test_the_pages_have_blocks() -> None:
    assert len(PYTHON) >= 9
    assert len(SHELL) >= 8


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


# --- inside ------------------------------------------------------------------------------------


def _serve(command: str, checkout: Path, environment: dict[str, str]) -> None:
    """A command that runs until it is told to stop."""
    out = checkout / "serve.out"
    with out.open("wb") as stdout, (checkout / "serve.err").open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-ec", f"exec {command}"],
            env=environment,
            cwd=checkout,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        wait_until(lambda: out.read_text().startswith("ready grpc="), 60)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    assert code == 0
