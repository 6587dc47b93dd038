"""What a replica is started with: values only, read from argv by `__main__` or made by a launcher."""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tideserve.replica.errors import SettingsError


class ExitCode(IntEnum):
    """How a replica's process ends."""

    CLEAN = 0
    LOAD_FAILED = 1
    BAD_SETTINGS = 2
    LIFE_OVER = 3
    """The frontend refused its calls: it counts as LOST, or was assigned another model."""
    UNREACHABLE = 4
    """No frontend that knows it answered for `reconnect_s`."""
    DEVICE_LOST = 5


@dataclass(frozen=True, slots=True)
class Device:
    """`index` is None on the CPU."""

    index: int | None = None

    @staticmethod
    def parse(text: str) -> "Device":
        """`cpu` or `gpu:INDEX`. Raises `SettingsError`."""
        if text == "cpu":
            return Device()
        kind, _, index = text.partition(":")
        if kind == "gpu" and index.isascii() and index.isdigit():
            return Device(int(index))
        raise SettingsError(f"device: expected cpu or gpu:INDEX (such as gpu:0), got {text!r}")

    def __str__(self) -> str:
        return "cpu" if self.index is None else f"gpu:{self.index}"


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """`address` is the frontend's HOST:PORT or unix:/PATH, `local_address` a unix:/PATH that is dialled instead
    as long as somebody listens there (empty: none). `device` is where it computes, as this
    process sees it, and `device_name` what others call it (empty: the same). `threads` bounds the model's own threads, 0: the
    runtime's default. `launched_at` is the unix time of the launcher's request, None when
    started by hand. `reconnect_s` is how long it looks for a frontend that knows it. In
    `weights_folder` replicas of this machine share weights; None: each has its own."""

    replica_id: str
    address: str
    token: str = ""
    local_address: str = ""
    device: str = "cpu"
    device_name: str = ""
    threads: int = 0
    log_file: Path | None = None
    launched_at: float | None = None
    prefetch: bool = True
    reconnect_s: float = 20.0
    weights_folder: Path | None = None

    def check(self) -> None:
        """Raises `SettingsError` for values that cannot work."""
        if not self.replica_id:
            raise SettingsError("replica-id: expected a name, got an empty one")
        host, _, port = self.address.rpartition(":")
        is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
        if not self.address.startswith("unix:/") and not (host and is_port):
            raise SettingsError(f"address: expected HOST:PORT or unix:/PATH, got {self.address!r}")
        if self.local_address and not self.local_address.startswith("unix:/"):
            raise SettingsError(f"local-address: expected unix:/PATH, got {self.local_address!r}")
        if not (self.token.isascii() and self.token.isprintable()):
            raise SettingsError("token: expected printable ASCII characters")
        if self.threads < 0:
            raise SettingsError(f"threads: expected 0 or more, got {self.threads}")
        if self.reconnect_s < 0:
            raise SettingsError(f"reconnect_s: expected 0 or more, got {self.reconnect_s}")
        Device.parse(self.device)
