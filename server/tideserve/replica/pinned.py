"""The shared memory, registered with CUDA: a device then copies from it without a stop in between.

What is registered must keep its pages (`Arena.keeps_pages`), or the device would go on with old
ones. It takes memory that is not given back: all of the arena, for as long as the life lasts.

Not run on a device yet: tests have a library that stands in for CUDA's.
"""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

from tideserve.replica.arena import Arena
from tideserve.replica.settings import Device

_LOG: Final = logging.getLogger(__name__)
_MAPS: Final = Path("/proc/self/maps")
_LIBRARY: Final = "libcudart.so"
# Of cudaHostRegister: for every context of this process, whichever library made it
# (https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html).
_PORTABLE: Final = 1


class CudaError(Exception):
    """A call of CUDA's runtime did not succeed."""


class CudaRuntime(NamedTuple):
    """CUDA's runtime library, as the model's own runtime has loaded it."""

    library: ctypes.CDLL

    @classmethod
    def loaded(cls, maps: Path = _MAPS) -> Self:
        """Raises `CudaError` where nothing in this process has loaded it. A second copy would be of
        no use, so none is looked for elsewhere."""
        for line in maps.read_text().splitlines():
            _, slash, rest = line.partition("/")
            if slash and rest.rpartition("/")[2].startswith(_LIBRARY):
                return cls(ctypes.CDLL(slash + rest))
        raise CudaError(f"expected that the model's runtime has loaded {_LIBRARY}")

    def register(self, address: int, size_bytes: int, device: int) -> None:
        """Raises `CudaError`. The calling thread's device is `device` from now on."""
        self._call("cudaSetDevice", ctypes.c_int(device))
        self._call(
            "cudaHostRegister",
            ctypes.c_void_p(address),
            ctypes.c_size_t(size_bytes),
            ctypes.c_uint(_PORTABLE),
        )

    def unregister(self, address: int) -> None:
        """Raises `CudaError`."""
        self._call("cudaHostUnregister", ctypes.c_void_p(address))

    def _call(self, name: str, *arguments: object) -> None:
        try:
            code = self.library[name](*arguments)
        except AttributeError as error:
            raise CudaError(f"CUDA's runtime library has no {name}") from error
        if code:
            # It is kept for the next call that asks for the last error, which is the model's.
            self.library["cudaGetLastError"]()
            describe = self.library["cudaGetErrorString"]
            describe.restype = ctypes.c_char_p
            text = (describe(code) or b"").decode(errors="replace")
            raise CudaError(f"{name}: error {code}, {text}")


@contextmanager
def pinned(arena: Arena | None, device: Device) -> Iterator[None]:
    """Keeps an arena registered with the device, where there are both and CUDA takes it. Says in
    one line of the log what came of it; never raises for that. On the thread that computes."""
    runtime = None
    if arena is not None and arena.keeps_pages and device.index is not None:
        runtime = _register(arena, device.index)
    try:
        yield
    finally:
        if runtime is not None and arena is not None:
            _unregister(runtime, arena)


def _register(arena: Arena, device: int) -> CudaRuntime | None:
    """None: it is not."""
    try:
        runtime = CudaRuntime.loaded()
        runtime.register(arena.address, arena.size_bytes, device)
    except (CudaError, OSError) as error:
        _LOG.warning("the shared memory is not registered with gpu:%d: %s", device, error)
        return None
    _LOG.info("%d bytes of shared memory are registered with gpu:%d", arena.size_bytes, device)
    return runtime


def _unregister(runtime: CudaRuntime, arena: Arena) -> None:
    try:
        runtime.unregister(arena.address)
    except CudaError as error:
        _LOG.warning("the shared memory stays registered: %s", error)
