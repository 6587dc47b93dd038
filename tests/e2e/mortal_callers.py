"""Callers in processes of their own, to be killed in the middle of their calls.

Run as a program it forks one for each line of its input, so that a caller costs milliseconds, not
the import of its libraries. Each caller checks every answer and counts in a file that all have
mapped: what it counted stays when it is killed.
"""

import asyncio
import fcntl
import itertools
import mmap
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import grpc
import numpy as np

from tests.e2e import large_model
from tests.e2e.caller import Caller, connect
from tideserve.client import Client
from tideserve.v1.inference_pb2 import ModelInferRequest, SystemSharedMemoryRegisterRequest
from tideserve.v1.methods import INFERENCE_SERVICE
from tideserve.v1.segments import PREFIX

REGISTER: Final = f"/{INFERENCE_SERVICE}/SystemSharedMemoryRegister"
MEMORY: Final = Path("/dev/shm")
TENSOR_BYTES: Final = 4 * large_model.ELEMENTS
# That a stream sends ahead.
STREAM_REQUESTS: Final = 3
# Callers that live at a time.
SLOTS: Final = 64


class Kind(Enum):
    """How a caller's tensors travel."""

    MESSAGES = "messages"
    """In the call: through the replica's arena only."""
    CLIENT = "client"
    """`tideserve.client`: regions that it makes by itself."""
    STREAM = "stream"
    """The same, over streams with requests sent ahead."""
    LOCKED = "locked"
    """Inputs and outputs in a region whose client holds a lock, so that its death is noticed."""
    PLAIN = "plain"
    """The same without a lock, as Triton's clients: it stays until somebody unregisters it."""


def run(kind: Kind, address: str, counts: memoryview, complaints: Path, seed: int) -> None:
    """Calls without end. `counts`: right answers, wrong ones."""
    source = random.Random(seed)
    try:
        if kind in (Kind.MESSAGES, Kind.CLIENT):
            with Client(address, shared_memory=kind is Kind.CLIENT) as client:
                while True:
                    values = random_values(source)
                    outputs = client.infer(large_model.NAME, {"IN": values})
                    counts[0 if outputs["OUT"].tobytes() == values.tobytes() else 1] += 1
        if kind is Kind.STREAM:
            call_in_streams(address, source, counts)
        with connect(address) as caller:
            call_in_a_region(caller, source, counts, is_locked=kind is Kind.LOCKED)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test is to hear of it
        counts[1] += 1
        with complaints.open("a") as file:
            file.write(f"{kind.value}: {error!r}\n")


def is_region_of(kind: Kind, name: str) -> bool:
    """Whether a caller of this kind registered it."""
    owns = kind in (Kind.CLIENT, Kind.STREAM)
    return name.startswith(PREFIX if owns else f"mortal-{kind.value}-")


def random_values(source: random.Random) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Any bits, so that an answer is nobody else's."""
    return np.frombuffer(source.randbytes(TENSOR_BYTES), np.float32).reshape(1, -1)


def call_in_streams(address: str, source: random.Random, counts: memoryview) -> None:
    """Some are ended with requests open, whose segments are abandoned."""
    with Client(address) as client:
        while True:
            with client.stream() as stream:
                sent = []
                for _ in range(STREAM_REQUESTS):
                    sent.append(random_values(source))
                    stream.send(large_model.NAME, {"IN": sent[-1]})
                for values in sent[: source.choice((STREAM_REQUESTS, 1))]:
                    output = stream.receive().outputs["OUT"]
                    counts[0 if output.tobytes() == values.tobytes() else 1] += 1


def call_in_a_region(
    caller: Caller, source: random.Random, counts: memoryview, *, is_locked: bool
) -> None:
    kind = Kind.LOCKED if is_locked else Kind.PLAIN
    name = f"mortal-{kind.value}-{secrets.token_hex(8)}"
    path = MEMORY / f"tideserve-test-{name}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if is_locked:
        fcntl.flock(file, fcntl.LOCK_SH)
    os.posix_fallocate(file, 0, 2 * TENSOR_BYTES)
    memory = mmap.mmap(file, 2 * TENSOR_BYTES)
    register = SystemSharedMemoryRegisterRequest(
        name=name, key=path.name, byte_size=2 * TENSOR_BYTES
    )
    try:
        caller.call(REGISTER, register.SerializeToString())
    finally:
        path.unlink()
    request = ModelInferRequest(model_name=large_model.NAME)
    tensor = request.inputs.add(name="IN", datatype="FP32", shape=[1, large_model.ELEMENTS])
    for offset, holder in ((0, tensor), (TENSOR_BYTES, request.outputs.add(name="OUT"))):
        holder.parameters["shared_memory_region"].string_param = name
        holder.parameters["shared_memory_byte_size"].int64_param = TENSOR_BYTES
        holder.parameters["shared_memory_offset"].int64_param = offset
    while True:
        memory[:TENSOR_BYTES] = values = source.randbytes(TENSOR_BYTES)
        memory[TENSOR_BYTES:] = bytes(TENSOR_BYTES)
        caller.infer(request)
        counts[0 if memory[TENSOR_BYTES:] == values else 1] += 1


@dataclass(slots=True)
class MortalCaller:
    """One that lives. `right` and `wrong` answers so far."""

    kind: Kind
    pid: int
    slot: int
    _counts: memoryview

    @property
    def right(self) -> int:
        return int(self._counts[0])

    @property
    def wrong(self) -> int:
        return int(self._counts[1])


@dataclass(slots=True)
class MortalCallers:
    """Owns the program that forks them, and the file they count in. A context manager: none of
    them is left."""

    address: str
    folder: Path
    living: list[MortalCaller] = field(default_factory=list)
    right: int = 0
    wrong: int = 0
    _program: "subprocess.Popen[bytes] | None" = None
    _memory: mmap.mmap | None = None
    _seeds: "itertools.count[int]" = field(default_factory=itertools.count)

    def __enter__(self) -> Self:
        self._memory = open_counts(self.folder / "counts")
        command = [sys.executable, "-m", "tests.e2e.mortal_callers", self.address, str(self.folder)]
        self._program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._program is not None
        os.killpg(self._program.pid, signal.SIGKILL)
        self._program.communicate()

    @property
    def complaints(self) -> str:
        """What went wrong for callers, in their words."""
        path = self.folder / "complaints"
        return path.read_text() if path.exists() else ""

    async def all_answered(self) -> None:
        """Waits until no call is open that was open when this was called."""
        before = [(caller, caller.right) for caller in self.living]
        while any(caller.right == right and not caller.wrong for caller, right in before):
            await asyncio.sleep(0.005)

    def start(self, kind: Kind) -> MortalCaller:
        """Its first call is still to come."""
        assert self._program is not None
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        assert self._memory is not None
        slot = min(set(range(SLOTS)) - {caller.slot for caller in self.living})
        counts = counts_of(self._memory, slot)
        counts[0] = counts[1] = 0
        order = f"{kind.value} {slot} {next(self._seeds)}\n"
        self._program.stdin.write(order.encode())
        self._program.stdin.flush()
        caller = MortalCaller(kind, int(self._program.stdout.readline()), slot, counts)
        self.living.append(caller)
        return caller

    def kill(self, caller: MortalCaller) -> None:
        """In whatever it is doing."""
        os.kill(caller.pid, signal.SIGKILL)
        self.living.remove(caller)
        self.right += caller.right
        self.wrong += caller.wrong


def open_counts(path: Path) -> mmap.mmap:
    """The file, made where it is missing."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(file, SLOTS * 16)
        return mmap.mmap(file, SLOTS * 16)
    finally:
        os.close(file)


def counts_of(memory: mmap.mmap, slot: int) -> memoryview:
    """Of a caller: right and wrong."""
    at = 16 * slot
    return memoryview(memory)[at : at + 16].cast("Q")


def main(address: str, folder: Path, orders: IO[str]) -> None:
    """Forks a caller for each line, KIND SLOT SEED, and prints its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    memory = open_counts(folder / "counts")
    for line in orders:
        kind, slot, seed = line.split()
        pid = os.fork()
        if pid == 0:
            counts = counts_of(memory, int(slot))
            run(Kind(kind), address, counts, folder / "complaints", int(seed))
            # Whoever is to be killed waits for that.
            time.sleep(3600)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    # gRPC makes nothing at its import that a fork would break.
    assert grpc.__version__
    main(sys.argv[1], Path(sys.argv[2]), sys.stdin)
