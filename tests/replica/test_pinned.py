"""The arena, registered with a device: with what, when, and what happens where it cannot be."""

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format

from tests.replica import fake_cuda
from tests.replica.fake_frontend import TOKEN, FakeFrontend, assignment
from tideserve.replica.arena import Arena, open_arena
from tideserve.replica.pinned import CudaRuntime, pinned
from tideserve.replica.settings import Device, ExitCode
from tideserve.server.arena import Arena as FrontendsArena
from tideserve.v1.model_config_pb2 import ModelConfig

GPU = Device(3)
OUT_OF_MEMORY = 2


@pytest.fixture
def library(tmp_path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(fake_cuda.build(tmp_path)))


@pytest.fixture
def found(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(CudaRuntime, "loaded", lambda: CudaRuntime(library))
    return library


@pytest.fixture
def shared() -> Iterator[FrontendsArena]:
    arena = FrontendsArena(1 << 20, keeps_pages=True)
    yield arena
    arena.close()


def mapped(shared: FrontendsArena) -> Arena:
    arena = open_arena(shared.message())
    assert arena is not None
    return arena


def test_all_of_it_is_registered_once_and_let_go_at_the_end(
    found: ctypes.CDLL, shared: FrontendsArena, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tideserve.replica.pinned")
    arena = mapped(shared)
    with pinned(arena, GPU):
        assert fake_cuda.said(found) == [
            "device 3",
            f"register {arena.address:#x} {shared.message().end} 1",
        ]
    assert fake_cuda.said(found)[2:] == [f"unregister {arena.address:#x}"]
    (line,) = caplog.messages
    assert line == f"{shared.message().end} bytes of shared memory are registered with gpu:3"


def test_it_is_let_go_when_what_ran_meanwhile_raises(
    found: ctypes.CDLL, shared: FrontendsArena
) -> None:
    with pytest.raises(RuntimeError), pinned(mapped(shared), GPU):
        raise RuntimeError
    assert fake_cuda.said(found)[-1].startswith("unregister")


def test_without_a_device_or_an_arena_or_with_one_that_changes_its_pages_nothing_is_asked(
    found: ctypes.CDLL, shared: FrontendsArena
) -> None:
    changing = FrontendsArena(1 << 20)
    for arena, device in ((mapped(shared), Device()), (None, GPU), (mapped(changing), GPU)):
        with pinned(arena, device):
            pass
    changing.close()
    assert fake_cuda.said(found) == []


def test_a_refusal_is_one_line_and_is_not_left_for_the_model(
    found: ctypes.CDLL, shared: FrontendsArena, caplog: pytest.LogCaptureFixture
) -> None:
    ctypes.c_int.in_dll(found, "refused").value = OUT_OF_MEMORY
    with pinned(mapped(shared), GPU):
        assert ctypes.c_int.in_dll(found, "last").value == 0
    (line,) = caplog.messages
    assert line == (
        "the shared memory is not registered with gpu:3: cudaHostRegister: error 2, out of memory"
    )
    assert not [said for said in fake_cuda.said(found) if said.startswith("unregister")]


def test_without_cudas_runtime_one_line_says_so(
    shared: FrontendsArena,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "maps").write_text("7f0-7f1 rw-p 00000000 00:00 0 [heap]\n")
    loaded = CudaRuntime.loaded
    monkeypatch.setattr(CudaRuntime, "loaded", lambda: loaded(tmp_path / "maps"))
    with pinned(mapped(shared), GPU):
        pass
    (line,) = caplog.messages
    assert line.endswith("expected that the model's runtime has loaded libcudart.so")


def test_a_library_without_the_function_is_a_refusal(
    shared: FrontendsArena, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaRuntime, "loaded", lambda: CudaRuntime(ctypes.CDLL(None)))
    with pinned(mapped(shared), GPU):
        pass
    assert "has no cudaSetDevice" in caplog.text


def test_the_runtime_is_the_one_that_this_process_has_loaded(tmp_path: Path) -> None:
    path = fake_cuda.build(tmp_path, "libcudart.so.11.0")
    maps = tmp_path / "maps"
    maps.write_text(
        "7f0-7f1 rw-p 00000000 00:00 0 \n"
        f"7f1-7f2 r-xp 00000000 08:01 12   {tmp_path}/libcudart-of-others.so\n"
        f"7f2-7f3 r-xp 00000000 08:01 13   {path}\n"
    )
    runtime = CudaRuntime.loaded(maps)
    runtime.unregister(16)
    assert fake_cuda.said(runtime.library) == ["unregister 0x10"]


MODEL = """
import ctypes

class Model:
    def load(self, context):
        ctypes.CDLL(str(context.path / "libcudart.so.12"))

    def infer(self, inputs):
        return {"OUT": inputs["IN"]}

    def unload(self):
        pass
"""
CONFIG = text_format.Parse(
    """
    backend: "python" max_batch_size: 8
    input { name: "IN" data_type: TYPE_FP32 dims: 2 }
    output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
    """,
    ModelConfig(),
)


def test_a_replicas_process_registers_when_its_model_is_there_and_ends_it_with_its_life(
    shared: FrontendsArena, tmp_path: Path
) -> None:
    """Its own search in its own mappings, its own thread."""
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    told = tmp_path / "told"
    fake_cuda.build(version, file=told)
    frontend = FakeFrontend(assign=assignment(str(version.parent), CONFIG), arena=shared.message())
    command = [sys.executable, "-m", "tideserve.replica", "--replica-id=r1", "--device=gpu:3"]
    command += ["--address", frontend.address, "--log-file", str(tmp_path / "log")]
    environment = os.environ | {"TIDESERVE_TOKEN": TOKEN}
    with subprocess.Popen(command, env=environment) as process:
        try:
            frontend.wait_for(lambda: any(exchange.arena for exchange in frontend.exchanges))
            assert frontend.joins[0].device == "gpu:3"
            frontend.drain()
            assert process.wait(20) == ExitCode.CLEAN, (tmp_path / "log").read_text()
        finally:
            process.kill()
            frontend.close()
    device, register, unregister, _ = told.read_text().split(";")
    assert device == "device 3"
    _, address, size_bytes, flags = register.split()
    assert (int(size_bytes), flags) == (shared.message().end, "1")
    assert unregister == f"unregister {address}"
