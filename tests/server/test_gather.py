"""A batch's tensors on their way out, however their requests came."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.pieces import parts_of
from tests.server.samples import add_input, make_spec
from tideserve.server.arena import Arena
from tideserve.server.exchanges import LeaseHead
from tideserve.server.gather import encode_lease
from tideserve.server.infer_inputs import InferInputs, fill
from tideserve.server.model_spec import TensorSpec
from tideserve.server.payload import read_inputs
from tideserve.server.wire import Buffer
from tideserve.v1.arena import MIN_BYTES
from tideserve.v1.inference_pb2 import ModelInferRequest
from tideserve.v1.replica_pb2 import ExchangeResponse, Lease

ROW = MIN_BYTES // 4
SPEC = make_spec(
    [TensorSpec("IN", "FP32", (ROW,)), TensorSpec("S", "BYTES", (1,))],
    [TensorSpec("OUT", "FP32", (ROW,))],
)
ARENA_BYTES = 1 << 20


def request_of(rows: int, seed: int) -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    row = bytes((seed + at) % 251 for at in range(4 * ROW))
    add_input(request, "IN", "FP32", [rows, ROW], row * rows)
    word = bytes((seed,)) * 9
    add_input(request, "S", "BYTES", [rows, 1], (len(word).to_bytes(4, "little") + word) * rows)
    return request


def contents_of(lease: Lease, arena: Arena | None) -> list[bytes]:
    return [
        bytes(arena._memory[tensor.arena_offset : tensor.arena_offset + tensor.arena_bytes])
        if arena is not None and tensor.arena_bytes
        else tensor.data
        for tensor in lease.inputs
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 250), st.lists(st.integers(0, 10**6))),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_r4_tensors_in_parts_are_joined_as_those_in_one_piece(
    callers: list[tuple[int, int, list[int]]], in_arena: bool
) -> None:
    whole: list[InferInputs] = []
    in_parts: list[InferInputs] = []
    for rows, seed, cuts in callers:
        request = request_of(rows, seed)
        inputs = read_inputs(request, SPEC)
        again = fill(inputs.plan, [parts_of(raw, cuts) for raw in request.raw_input_contents])
        assert again is not None
        assert again.payload_bytes == inputs.payload_bytes
        whole.append(inputs)
        in_parts.append(again)
    expected: list[list[Buffer]] = [[one.data[at] for one in whole] for at in range(2)]  # type: ignore[misc]
    arena = Arena(ARENA_BYTES) if in_arena else None
    rows = sum(rows for rows, _, _ in callers)
    for lease_id, requests in enumerate((whole, in_parts)):
        head = LeaseHead(lease_id=lease_id, rows=rows)
        encoded = encode_lease(1, [], head, requests, SPEC, arena)
        lease = ExchangeResponse.FromString(encoded.message).lease
        assert contents_of(lease, arena) == [b"".join(pieces) for pieces in expected]
        assert any(tensor.arena_bytes for tensor in lease.inputs) is in_arena
    if arena is not None:
        arena.close()
