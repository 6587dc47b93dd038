"""Durations, sizes, CPU numbers, addresses and mounts as people write them in the autoscaler file."""

import re
from math import inf
from typing import Final

_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
#: No kernel and no engine counts further.
MAX_SIZE: Final = 2**63 - 1
#: Linux counts no further (CONFIG_NR_CPUS).
MAX_CORE: Final = 8191
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def seconds_of(value: object) -> float:
    """A number of seconds, or text such as 250ms, 30s, 5m, 2h. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return inf
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or (match[2] or "s") not in _SECONDS:
        raise ValueError(
            f"expected seconds, or a duration such as 250ms, 30s, 5m or 2h, got {value!r}"
        )
    return float(match[1]) * _SECONDS[match[2] or "s"]


def bytes_of(value: object) -> int:
    """A number of bytes, or text such as 512MiB or 2GB. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size: float = value
    else:
        match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None or match[2] not in _BYTES:
            raise ValueError(f"expected bytes, or a size such as 512MiB or 2GB, got {value!r}")
        size = float(match[1]) * _BYTES[match[2]]
    if size > MAX_SIZE:
        raise ValueError(f"expected at most {MAX_SIZE} bytes, got more")
    return round(size)


def cores_of(text: str) -> frozenset[int]:
    """CPU numbers, as in 0-3 or 0,2,4-5. Raises ValueError."""
    cores: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:-([0-9]+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_CORE:
            raise ValueError(
                f"expected CPU numbers such as 0-3 or 0,2,4-5, up to {MAX_CORE}, got {text!r}"
            )
        cores.update(range(first, last + 1))
    return frozenset(cores)


def host_port_of(text: str) -> str:
    """HOST:PORT, an IPv6 address in brackets. Raises ValueError."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_host = bool(bare) and not re.search(r"[\s/\[\]]", bare) and (":" in bare) == (bare != host)
    if not is_host or re.fullmatch("[0-9]{1,5}", port) is None or not 0 < int(port) < 65536:
        raise ValueError(f"expected HOST:PORT such as 127.0.0.1:8001 or [::1]:8001, got {text!r}")
    return text


def mounted_of(text: str) -> str:
    """A path from the root (an engine knows no folder to start from) or the name of a volume.
    Raises ValueError."""
    if text.startswith("/") or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        return text
    raise ValueError(f"expected a path from the root, or a volume's name, got {text!r}")


def address_of(text: str) -> str:
    """HOST:PORT or unix:/PATH. Raises ValueError."""
    return text if text.startswith("unix:/") else host_port_of(text)
