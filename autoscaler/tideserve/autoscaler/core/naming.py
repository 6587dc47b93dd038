"""Names of replicas: for people to read, and never used twice."""

import re
from collections.abc import Collection
from hashlib import blake2s
from typing import Final

from tideserve.autoscaler.core.fleet import ModelKey

_MODEL_CHARACTERS: Final = 48
STANDBY_PREFIX: Final = "standby-"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.]+")


def replica_id(key: ModelKey | None, number: int, life: int, serial: int) -> str:
    """`<model>-<version>-<number>-<suffix>`, `standby-<number>-<suffix>` for no model (None):
    fit for a file name.

    The suffix stands for the generation of the model's files, the life of the autoscaler
    and the serial number of the start, so that no two starts share a name.
    """
    if key is None:
        suffix = blake2s(f"{life}/{serial}".encode(), digest_size=4).hexdigest()
        return f"{STANDBY_PREFIX}{number}-{suffix}"
    model = _UNSAFE.sub("_", key.name)[:_MODEL_CHARACTERS]
    start = f"{key.name}/{key.version}/{key.generation}/{life}/{serial}"
    suffix = blake2s(start.encode(), digest_size=4).hexdigest()
    return f"{model}-{key.version}-{number}-{suffix}"


def number_of(replica_id: str) -> int:
    """The number in a name that `replica_id` made; 0 for any other name."""
    parts = replica_id.rsplit("-", 2)
    if len(parts) == 3 and parts[1].isdecimal():
        return int(parts[1])
    return 0


def lowest_free(taken: Collection[int]) -> int:
    """The lowest number from 0 that is not taken."""
    number = 0
    while number in taken:
        number += 1
    return number
