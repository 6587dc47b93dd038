"""A validated request: the plan that it shares with all of its kind, and its data.

It owns what is known of a kind, and decides whether the contents of a request fit it. A kind's first
request is read and checked in `payload`; `plans` remembers its plan. Tensors stay opaque bytes:
`gather` joins them, `batch` cuts the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from tideserve.server.contents import count_bytes_elements
from tideserve.server.parts import Parts
from tideserve.server.placement import Places
from tideserve.server.shared_regions import RegionSlice, SharedRegions
from tideserve.server.wire import Buffer
from tideserve.v1.arena import MIN_BYTES

# A tensor's bytes, in one piece or several, or where they are to be read.
Content = Buffer | Parts | RegionSlice


class TensorPlan(NamedTuple):
    """What one input must be: `shape` with the batch dimension; `data_bytes` is None for
    BYTES, whose size the shape does not tell. `padded_shape`: in its batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data_bytes: int | None
    padded_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InferPlan:
    """All of a validated request but its data: the same for every request of its kind.

    `tensors` are in the model's order, `raw_order` says which of the request's inputs each is;
    `outputs` () means all. Requests with equal signatures may share a batch (R3). `length` of
    what is padded, None: nothing is; `row_cost`: its length in a batch, else 1. `padding_bytes`:
    what the batch has beside the data. `places`: of what lies in shared memory; None: nothing does.
    """

    tensors: tuple[TensorPlan, ...]
    raw_order: tuple[int, ...]
    rows: int
    signature: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    priority: int
    timeout_s: float | None
    length: int | None = None
    row_cost: int = 1
    padding_bytes: int = 0
    places: Places | None = None


class InferInputs(NamedTuple):
    """A validated request: its plan, and row-major little-endian bytes for each tensor. Large ones
    in shared memory are read when their batch leaves.
    `payload_bytes`: in a batch, with padding. `targets`: where the plan's outputs go, None for one
    that goes into the answer; () if all do. `spare`: where those without a place may go."""

    plan: InferPlan
    data: tuple[Content, ...]
    payload_bytes: int
    targets: tuple[RegionSlice | None, ...] = ()
    spare: RegionSlice | None = None


def fill(plan: InferPlan, raw: Sequence[Content]) -> InferInputs | None:
    """A request of a known plan with these raw contents; None if they do not fit it."""
    if len(raw) != len(plan.tensors):
        return None
    data: list[Content] = []
    payload_bytes = plan.padding_bytes
    for tensor, at in zip(plan.tensors, plan.raw_order, strict=True):
        content = raw[at]
        size = len(content)
        if isinstance(content, Parts) and (tensor.data_bytes is None or plan.length is not None):
            content = content.to_bytes()  # its elements are counted, or it is padded
        if tensor.data_bytes is None:
            assert isinstance(content, bytes | memoryview), "it is read to count its elements"
            elements = prod(tensor.shape)
            if count_bytes_elements(content, elements) != elements:
                return None
        elif size != tensor.data_bytes:
            return None
        payload_bytes += size
        data.append(content)
    return InferInputs(plan, tuple(data), payload_bytes)


def fill_shared(
    plan: InferPlan, raw: Sequence[Buffer | Parts], regions: SharedRegions
) -> InferInputs | None:
    """As `fill`, for a plan with places: looks anew at what lies in shared memory. Raises
    `InvalidRequestError` where that cannot be read."""
    assert plan.places is not None
    places = plan.places.inputs
    if len(raw) != plan.places.in_message():
        return None
    rest = iter(raw)
    fixed = [False] * len(places)
    for tensor, at in zip(plan.tensors, plan.raw_order, strict=True):
        fixed[at] = tensor.data_bytes is not None
    contents = [
        next(rest)
        if place is None
        else content_of(regions.slice(place, "an input"), is_late=is_fixed and plan.length is None)
        for place, is_fixed in zip(places, fixed, strict=True)
    ]
    inputs = fill(plan, contents)
    if inputs is None:
        return None
    targets, spare = targets_of(plan, regions)
    return inputs._replace(targets=targets, spare=spare)


def content_of(found: RegionSlice, *, is_late: bool) -> Content:
    """What lies there, now or (`is_late`: only its size is to be checked) when its batch leaves.
    Raises `InvalidRequestError`."""
    if not is_late or len(found) < MIN_BYTES:
        return found.read()
    found.check()
    return found


def targets_of(
    plan: InferPlan, regions: SharedRegions | None
) -> tuple[tuple[RegionSlice | None, ...], RegionSlice | None]:
    """Where its outputs go, and where those without a place of their own may. Raises
    `InvalidRequestError`."""
    assert plan.places is not None
    assert regions is not None
    _, outputs, spare = plan.places
    targets = (
        None if place is None else regions.slice(place, f"output '{name}'")
        for name, place in zip(plan.outputs, outputs, strict=True)
    )
    return (
        tuple(targets) if any(outputs) else (),
        None if spare is None else regions.slice(spare, "the outputs"),
    )
