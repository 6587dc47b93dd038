"""The short way and the long way of reading a request say the same of every request."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.pieces import parts_of
from tests.server.samples import add_input, make_config, make_found, make_request, serve
from tideserve.server.cuts import MAX_HEAD_BYTES, PARTS_FIELDS, take_apart
from tideserve.server.errors import InvalidRequestError, NotFoundError, TideserveError
from tideserve.server.infer_inputs import Content
from tideserve.server.models import ModelEntry, ModelTable
from tideserve.server.parts import Parts
from tideserve.server.payload import read_inputs
from tideserve.server.plans import MAX_PLANS, PlanCache
from tideserve.server.service.messages import parse
from tideserve.server.shared_regions import RegionSlice, SharedRegions
from tideserve.server.wire import header
from tideserve.v1.inference_pb2 import ModelInferRequest
from tideserve.v1.model_config_pb2 import DataType
from tideserve.v1.varint import varint

Reading = tuple[object, ...]


def two_input_table() -> ModelTable:
    config = make_config()
    config.input.add(name="S", data_type=DataType.TYPE_STRING, dims=[-1], optional=True)
    models = ModelTable()
    serve(models, make_found(config=config))
    return models


def by_plan(cache: PlanCache, payload: bytes | Parts) -> Reading:
    """What the cache makes of a request: its content, or the error."""
    try:
        entry, inputs, request_id = cache.read(payload)
    except TideserveError as error:
        return type(error), str(error)
    return entry.key, inputs.plan, tuple(map(_bytes, inputs.data)), request_id


def _bytes(content: Content) -> bytes:
    assert not isinstance(content, RegionSlice)
    return content.to_bytes() if isinstance(content, Parts) else bytes(content)


def by_protobuf(
    models: ModelTable, payload: bytes, regions: SharedRegions | None = None
) -> Reading:
    """What protobuf's own parse and the checks make of it."""
    try:
        message = parse(ModelInferRequest, payload)
        entry = models.bind(message.model_name, message.model_version)
        assert entry.spec is not None
        inputs = read_inputs(message, entry.spec, regions)
    except TideserveError as error:
        return type(error), str(error)
    return entry.key, inputs.plan, inputs.data, message.id


@st.composite
def requests(draw: st.DrawFn) -> ModelInferRequest:
    """Good and slightly wrong requests, with small and large fields."""
    request = ModelInferRequest(
        model_name=draw(st.sampled_from(["m", "m", "m", "", "other", "n" * 200])),
        model_version=draw(st.sampled_from(["", "", "1", "2"])),
        id=draw(st.sampled_from(["", "7", "é" * 100, "i" * 20_000])),
    )
    rows = draw(st.integers(0, 9))
    for name in draw(st.permutations(["IN", "S"]))[: draw(st.integers(1, 2))]:
        if name == "IN":
            tensor = add_input(
                request,
                "IN",
                "FP32",
                [rows, 2],
                bytes(8 * rows + draw(st.sampled_from([0, 0, 0, 1]))),
            )
        else:
            words = [
                b"w" * draw(st.sampled_from([0, 1, 127, 128, 5000, 20_000])) for _ in range(rows)
            ]
            tensor = add_input(
                request,
                "S",
                "BYTES",
                [rows, 1],
                b"".join(len(w).to_bytes(4, "little") + w for w in words),
            )
        if draw(st.integers(0, 9)) == 0:
            tensor.parameters["note"].string_param = "p" * draw(st.sampled_from([1, 200]))
    if draw(st.booleans()):
        request.outputs.add(name=draw(st.sampled_from(["OUT", "OUT", "OUT2"])))
    if draw(st.booleans()):
        request.parameters["timeout"].int64_param = draw(st.integers(-1, 2**40))
    if draw(st.integers(0, 4)) == 0:
        del request.raw_input_contents[-1:]
    return request


@settings(max_examples=200, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4))
def test_both_ways_give_the_same_for_any_request(sent: list[ModelInferRequest]) -> None:
    models = two_input_table()
    cache = PlanCache(models)

    for request in [*sent, *sent]:
        payload = request.SerializeToString()
        assert by_plan(cache, payload) == by_protobuf(models, payload)


def fields(request: ModelInferRequest) -> list[bytes]:
    """The top-level fields' bytes, in the order they were written."""
    pieces = []
    for descriptor, value in request.ListFields():
        single = ModelInferRequest()
        values = [value] if not descriptor.is_repeated else []
        if values:
            setattr(single, descriptor.name, value)
            pieces.append(single.SerializeToString())
        elif descriptor.name == "parameters":
            single.parameters.MergeFrom(request.parameters)
            pieces.append(single.SerializeToString())
        else:
            for each in value:
                single = ModelInferRequest()
                getattr(single, descriptor.name).append(each)
                pieces.append(single.SerializeToString())
    return pieces


@settings(max_examples=200, deadline=None)
@given(requests(), st.data())
def test_reordered_and_repeated_fields_mean_what_protobuf_says(
    request: ModelInferRequest, data: st.DataObject
) -> None:
    models = two_input_table()
    cache = PlanCache(models)
    by_plan(cache, request.SerializeToString())
    pieces = fields(request)
    assert ModelInferRequest.FromString(b"".join(pieces)) == request
    mixed = data.draw(st.permutations(pieces))
    mixed += data.draw(st.lists(st.sampled_from(pieces), max_size=2)) if pieces else []

    for payload in (b"".join(mixed), b"".join(pieces)):
        assert by_plan(cache, payload) == by_protobuf(models, payload)
        assert by_plan(cache, payload) == by_protobuf(models, payload)


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut"]),
        st.integers(0, 10**6),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutate(payload: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(payload)
    for what, where, value in changes:
        at = where % (len(out) + 1)
        match what:
            case "set":
                out[at : at + 1] = bytes((value,))
            case "insert":
                out.insert(at, value)
            case "delete":
                del out[at : at + 1]
            case _:
                del out[at:]
    return bytes(out)


@settings(max_examples=400, deadline=None)
@given(requests(), MUTATIONS)
def test_damaged_bytes_never_crash_and_mean_what_protobuf_says(
    request: ModelInferRequest, changes: list[tuple[str, int, int]]
) -> None:
    models = two_input_table()
    cache = PlanCache(models)
    payload = request.SerializeToString()
    by_plan(cache, payload)
    damaged = mutate(payload, changes)

    assert by_plan(cache, damaged) == by_protobuf(models, damaged)
    assert by_plan(cache, damaged) == by_protobuf(models, damaged)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x3a")
@example(b"\x3a\x80")
@example(b"\x3a\x05abc")
@example(b"\x1a\x01\xff")
@example(b"\x3a" + b"\x80" * 9 + b"\x01")
def test_garbage_is_cut_as_protobuf_cuts_it_or_not_at_all(payload: bytes) -> None:
    cut = take_apart(payload)
    if cut is None:
        return
    try:
        message = ModelInferRequest.FromString(payload)
    except DecodeError:
        # Never looked up: only a head that protobuf has read before is.
        return
    head = ModelInferRequest.FromString(cut.head)
    assert [_bytes(raw) for raw in cut.raw] == list(message.raw_input_contents)
    assert cut.request_id == message.id
    message.ClearField("raw_input_contents")
    message.ClearField("id")
    assert head == message


@pytest.mark.parametrize("length_bytes", range(1, 12))
@pytest.mark.parametrize("tag", [0x3A, 0x1A])
def test_a_length_written_with_needless_bytes_means_what_protobuf_says(
    length_bytes: int, tag: int
) -> None:
    models = two_input_table()
    cache = PlanCache(models)
    good = ModelInferRequest.FromString(make_request(1))
    good.ClearField("raw_input_contents")
    content = bytes(8)
    by_plan(cache, good.SerializeToString() + header(7, 8) + content)
    length = bytes([0x88] + [0x80] * (length_bytes - 2) + [0]) if length_bytes > 1 else b"\x08"

    piece = bytes([tag]) + length + content
    payload = good.SerializeToString() + (piece if tag == 0x3A else piece + header(7, 8) + content)

    assert by_plan(cache, payload) == by_protobuf(models, payload)


@pytest.mark.timeout(20)
def test_an_endless_length_is_refused_at_once() -> None:
    cache = PlanCache(two_input_table())

    for payload in (b"\x3a" + b"\xff" * 4_000_000, b"\x0a" + b"\x80" * 4_000_000):
        with pytest.raises(InvalidRequestError):
            cache.read(payload)


def test_a_large_content_is_not_copied_and_a_small_one_is_bytes() -> None:
    request = ModelInferRequest(raw_input_contents=[bytes(10), bytes(1_000_000)])
    payload = request.SerializeToString()
    cut = take_apart(payload)

    assert cut is not None
    small, large = cut.raw
    assert isinstance(small, bytes)
    assert isinstance(large, memoryview)
    assert large.obj is payload


def test_the_id_is_no_part_of_the_head() -> None:
    cuts = [take_apart(make_request(1, request_id=name)) for name in ("", "a", "b" * 300)]

    assert len({cut.head for cut in cuts if cut is not None}) == 1
    assert [cut.request_id for cut in cuts if cut is not None] == ["", "a", "b" * 300]


# --- the cache ---------------------------------------------------------------------------------


class CountingModels(ModelTable):
    """Counts how often a request went the long way."""

    def __init__(self) -> None:
        super().__init__()
        self.binds = 0

    def bind(self, name: str, version: str) -> ModelEntry:
        self.binds += 1
        return super().bind(name, version)


def counting() -> CountingModels:
    models = CountingModels()
    serve(models, make_found())
    return models


def test_a_kind_of_request_is_checked_once() -> None:
    models = counting()
    cache = PlanCache(models)

    for at in range(5):
        _, inputs, request_id = cache.read(
            make_request(2, request_id=str(at), raw=bytes([at]) * 16)
        )
        assert (inputs.data, request_id) == ((bytes([at]) * 16,), str(at))
    assert models.binds == 1


def test_plans_are_dropped_when_the_models_change() -> None:
    models = counting()
    cache = PlanCache(models)
    before, _, _ = cache.read(make_request())
    serve(models, make_found(versions=[(2, "b")]))

    after, _, _ = cache.read(make_request())

    assert (before.key.version, after.key.version) == (1, 2)
    models.unload("m")
    with pytest.raises(NotFoundError):
        cache.read(make_request())


@pytest.mark.parametrize("size", [0, 7, 15, 17, 2000])
def test_a_known_kind_with_a_wrong_size_gets_the_proper_error(size: int) -> None:
    cache = PlanCache(counting())
    cache.read(make_request(2))

    with pytest.raises(
        InvalidRequestError, match=rf"'IN': expected 16 bytes for FP32 \[2, 2\], got {size}$"
    ):
        cache.read(make_request(2, raw=bytes(size)))
    assert cache.read(make_request(2))[1].plan.rows == 2


def test_a_known_kind_with_another_number_of_contents_gets_the_proper_error() -> None:
    cache = PlanCache(counting())
    cache.read(make_request(2))

    with pytest.raises(InvalidRequestError, match="for all 1 inputs or for none, got 2"):
        cache.read(make_request(2) + header(7, 1) + b"x")


def test_a_refused_request_is_counted_and_not_remembered() -> None:
    models = counting()
    cache = PlanCache(models)
    (entry,) = models.entries.values()
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            cache.read(make_request(9))

    assert entry.stats.arrivals == 2
    assert entry.stats.rejected == {"invalid_request": 2}
    assert models.binds == 2


def test_the_cache_is_bounded() -> None:
    models = counting()
    cache = PlanCache(models)
    for at in range(2 * MAX_PLANS + 10):
        request = ModelInferRequest.FromString(make_request())
        request.parameters["note"].int64_param = at
        cache.read(request.SerializeToString())

    assert len(cache._plans) <= MAX_PLANS


def test_a_long_head_is_read_and_not_remembered() -> None:
    models = counting()
    cache = PlanCache(models)
    request = ModelInferRequest.FromString(make_request())
    request.parameters["note"].string_param = "n" * MAX_HEAD_BYTES
    for _ in range(3):
        assert cache.read(request.SerializeToString())[1].plan.rows == 1

    assert models.binds == 3
    assert not cache._plans


def test_varints_of_lengths_are_protobufs() -> None:
    for size in (0, 127, 128, 16383, 16384, 70_000):
        cut = take_apart(b"\x3a" + varint(size) + bytes(size))
        assert cut is not None
        assert [_bytes(raw) for raw in cut.raw] == [bytes(size)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "7"]), st.binary(min_size=8, max_size=8), st.booleans()),
        min_size=4,
        max_size=12,
    )
)
def test_requests_that_differ_in_their_contents_only_are_told_apart_by_nothing_else(
    sent: list[tuple[str, bytes, bool]],
) -> None:
    """Two inputs of as many bytes, in either order: of one length, and not of one layout."""
    config = make_config()
    config.input.add(name="B", data_type=DataType.TYPE_FP32, dims=[2], optional=True)
    models = ModelTable()
    serve(models, make_found(config=config))
    cache = PlanCache(models)
    for request_id, raw, first in sent:
        request = ModelInferRequest(model_name="m", id=request_id)
        for name in ("IN", "B") if first else ("B", "IN"):
            add_input(request, name, "FP32", [1, 2], raw if name == "IN" else b"\0" * 8)
        payload = request.SerializeToString()
        assert by_plan(cache, payload) == by_protobuf(models, payload)
        assert by_plan(cache, payload) == by_protobuf(models, payload)
    assert cache.layouts <= 2


@pytest.mark.parametrize("at", range(0, 60, 3))
def test_a_flipped_byte_of_a_known_layout_means_what_protobuf_says(at: int) -> None:
    models = two_input_table()
    cache = PlanCache(models)
    payload = make_request(2)
    for _ in range(3):
        cache.read(payload)
    assert cache.layouts == 1
    broken = bytearray(payload)
    broken[at % len(payload)] ^= 1
    assert by_plan(cache, bytes(broken)) == by_protobuf(models, bytes(broken))


# --- shared memory -----------------------------------------------------------------------------

SEGMENT_BYTES = 64
WORDS = (b"\1\0\0\0a", b"\0\0\0\0")


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> SharedRegions:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "segment").write_bytes(b"".join(WORDS) + bytes(range(SEGMENT_BYTES - 9)))
    regions = SharedRegions(SEGMENT_BYTES, folder)
    regions.register("r", "/segment", 0, SEGMENT_BYTES)
    return regions


@st.composite
def shared_requests(draw: st.DrawFn) -> ModelInferRequest:
    """Some of whose tensors are in the region, or in none."""
    request = draw(requests())
    raw = list(request.raw_input_contents)
    del request.raw_input_contents[:]
    sizes = [0, 5, 8, 9, 16, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2**63]
    tensors: list[Any] = [*request.inputs, *request.outputs]
    for at, tensor in enumerate(tensors):
        content = raw[at] if at < len(raw) else b""
        if draw(st.booleans()):
            if at < len(raw):
                request.raw_input_contents.append(content)
            continue
        parameters = tensor.parameters
        parameters["shared_memory_region"].string_param = draw(st.sampled_from(["r", "r", "s"]))
        size = draw(st.one_of(st.just(len(content)), st.sampled_from(sizes)))
        parameters["shared_memory_byte_size"].uint64_param = size
        if draw(st.booleans()):
            parameters["shared_memory_offset"].uint64_param = draw(st.sampled_from(sizes))
    return request


@settings(max_examples=300, deadline=None)
@given(shared_requests(), MUTATIONS)
def test_requests_with_places_mean_the_same_however_often_they_come(
    regions: SharedRegions, request: ModelInferRequest, changes: list[tuple[str, int, int]]
) -> None:
    models = two_input_table()
    cache = PlanCache(models, regions)
    payload = request.SerializeToString()
    damaged = mutate(payload, changes)
    for each in (payload, payload, damaged, damaged, payload):
        assert by_plan(cache, each) == by_protobuf(models, each, regions)


def test_a_request_with_places_is_checked_once_and_its_plans_are_bounded(
    regions: SharedRegions,
) -> None:
    models = counting()
    cache = PlanCache(models, regions)
    for at in range(MAX_PLANS + 10):
        request = ModelInferRequest(model_name="m", id=str(at))
        tensor = request.inputs.add(name="IN", datatype="FP32", shape=[1, 2])
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 8
        for _ in range(3):
            assert cache.read(request.SerializeToString())[1].plan.rows == 1
        if at == 0:
            assert models.binds == 1
        request.parameters["note"].int64_param = at
        cache.read(request.SerializeToString())

    assert len(cache._shared_plans) <= MAX_PLANS
    assert not cache._plans


# --- messages in parts -------------------------------------------------------------------------

CUTS = st.lists(st.integers(0, 10**6), max_size=12)


@settings(max_examples=300, deadline=None)
@given(requests(), st.one_of(st.just([]), MUTATIONS), CUTS, st.booleans())
def test_any_parts_of_any_request_mean_what_the_whole_means(
    request: ModelInferRequest, changes: list[tuple[str, int, int]], cuts: list[int], views: bool
) -> None:
    """Good ones, slightly wrong ones and damaged ones: the same bytes, or the same words."""
    models = two_input_table()
    cache = PlanCache(models)
    good = request.SerializeToString()
    by_plan(cache, good)
    payload = mutate(good, changes) or b"\0"
    parts = parts_of(payload, cuts, views=views)

    assert by_plan(cache, parts) == by_protobuf(models, payload)
    assert by_plan(cache, parts) == by_protobuf(models, payload)  # its head is known now


@settings(max_examples=100, deadline=None)
@given(requests(), st.data(), CUTS)
def test_parts_of_reordered_fields_mean_what_protobuf_says(
    request: ModelInferRequest, data: st.DataObject, cuts: list[int]
) -> None:
    models = two_input_table()
    cache = PlanCache(models)
    by_plan(cache, request.SerializeToString())
    payload = b"".join(data.draw(st.permutations(fields(request)))) or b"\0"

    assert by_plan(cache, parts_of(payload, cuts)) == by_protobuf(models, payload)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=300), CUTS)
@example(b"\x3a", [])
@example(b"\x3a\x05abc", [2])
@example(b"\x3a" + b"\x80" * 9 + b"\x01", [3])
@example(b"\x3a\x00\x3a\x80\x80\x80\x80\x00", [1])
def test_parts_of_garbage_are_cut_as_the_whole_is_or_not_at_all(
    payload: bytes, cuts: list[int]
) -> None:
    whole, cut = take_apart(payload), take_apart(parts_of(payload, cuts))
    if cut is None:
        return
    assert whole is not None
    assert (cut.head, cut.request_id) == (whole.head, whole.request_id)
    assert [_bytes(raw) for raw in cut.raw] == [_bytes(raw) for raw in whole.raw]


def test_large_contents_stay_in_their_parts() -> None:
    """Of a request with a large and a small one, some of which begin within a part."""
    contents = [bytes(range(256)) * 400, bytes(10), b"\7" * 50_000]
    payload = ModelInferRequest(model_name="m", raw_input_contents=contents).SerializeToString()
    parts = parts_of(payload, list(range(0, len(payload), 16_384)))
    cut = take_apart(parts)

    assert cut is not None
    assert [_bytes(raw) for raw in cut.raw] == contents
    first, small, last = cut.raw
    assert isinstance(first, Parts)
    assert isinstance(small, bytes)
    assert isinstance(last, Parts)
    assert all(isinstance(piece, memoryview) for piece in first.pieces + last.pieces)


def test_a_known_head_in_parts_is_looked_up_and_remembers_no_layout() -> None:
    models = counting()
    cache = PlanCache(models)
    payload = make_request()
    for _ in range(3):
        assert cache.read(parts_of(payload, [len(payload) - 3]))[1].plan.rows == 1

    assert models.binds == 1
    assert cache.layouts == 0


@pytest.mark.timeout(20)
def test_many_contents_in_many_parts_take_the_time_of_their_bytes() -> None:
    """To look for each from the beginning on took as long as both numbers multiplied."""
    request = ModelInferRequest(raw_input_contents=[bytes(5_000)] * 4_000)
    payload = request.SerializeToString()
    cut = take_apart(parts_of(payload, list(range(0, len(payload), 4096))))

    assert cut is not None
    assert len(cut.raw) == 4_000


def test_many_small_contents_are_joined_first() -> None:
    """64 KiB of them took 25 times as long in their parts: 3.5 ms of the loop."""
    for count, in_parts in ((PARTS_FIELDS - 2, True), (PARTS_FIELDS + 1, False)):
        contents = [bytes((number % 251,)) for number in range(count)]
        payload = ModelInferRequest(model_name="m", raw_input_contents=contents).SerializeToString()
        assert (take_apart(parts_of(payload, [9])) is not None) is in_parts
