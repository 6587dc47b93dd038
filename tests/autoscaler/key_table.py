"""The table of docs/autoscaler.md, from the file's models.

`python -m tests.autoscaler.key_table` writes it into the page; a test compares.
"""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tideserve.autoscaler.config import AutoscalerFile
from tideserve.autoscaler.section import Bytes, Seconds

PAGE: Final = Path(__file__).parents[2] / "docs" / "autoscaler.md"
_PLACE: Final = re.compile(r"(?<=<!-- keys -->\n).*?(?=<!-- end of keys -->)", re.DOTALL)


def table() -> str:
    """One row a key, in the order of the file."""
    rows = [
        f"| `{path}` | {_default(field)} | {_range(field)} | {field.description or ''} |"
        for path, field in keys(AutoscalerFile)
    ]
    head = ["| key | default | unit and range | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its path. Of `defaults` only itself: it has what a model has."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        if path != "defaults":
            for inner, more in _sections(field.annotation):
                yield from keys(inner, f"{path}{more}.")


def _sections(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    elif get_origin(annotation) is tuple:
        yield from ((inner, "[]") for inner, _ in _sections(get_args(annotation)[0]))
    elif get_origin(annotation) is dict:
        yield from ((inner, ".NAME") for inner, _ in _sections(get_args(annotation)[1]))
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _sections(one)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "see below" if isinstance(value, BaseModel) else "-"
    if value in (None, (), ""):
        return "-"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _range(field: FieldInfo) -> str:
    low = high = ""
    for rule in field.metadata:
        match rule:
            case at.Ge(ge):
                low = f"{ge:g} or more"
            case at.Gt(gt):
                low = f"more than {gt:g}"
            case at.Le(le):
                high = f"at most {le:g}"
            case at.Lt(lt):
                high = f"less than {lt:g}"
            case _:
                pass
    return ", ".join(part for part in (_unit(field), low, high) if part) or "-"


def _unit(field: FieldInfo) -> str:
    for quantity, unit in ((Seconds, "seconds"), (Bytes, "bytes")):
        marks = get_args(quantity)[1:]
        inner = [
            mark
            for one in (field.annotation, *get_args(field.annotation))
            for mark in get_args(one)[1:]
        ]
        if any(mark in marks for mark in (*field.metadata, *inner)):
            return unit
    return ""


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_PLACE.sub(lambda _: table(), text), encoding="utf-8")


if __name__ == "__main__":
    main()
