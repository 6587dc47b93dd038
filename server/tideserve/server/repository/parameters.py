"""Tideserve's own keys in config.pbtxt's `parameters`: `tideserve.*`.

All other keys are the model's own.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    "tideserve.pad",
    "tideserve.share_weights",
)
# Known, accepted, and not acted on yet.
LATER_KEYS: Final = ("tideserve.lease_seconds",)
_MAX_COUNT: Final = 2**31 - 1
_MAX_QUEUE_BYTES: Final = 2**40
_MAX_BATCH_TIME_S: Final = 86_400.0
_MAX_LATENCY_TARGET_S: Final = 3600.0
_MAX_DIM: Final = 31
# Each is timed apart, on each device.
_MAX_EDGES: Final = 64

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pad:
    """Of `tideserve.pad`: `dim` of a tensor's dims, the buckets' `edges`, ascending, what to fill
    up with (`value`, and by input), and the most rows x length of a batch."""

    dim: int
    edges: tuple[int, ...]
    value: float = 0.0
    values: Mapping[str, float] = field(default_factory=dict)
    cost: int | None = None


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
    pad: Pad | None = None
    share_weights: bool | None = None
    """For replicas, which read it themselves."""


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
        pad=reader.pad("tideserve.pad"),
        share_weights=reader.boolean("tideserve.share_weights"),
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

    def pad(self, key: str) -> Pad | None:
        return self._read(
            key,
            _pad,
            "such as dim=0,edges=16/32/64,value=0,cost=4096: dim from 0, edges ascending, "
            "value and value.INPUT numbers, cost from 1; dim and edges are needed",
        )

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


def _integer(text: str, most: int, least: int = 1) -> int | None:
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) is None:
        return None
    return int(text) if least <= int(text) <= most else None


def _pad(text: str) -> Pad | None:
    pairs = [part.partition("=") for part in text.split(",")]
    given = {name.strip(): value.strip() for name, _, value in pairs}
    if len(given) < len(pairs):
        return None
    dim = _integer(given.pop("dim", ""), _MAX_DIM, least=0)
    edges = _edges(given.pop("edges", ""))
    value = _pad_value(given.pop("value", "0"))
    cost_text = given.pop("cost", None)
    cost = None if cost_text is None else _integer(cost_text, _MAX_QUEUE_BYTES)
    values: dict[str, float] = {}
    for name, of_input in given.items():
        found = _pad_value(of_input)
        if found is None or not name.startswith("value."):
            return None
        values[name.removeprefix("value.")] = found
    if dim is None or edges is None or value is None or (cost_text is not None and cost is None):
        return None
    return Pad(dim, edges, value, values, cost)


def _edges(text: str) -> tuple[int, ...] | None:
    edges: list[int] = []
    for part in text.split("/"):
        edge = _integer(part.strip(), _MAX_COUNT)
        if edge is None or (edges and edge <= edges[-1]):
            return None
        edges.append(edge)
    return tuple(edges) if len(edges) <= _MAX_EDGES else None


def _pad_value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
