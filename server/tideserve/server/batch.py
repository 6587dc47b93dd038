"""A batch's outputs, cut into its callers' answers.

Rows are the first dimension and tensors row-major, so an answer is a slice of the batch's bytes. How
callers become a batch: `gather.py`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Final

from tideserve.server.errors import InvalidRequestError
from tideserve.server.exchanges import TensorIn
from tideserve.server.infer_inputs import InferInputs, InferPlan
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, names_of
from tideserve.server.placement import write_place
from tideserve.server.shared_regions import RegionSlice, SpareRoom
from tideserve.server.wire import Buffer, header
from tideserve.v1.inference_pb2 import ModelInferResponse
from tideserve.v1.varint import varint

# Answers of a kind: of a model's outputs, by their shapes.
_CACHED_HEADS: Final = 1024
_RAW_TAG: Final = varint(ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2)

# Where an outcome's tensor lies in an arena: offset and bytes. Raises ValueError.
Reader = Callable[[int, int], memoryview]


class OutputTensor:
    """One output of a batch, cut by rows without copying."""

    __slots__ = ("_batched", "_data", "_offsets", "_row_bytes", "datatype", "name", "shape")

    def __init__(
        self, tensor: TensorIn, spec: ModelSpec, rows: int, read: Reader | None = None
    ) -> None:
        """Raises `ValueError` when rows or bytes do not add up (a replica's mistake)."""
        self.name = tensor.name
        self.datatype = tensor.datatype
        self.shape = tensor.shape
        self._data = _data(tensor, read)
        self._row_bytes = 0
        self._offsets: list[int] | None = None
        self._batched = spec.max_batch_size > 0
        self._check(spec)
        if not self._batched:
            return
        if not self.shape or self.shape[0] != rows:
            raise ValueError(
                f"output '{self.name}': expected {rows} rows, got shape {list(self.shape)}"
            )
        element_bytes = DATATYPE_BYTES[self.datatype]
        if element_bytes:
            self._row_bytes = element_bytes * prod(self.shape[1:])
            expected_bytes = self._row_bytes * rows
        else:
            self._offsets = [0, *accumulate(tensor.row_bytes)]
            expected_bytes = self._offsets[-1]
            if len(self._offsets) != rows + 1:
                raise ValueError(
                    f"output '{self.name}': expected row_bytes of {rows} rows, "
                    f"got {len(self._offsets) - 1}"
                )
        if expected_bytes != len(self._data):
            raise ValueError(
                f"output '{self.name}': expected {expected_bytes} bytes for {self.datatype} "
                f"{list(self.shape)}, got {len(self._data)}"
            )

    def _check(self, spec: ModelSpec) -> None:
        """That there is such an output, of this datatype and of a shape at all."""
        for output in spec.outputs:
            if output.name == self.name:
                break
        else:
            raise ValueError(f"expected output {names_of(spec.outputs)}, got '{self.name}'")
        if self.datatype != output.datatype:
            raise ValueError(
                f"output '{self.name}': expected datatype {output.datatype}, got '{self.datatype}'"
            )
        if min(self.shape, default=0) < 0:
            raise ValueError(
                f"output '{self.name}': expected a shape of sizes of 0 or more, "
                f"got {list(self.shape)}"
            )

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def rows(self, first_row: int, rows: int) -> Buffer:
        """The bytes of some rows (R4); all there are where the model has no batch dimension."""
        if not self._batched:
            return self._data
        if self._offsets is not None:
            return self._data[self._offsets[first_row] : self._offsets[first_row + rows]]
        return self._data[first_row * self._row_bytes : (first_row + rows) * self._row_bytes]

    def bytes_of(self, rows: int) -> int | None:
        """How many so many rows have. None: that differs."""
        if not self._batched:
            return len(self._data)
        return None if self._offsets is not None else rows * self._row_bytes


def _data(tensor: TensorIn, read: Reader | None) -> Buffer:
    if not tensor.arena_bytes:
        return tensor.data
    if read is None:
        raise ValueError(f"output '{tensor.name}': expected its data, got a place in an arena")
    return read(tensor.arena_offset, tensor.arena_bytes)


class _Frame:
    """What answers of a kind have in common: all but id and contents, and of each output what
    stands before its contents (None: its size differs), with the shape before it is cut."""

    __slots__ = ("head", "outputs")

    def __init__(
        self, head: bytes, outputs: list[tuple[bytes | None, OutputTensor, tuple[int, ...] | None]]
    ) -> None:
        self.head = head
        self.outputs = outputs


class BatchOutputs:
    """A batch's outputs, from which each caller's answer is put together."""

    def __init__(
        self,
        tensors: Sequence[TensorIn],
        spec: ModelSpec,
        rows: int,
        read: Reader | None = None,
    ) -> None:
        """Raises `ValueError` as `OutputTensor`. What lies in an arena stays there, and is read
        until the Exchange that brought it is answered."""
        self._spec = spec
        self._tensors = {tensor.name: OutputTensor(tensor, spec, rows, read) for tensor in tensors}
        self._order = tuple(t.name for t in spec.outputs if t.name in self._tensors)
        self._frames: dict[tuple[int, int | None, tuple[str, ...], bool], _Frame] = {}

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.size_bytes for tensor in self._tensors.values())

    def encode(
        self, plan: InferPlan, request_id: str, first_row: int, *, final_flag: bool
    ) -> bytes:
        """As `pieces`, joined."""
        return b"".join(self.pieces(plan, request_id, first_row, final_flag=final_flag))

    def pieces(
        self, plan: InferPlan, request_id: str, first_row: int, *, final_flag: bool
    ) -> list[Buffer]:
        """One caller's ModelInferResponse: its rows, of the outputs it asked for. They stay where
        they are.

        `final_flag` adds Triton's `triton_final_response`, which stream clients look for.
        """
        key = (plan.rows, plan.length, plan.outputs, final_flag)
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = self._frame(plan, final_flag=final_flag)
        pieces: list[Buffer] = [frame.head]
        if request_id:
            text = request_id.encode()
            pieces += (header(ModelInferResponse.ID_FIELD_NUMBER, len(text)), text)
        rows = plan.rows
        for before, tensor, cut_shape in frame.outputs:
            data: Buffer = tensor.rows(first_row, rows)
            if cut_shape is not None:
                data = self._cut(data, cut_shape, tensor, plan)
            if before is not None:
                pieces += (before, data)
            else:
                pieces += (_RAW_TAG + varint(len(data)), data)
        return pieces

    def encode_shared(
        self, inputs: InferInputs, request_id: str, first_row: int, *, final_flag: bool
    ) -> bytes:
        """As `encode`, for a caller some of whose outputs go into its regions: their raw contents
        are empty, as Triton's are, so that those of the others keep their places.

        Raises `InvalidRequestError`, with nothing written, where a place is too small; and where
        a region cannot be written to.
        """
        plan = inputs.plan
        names = plan.outputs or self._order
        response = ModelInferResponse.FromString(self._head(plan, names, final_flag=final_flag))
        response.id = request_id
        spare = None if inputs.spare is None else SpareRoom(inputs.spare)
        writes: list[tuple[RegionSlice, Buffer]] = []
        for at, (name, target) in enumerate(
            zip(names, inputs.targets or (None,) * len(names), strict=True)
        ):
            data = self._rows(name, plan, first_row)
            if target is None and spare is not None:
                target = spare.take(len(data))
            response.raw_output_contents.append(b"" if target is not None else bytes(data))
            if target is None:
                continue
            place = target.place
            if len(data) > place.byte_size:
                raise InvalidRequestError(
                    f"model '{self._spec.name}', output '{name}': expected a place of at least "
                    f"{len(data)} bytes in shared memory region '{place.region}' "
                    f"(shared_memory_byte_size), got {place.byte_size}"
                )
            writes.append((target, data))
            write_place(response.outputs[at].parameters, place._replace(byte_size=len(data)))
        for target, data in writes:
            target.write(data)
        return response.SerializeToString()

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` (all outputs if empty) that the replica did not send."""
        wanted = names or [tensor.name for tensor in self._spec.outputs]
        return [name for name in wanted if name not in self._tensors]

    def _rows(self, name: str, plan: InferPlan, first_row: int) -> Buffer:
        tensor, cut_shape = self._tensors[name], self._cut_shape(name, plan)
        data = tensor.rows(first_row, plan.rows)
        return data if cut_shape is None else self._cut(data, cut_shape, tensor, plan)

    def _frame(self, plan: InferPlan, *, final_flag: bool) -> "_Frame":
        names = plan.outputs or self._order
        outputs: list[tuple[bytes | None, OutputTensor, tuple[int, ...] | None]] = []
        for name in names:
            tensor, cut_shape = self._tensors[name], self._cut_shape(name, plan)
            size = tensor.bytes_of(plan.rows) if cut_shape is None else None
            outputs.append((None if size is None else _RAW_TAG + varint(size), tensor, cut_shape))
        return _Frame(self._head(plan, names, final_flag=final_flag), outputs)

    def _cut(
        self, data: Buffer, shape: tuple[int, ...], tensor: OutputTensor, plan: InferPlan
    ) -> Buffer:
        padding = self._spec.padding
        assert padding is not None, "what is cut was padded"
        return padding.cut(data, shape, plan.length or 0, DATATYPE_BYTES[tensor.datatype])

    def _cut_shape(self, name: str, plan: InferPlan) -> tuple[int, ...] | None:
        """The shape of the caller's rows before they are cut to its length. None: they are not,
        for they did not come back as long as the bucket, or the caller's are."""
        padding, shape = self._spec.padding, self._tensors[name].shape
        if padding is None or name not in padding.outputs or len(shape) <= padding.axis:
            return None
        is_longer = plan.length is not None and plan.length < plan.row_cost
        if not is_longer or shape[padding.axis] != plan.row_cost:
            return None
        return (plan.rows, *shape[1:])

    def _head(self, plan: InferPlan, names: tuple[str, ...], *, final_flag: bool) -> bytes:
        """All but the id and the contents: the same for callers of as many rows as long."""
        padding = self._spec.padding
        outputs: list[tuple[str, str, tuple[int, ...]]] = []
        for name in names:
            tensor = self._tensors[name]
            shape = (plan.rows, *tensor.shape[1:]) if self._spec.max_batch_size else tensor.shape
            if padding is not None and self._cut_shape(name, plan) is not None:
                shape = padding.with_length(shape, plan.length or 0)
            outputs.append((name, tensor.datatype, shape))
        return _answer_head(self._spec.name, self._spec.version, tuple(outputs), final_flag)


@lru_cache(_CACHED_HEADS)
def _answer_head(
    model_name: str,
    model_version: int,
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...],
    final_flag: bool,
) -> bytes:
    response = ModelInferResponse(model_name=model_name, model_version=str(model_version))
    for name, datatype, shape in outputs:
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    if final_flag:
        response.parameters["triton_final_response"].bool_param = True
    return response.SerializeToString()
