"""Where a request's tensors lie in shared memory: the three parameters of Triton's extension.

Inputs and requested outputs carry them alike
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md).
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final, NamedTuple

from tideserve.server.errors import InvalidRequestError
from tideserve.server.parameters import whole_number
from tideserve.v1.inference_pb2 import InferParameter

REGION: Final = "shared_memory_region"
BYTE_SIZE: Final = "shared_memory_byte_size"
OFFSET: Final = "shared_memory_offset"


class Place(NamedTuple):
    """A stretch of a region that a client registered under that name."""

    region: str
    offset: int
    byte_size: int


class Places(NamedTuple):
    """Of a request: its inputs' in the request's order, its outputs' as `InferPlan.outputs`.
    None: that tensor travels in the message."""

    inputs: tuple[Place | None, ...]
    outputs: tuple[Place | None, ...]

    def in_message(self) -> int:
        """How many inputs do."""
        return sum(place is None for place in self.inputs)


def read_place(parameters: Mapping[str, InferParameter], where: str) -> Place | None:
    """None without these parameters; `InvalidRequestError` for some of them only, or wrong ones.
    `where` names the tensor in a sentence."""
    if not parameters:
        return None
    given = [name for name in (REGION, BYTE_SIZE, OFFSET) if name in parameters]
    if not given:
        return None
    if REGION not in given or BYTE_SIZE not in given:
        raise InvalidRequestError(
            f"{where}: expected {REGION} and {BYTE_SIZE} together, got {', '.join(given)}"
        )
    region = parameters[REGION]
    if region.WhichOneof("parameter_choice") != "string_param" or not region.string_param:
        raise InvalidRequestError(
            f"{where}: expected the name of a registered region in {REGION}, in string_param, "
            f"got '{region.string_param}' in {region.WhichOneof('parameter_choice') or 'none'}"
        )
    offset = whole_number(parameters[OFFSET], OFFSET) if OFFSET in given else 0
    return Place(region.string_param, offset, whole_number(parameters[BYTE_SIZE], BYTE_SIZE))


def write_place(parameters: MutableMapping[str, InferParameter], place: Place) -> None:
    """Says of an answer's output where it lies."""
    parameters[REGION].string_param = place.region
    parameters[OFFSET].int64_param = place.offset
    parameters[BYTE_SIZE].int64_param = place.byte_size


def given_bytes(places: Sequence[Place | None]) -> int:
    """Of the tensors that lie in regions."""
    return sum(place.byte_size for place in places if place is not None)
