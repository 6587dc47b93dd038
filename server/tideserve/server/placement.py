"""Where a request's tensors lie in shared memory: the three parameters of Triton's extension, and
three of our own.

Inputs and requested outputs carry them alike
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md).
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final, NamedTuple

from tideserve.server.errors import InvalidRequestError
from tideserve.server.parameters import whole_number
from tideserve.v1 import segments
from tideserve.v1.inference_pb2 import InferParameter


class PlaceNames(NamedTuple):
    """The parameters that say one place."""

    region: str
    byte_size: str
    offset: str


TENSOR: Final = PlaceNames(
    "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
)
OUTPUTS: Final = PlaceNames(
    segments.OUTPUTS_REGION, segments.OUTPUTS_BYTE_SIZE, segments.OUTPUTS_OFFSET
)


class Place(NamedTuple):
    """A stretch of a region that a client registered under that name."""

    region: str
    offset: int
    byte_size: int


class Places(NamedTuple):
    """Of a request: its inputs' in the request's order, its outputs' as `InferPlan.outputs`.
    None: that tensor travels in the message. `spare`: for outputs without a place of their own."""

    inputs: tuple[Place | None, ...]
    outputs: tuple[Place | None, ...]
    spare: Place | None = None

    def in_message(self) -> int:
        """How many inputs do."""
        return sum(place is None for place in self.inputs)


def read_place(
    parameters: Mapping[str, InferParameter], where: str, names: PlaceNames = TENSOR
) -> Place | None:
    """None without these parameters; `InvalidRequestError` for some of them only, or wrong ones.
    `where` names the tensor in a sentence."""
    if not parameters:
        return None
    given = [name for name in names if name in parameters]
    if not given:
        return None
    if names.region not in given or names.byte_size not in given:
        raise InvalidRequestError(
            f"{where}: expected {names.region} and {names.byte_size} together, "
            f"got {', '.join(given)}"
        )
    region = parameters[names.region]
    if region.WhichOneof("parameter_choice") != "string_param" or not region.string_param:
        raise InvalidRequestError(
            f"{where}: expected the name of a registered region in {names.region}, in "
            f"string_param, got '{region.string_param}' in "
            f"{region.WhichOneof('parameter_choice') or 'none'}"
        )
    offset = whole_number(parameters[names.offset], names.offset) if names.offset in given else 0
    byte_size = whole_number(parameters[names.byte_size], names.byte_size)
    return Place(region.string_param, offset, byte_size)


def write_place(parameters: MutableMapping[str, InferParameter], place: Place) -> None:
    """Says of an answer's output where it lies."""
    parameters[TENSOR.region].string_param = place.region
    parameters[TENSOR.offset].int64_param = place.offset
    parameters[TENSOR.byte_size].int64_param = place.byte_size


def given_bytes(places: Sequence[Place | None]) -> int:
    """Of the tensors that lie in regions."""
    return sum(place.byte_size for place in places if place is not None)
