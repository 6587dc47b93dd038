"""Mutated messages: bytes that almost are what they should be."""

import random
from collections.abc import Callable
from typing import Any, Final

from tideserve.v1.inference_pb2 import ModelInferRequest

# The one that a test registers.
REGION: Final = "region"
MAX_FLIPS: Final = 8
# Numbers at which counting goes wrong.
EDGES: Final = (0, 1, -1, 2, 64, 65, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
TEXTS: Final = (
    "",
    "IN",
    "OUT",
    "FP32",
    "BYTES",
    "identity",
    "\0",
    "\u7a0b" * 9,
    "../../etc",
    "x" * 999,
)


class Mutator:
    """Owns its randomness: one seed, one sequence of mutants."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            self._flip_bits,
            self._truncate,
            self._insert,
            self._replace_varint,
            self._shuffle_fields,
            self._repeat_field,
            self._drop_field,
            self._change_message,
            self._change_message,
            self._change_places,
            self._random_bytes,
        )

    def mutate(self, payload: bytes) -> bytes:
        """A mutant of a ModelInferRequest: one to three mutations."""
        for _ in range(self._source.choice((1, 1, 1, 2, 3))):
            payload = self._source.choice(self._ways)(payload)
        return payload

    # --- of bytes -------------------------------------------------------------------------

    def _flip_bits(self, payload: bytes) -> bytes:
        changed = bytearray(payload)
        for _ in range(self._source.randint(1, MAX_FLIPS) if changed else 0):
            # Most bytes are contents: the head decides more.
            end = self._source.choice((len(changed), min(len(changed), 64)))
            changed[self._source.randrange(end)] ^= 1 << self._source.randrange(8)
        return bytes(changed)

    def _truncate(self, payload: bytes) -> bytes:
        return payload[: self._source.randint(0, len(payload))]

    def _insert(self, payload: bytes) -> bytes:
        at = self._source.randint(0, len(payload))
        return payload[:at] + self._source.randbytes(self._source.randint(1, 9)) + payload[at:]

    def _replace_varint(self, payload: bytes) -> bytes:
        """A random number where one may be: any place will do."""
        at = self._source.randint(0, len(payload))
        number = self._source.getrandbits(self._source.choice((7, 14, 32, 64, 70)))
        return payload[:at] + _varint(number) + payload[at + 1 :]

    def _random_bytes(self, payload: bytes) -> bytes:
        del payload
        return self._source.randbytes(self._source.randint(0, 99))

    # --- of fields ------------------------------------------------------------------------

    def _shuffle_fields(self, payload: bytes) -> bytes:
        fields = _fields(payload)
        self._source.shuffle(fields)
        return b"".join(fields)

    def _repeat_field(self, payload: bytes) -> bytes:
        fields = _fields(payload)
        if fields:
            again = self._source.choice(fields) * self._source.choice((1, 1, 2, 50))
            fields.insert(self._source.randint(0, len(fields)), again)
        return b"".join(fields)

    def _drop_field(self, payload: bytes) -> bytes:
        fields = _fields(payload)
        if fields:
            fields.pop(self._source.randrange(len(fields)))
        return b"".join(fields)

    # --- of meaning -----------------------------------------------------------------------

    def _change_message(self, payload: bytes) -> bytes:
        """A message that protobuf reads and that says something odd."""
        try:
            message = ModelInferRequest.FromString(payload)
        except Exception:  # noqa: BLE001 - a mutant already
            return payload
        if not message.inputs:
            return payload
        tensor = self._source.choice(message.inputs)
        match self._source.randrange(9):
            case 0:
                tensor.shape.append(self._source.choice(EDGES))
            case 1 if tensor.shape:
                at = self._source.randrange(len(tensor.shape))
                tensor.shape[at] = self._source.choice(EDGES)
            case 2:
                tensor.name = self._source.choice(TEXTS)
            case 3:
                tensor.datatype = self._source.choice(TEXTS)
            case 4:
                message.outputs.add(name=self._source.choice(TEXTS))
            case 5:
                tensor.contents.fp32_contents.append(self._source.random())
            case 6:
                name = self._source.choice(("timeout", "priority", "other"))
                message.parameters[name].int64_param = self._source.choice(EDGES)
            case 7:
                name = self._source.choice(("timeout", "priority", "sequence_id"))
                message.parameters[name].string_param = self._source.choice(
                    ("9" * self._source.randint(1, 6000), *TEXTS)
                )
            case _:
                message.model_version = self._source.choice(("1", "2", "-1", *TEXTS))
        return message.SerializeToString()

    def _change_places(self, payload: bytes) -> bytes:
        """A message with some tensors in shared memory."""
        try:
            message = ModelInferRequest.FromString(payload)
        except Exception:  # noqa: BLE001 - a mutant already
            return payload
        if not message.outputs:
            message.outputs.add(name=self._source.choice(("OUT", "TEXT", "ROWS")))
        if message.inputs and self._source.random() < 0.7:
            at = self._source.randrange(len(message.inputs))
            self._place(message.inputs[at].parameters)
            if at < len(message.raw_input_contents):
                del message.raw_input_contents[at]
        if self._source.random() < 0.7:
            self._place(self._source.choice(message.outputs).parameters)
        return message.SerializeToString()

    def _place(self, parameters: Any) -> None:
        """In shared memory: of the right size, now and then."""
        region = self._source.choice((REGION, REGION, *TEXTS))
        parameters["shared_memory_region"].string_param = region
        for name in ("byte_size", "offset"):
            if self._source.random() < 0.8:
                size = self._source.choice((0, 16, 64, 64 * self._source.randint(1, 8), *EDGES))
                parameters[f"shared_memory_{name}"].int64_param = size


def _fields(payload: bytes) -> list[bytes]:
    """The top-level fields of a message that has length-delimited ones only; what does not
    read as such stays one piece."""
    fields: list[bytes] = []
    at = 0
    while at < len(payload):
        begin = at
        length = shift = 0
        at += 1
        while at < len(payload):
            byte = payload[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at = min(len(payload), at + length)
        fields.append(payload[begin:at])
    return fields


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
