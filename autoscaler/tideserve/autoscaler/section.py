"""What the sections of the autoscaler file have in common: their strictness, and quantities with units."""

from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, field_validator

from tideserve.autoscaler.quantity import bytes_of, seconds_of

MAX_REPLICAS: Final = 4096

_QUANTITY_SCHEMA: Final = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}
Seconds = Annotated[
    float, BeforeValidator(seconds_of), WithJsonSchema({**_QUANTITY_SCHEMA, "x-unit": "s"})
]
Bytes = Annotated[
    int, BeforeValidator(bytes_of), WithJsonSchema({**_QUANTITY_SCHEMA, "x-unit": "bytes"})
]


class Section(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth(cls, value: object) -> object:
        # No key is one of yes or no; `min: yes` would be 1.
        if isinstance(value, bool):
            said = f"expected a number, text or keys, got {str(value).lower()}"
            raise ValueError(said)  # noqa: TRY004 - pydantic's kind
        return value
