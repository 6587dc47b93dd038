"""Tideserve's own keys in config.pbtxt's `parameters`: `tideserve.*`.

All other keys are the model's own.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, TypeVar

from tideserve.server.core.settings import BatchingMode, OnLate
from tideserve.server.errors import ModelConfigError
from tideserve.v1.model_config_pb2 import ModelParameter

PREFIX: Final = "tideserve."
KEYS: Final = (
    "tideserve.batching",
    "tideserve.retryable",
    "tideserve.max_batch_time",
    "tideserve.max_queue_requests",
    "tideserve.max_queue_rows",
    "tideserve.max_queue_bytes",
    "tideserve.max_lease_bytes",
    "tideserve.latency_target",
    "tideserve.on_late",
)
# Known, accepted, and not acted on yet.
LATER_KEYS: Final = (
    "tideserve.pad_buckets",
    "tideserve.lease_seconds",
)
_MAX_COUNT: Final = 2**31 - 1
_MAX_QUEUE_BYTES: Final = 2**40
_MAX_BATCH_TIME_S: Final = 86_400.0
_MAX_LATENCY_TARGET_S: Final = 3600.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Parameters:
    """The values that were given; None where a key is not there."""

    batching: BatchingMode | None = None
    retryable: bool | None = None
    max_batch_time_s: float | None = None
    max_queue_requests: int | None = None
    max_queue_rows: int | None = None
    max_queue_bytes: int | None = None
    max_lease_bytes: int | None = None
    latency_target_s: float | None = None
    on_late: OnLate | None = None


def read_parameters(parameters: Mapping[str, ModelParameter], source: str) -> Parameters:
    """Raises `ModelConfigError` with the key, the value and the allowed range."""
    values = {key: value.string_value for key, value in parameters.items()}
    for key in sorted(values):
        if key.startswith(PREFIX) and key not in KEYS + LATER_KEYS:
            raise ModelConfigError(f"{source}: parameters: there is no key {key!r}: {_hint(key)}")
    reader = _Reader(values, source)
    return Parameters(
        batching=reader.batching("tideserve.batching"),
        retryable=reader.boolean("tideserve.retryable"),
        max_batch_time_s=reader.seconds("tideserve.max_batch_time", _MAX_BATCH_TIME_S),
        max_queue_requests=reader.integer("tideserve.max_queue_requests", _MAX_COUNT),
        max_queue_rows=reader.integer("tideserve.max_queue_rows", _MAX_COUNT),
        max_queue_bytes=reader.integer("tideserve.max_queue_bytes", _MAX_QUEUE_BYTES),
        max_lease_bytes=reader.integer("tideserve.max_lease_bytes", _MAX_COUNT),
        latency_target_s=reader.seconds("tideserve.latency_target", _MAX_LATENCY_TARGET_S),
        on_late=reader.on_late("tideserve.on_late"),
    )


def _hint(key: str) -> str:
    nouns = [known.removeprefix(PREFIX) for known in KEYS + LATER_KEYS]
    near = get_close_matches(key.removeprefix(PREFIX), nouns, n=1)
    return f"did you mean '{PREFIX}{near[0]}'?" if near else f"expected one of {', '.join(KEYS)}"


class _Reader:
    """Each method gives None where the key is not there, and refuses what it cannot read."""

    def __init__(self, values: Mapping[str, str], source: str) -> None:
        self._values = values
        self._source = source

    def batching(self, key: str) -> BatchingMode | None:
        modes = {mode.value: mode for mode in BatchingMode}
        return self._read(key, modes.get, " or ".join(modes))

    def on_late(self, key: str) -> OnLate | None:
        words = {on_late.value: on_late for on_late in OnLate}
        return self._read(key, words.get, " or ".join(words))

    def boolean(self, key: str) -> bool | None:
        words = {"true": True, "false": False}
        return self._read(key, lambda text: words.get(text.lower()), "true or false")

    def seconds(self, key: str, most_s: float) -> float | None:
        return self._read(
            key,
            lambda text: _number(text, most_s),
            f"seconds, more than 0 and at most {most_s:g}",
        )

    def integer(self, key: str, most: int) -> int | None:
        return self._read(key, lambda text: _integer(text, most), f"an integer from 1 to {most}")

    def _read(self, key: str, read: Callable[[str], _T | None], expected: str) -> _T | None:
        if key not in self._values:
            return None
        value = read(self._values[key].strip())
        if value is None:
            raise ModelConfigError(
                f"{self._source}: parameters: {key}: expected {expected}, got {self._values[key]!r}"
            )
        return value


def _number(text: str, most: float) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= most else None


def _integer(text: str, most: int) -> int | None:
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) is None:
        return None
    return int(text) if 1 <= int(text) <= most else None
