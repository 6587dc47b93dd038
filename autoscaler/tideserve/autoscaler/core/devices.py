"""Which device the next replica gets."""

from collections.abc import Iterable, Sequence


def pick_device(devices: Sequence[str], in_use: Iterable[str]) -> str:
    """The device with the fewest replicas, the first of those: round-robin from none."""
    used = list(in_use)
    return min(devices, key=used.count)
