"""Requests read by their plan: what two requests of a kind have in common is checked once.

A client's requests to a model differ in their id and their contents only. Their bytes are
therefore cut into a head (everything else, which is looked up) and the raw contents, which
are taken where they lie. A head that was never seen, or anything unusual, goes the long way
through protobuf and `payload.read_inputs`, which also words every error.

Requests without an id whose tensors have a fixed size differ in their contents alone, which
then lie at the same places: such a layout is recognized by comparing what is around them.

Requests with tensors in shared memory have heads, and plans, of their own; what lies there is read
for each of them.
"""

from typing import Final, NamedTuple

from tideserve.server.cuts import (
    COPY_BYTES,
    MAX_HEAD_BYTES,
    RAW_TAG,
    Cut,
    take_apart,
)
from tideserve.server.errors import InvalidRequestError, MessageTooLargeError, TideserveError
from tideserve.server.infer_inputs import InferInputs, InferPlan, fill, fill_shared
from tideserve.server.models import ModelEntry, ModelTable
from tideserve.server.parts import Parts
from tideserve.server.payload import read_inputs
from tideserve.server.service.messages import parse
from tideserve.server.shared_regions import RegionSlice, SharedRegions
from tideserve.server.wire import Buffer
from tideserve.v1.inference_pb2 import ModelInferRequest
from tideserve.v1.varint import varint

# Heads remembered: far more than the kinds of requests that clients send at a time.
MAX_PLANS: Final = 1024

# The tag and the length before a raw content, by its size.
_RAW_HEADS: Final = tuple(bytes([RAW_TAG]) + varint(size) for size in range(COPY_BYTES + 1))
_NO_TARGETS: Final[tuple[RegionSlice | None, ...]] = ()

# How a refusal is counted.
_REASONS: Final[dict[type[TideserveError], str]] = {
    InvalidRequestError: "invalid_request",
    MessageTooLargeError: "too_large",
}


class _Layout(NamedTuple):
    """Requests of one length and kind: `frames` are the bytes around the contents, with their
    places; `contents`, in the model's order, the places of these."""

    entry: ModelEntry
    plan: InferPlan
    prefix: bytes
    frames: tuple[tuple[int, int, bytes], ...]
    contents: tuple[tuple[int, int], ...]
    payload_bytes: int

    def fits(self, payload: bytes) -> bool:
        if not payload.startswith(self.prefix):
            return False
        # No generator: most requests have one content, and nothing between.
        for begin, end, frame in self.frames:  # noqa: SIM110
            if payload[begin:end] != frame:
                return False
        return True


class PlanCache:
    """Owns the plans by head, and the layouts by length, the last one of each. They hold as long
    as the models stay as they are. `regions` None: there is no shared memory."""

    def __init__(self, models: ModelTable, regions: SharedRegions | None = None) -> None:
        self._models = models
        self._regions = regions
        self._changes = -1
        self._plans: dict[bytes, tuple[ModelEntry, InferPlan]] = {}
        self._shared_plans: dict[bytes, tuple[ModelEntry, InferPlan]] = {}
        self._layouts: dict[int, _Layout] = {}

    @property
    def layouts(self) -> int:
        """How many are known."""
        return len(self._layouts)

    def read(self, payload: bytes | Parts) -> tuple[ModelEntry, InferInputs, str]:
        """The model a request is for, what it brings, and its id. Raises what is wrong with
        it as `TideserveError`."""
        if self._changes != self._models.changes:
            self._changes = self._models.changes
            self._plans.clear()
            self._shared_plans.clear()
            self._layouts.clear()
        if isinstance(payload, Parts):
            cut = take_apart(payload)
            if cut is not None:
                return self._read_cut(cut, payload)
            payload = payload.to_bytes()
        layout = self._layouts.get(len(payload))
        if layout is not None and layout.fits(payload):
            data = tuple([payload[begin:end] for begin, end in layout.contents])
            # As InferInputs(...) does, in a fifth of its time.
            laid_out = tuple.__new__(
                InferInputs, (layout.plan, data, layout.payload_bytes, _NO_TARGETS, None)
            )
            return layout.entry, laid_out, ""
        cut = take_apart(payload)
        if cut is None:
            return self._read_slowly(payload)
        return self._read_cut(cut, payload)

    def _read_cut(self, cut: Cut, payload: bytes | Parts) -> tuple[ModelEntry, InferInputs, str]:
        """By the plan of its head, if there is one."""
        known = self._plans.get(cut.head)
        if known is not None:
            entry, plan = known
            inputs = fill(plan, cut.raw)
            if inputs is not None:
                if isinstance(payload, bytes):
                    self._lay_out(payload, cut, entry, inputs)
                return entry, inputs, cut.request_id
        elif (shared := self._shared_plans.get(cut.head)) is not None:
            entry, plan = shared
            inputs = self._fill_shared(plan, cut.raw)
            if inputs is not None:
                return entry, inputs, cut.request_id
        whole = payload.to_bytes() if isinstance(payload, Parts) else payload
        entry, inputs, request_id = self._read_slowly(whole)
        self._remember(cut, entry, inputs.plan)
        return entry, inputs, request_id

    def _remember(self, cut: Cut, entry: ModelEntry, plan: InferPlan) -> None:
        """A head whose request has its contents beside it: those in typed fields are in it."""
        places = plan.places
        plans = self._plans if places is None else self._shared_plans
        raw = len(plan.tensors) if places is None else places.in_message()
        if len(cut.head) > MAX_HEAD_BYTES or len(cut.raw) != raw:
            return
        if len(plans) >= MAX_PLANS:
            plans.clear()
        plans[cut.head] = (entry, plan)

    def _fill_shared(self, plan: InferPlan, raw: list[Buffer | Parts]) -> InferInputs | None:
        """None for what the long way is to word."""
        assert self._regions is not None
        try:
            return fill_shared(plan, raw, self._regions)
        except InvalidRequestError:
            return None

    def _lay_out(self, payload: bytes, cut: Cut, entry: ModelEntry, inputs: InferInputs) -> None:
        """Remembers where everything lies in a request of a known plan."""
        plan = inputs.plan
        sizes = [len(content) for content in cut.raw]
        fixed = all(tensor.data_bytes is not None for tensor in plan.tensors)
        if cut.request_id or not fixed or max(sizes, default=0) > COPY_BYTES:
            return
        places = []
        begin = len(cut.head)
        for size in sizes:
            begin += len(_RAW_HEADS[size])
            places.append((begin, begin + size))
            begin += size
        if begin != len(payload):  # a length that is written longer than it has to be
            return
        ends = [0, *(end for _, end in places)]
        frames = [(end, place[0]) for end, place in zip(ends, places, strict=False)]
        if len(self._layouts) >= MAX_PLANS:
            self._layouts.clear()
        self._layouts[len(payload)] = _Layout(
            entry,
            plan,
            payload[: frames[0][1]],
            tuple((at, end, payload[at:end]) for at, end in frames[1:]),
            tuple(places[at] for at in plan.raw_order),
            inputs.payload_bytes,
        )

    def _read_slowly(self, payload: bytes) -> tuple[ModelEntry, InferInputs, str]:
        message = parse(ModelInferRequest, payload)
        entry = self._models.bind(message.model_name, message.model_version)
        assert entry.spec is not None
        try:
            return entry, read_inputs(message, entry.spec, self._regions), message.id
        except TideserveError as error:
            entry.stats.arrivals += 1
            entry.stats.on_rejection(_REASONS.get(type(error), "unsupported"))
            raise
