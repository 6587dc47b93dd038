"""Reads an autoscaler file. Every error names the place, what came, and what was expected."""

import difflib
from collections.abc import Hashable
from pathlib import Path
from reprlib import Repr
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tideserve.autoscaler.config import AutoscalerFile
from tideserve.autoscaler.errors import ConfigError

MAX_BYTES: Final = 1 << 20
_MERGE: Final = "tag:yaml.org,2002:merge"
_SHORT: Final = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def read_config(path: Path) -> AutoscalerFile:
    """Raises `ConfigError`, with a line for each thing that is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes")
    return parse_config(data, str(path))


def parse_config(data: bytes, name: str) -> AutoscalerFile:
    """As `read_config`; `name` is for the message."""
    try:
        document = yaml.load(data, _Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: expected YAML: {_yaml_problem(error)}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: expected YAML in UTF-8: {error}") from error
    if document is None:
        document = {}
    elif isinstance(document, dict):  # a section without anything in it
        document = {key: value for key, value in document.items() if value is not None}
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: expected keys and values, got {type(document).__name__}")
    try:
        return AutoscalerFile.model_validate(document)
    except RecursionError as error:  # an alias within what it stands for
        raise ConfigError(f"{name}: expected sections that end, got one within itself") from error
    except ValidationError as error:
        details = error.errors()
        lines = list(dict.fromkeys(_line(one) for one in details if _says(one, details)))
        raise ConfigError("\n".join(f"{name}: {line}" for line in lines)) from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: the first would be dropped silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # what it brings in gives way to what stands here
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)


def _says(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Not of the alternative that was not meant: `process` where a mapping came, a mapping
    where something else came. Nor that a list is short of what is wrong in it."""
    given, at = detail["input"], detail["loc"]
    if detail["type"] == "too_short":
        return not any(other["loc"][: len(at)] == at for other in details if other is not detail)
    if detail["type"] == "literal_error":
        return not isinstance(given, dict)
    return detail["type"] != "model_type" or not any(
        other["type"] == "literal_error" and other["loc"][:-1] == at[:-1] for other in details
    )


def _line(detail: ErrorDetails) -> str:
    """One error: path, what is wrong, what came."""
    location = _location(detail["loc"])
    where = ".".join(location) or "the file"
    given = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_nearest(location)}"
        case "missing":
            return f"{where}: expected, and missing"
        case "value_error":
            said = detail["msg"].removeprefix("Value error, ")
            return f"{where}: {said}"
        case "model_type" | "dict_type":
            return f"{where}: expected keys and values, got {_short(given)}"
        case "tuple_type":
            return f"{where}: expected a list, got {_short(given)}"
        case "literal_error":
            return (
                f"{where}: expected {detail['ctx']['expected']} or a mapping, got {_short(given)}"
            )
        case _:
            said = detail["msg"][:1].lower() + detail["msg"][1:]
            return f"{where}: {said}, got {_short(given)}"


def _location(path: tuple[int | str, ...]) -> list[str]:
    """Without the names of the alternatives of a union."""
    skip = {"literal['frontend']", "literal['process']", "PrometheusSourceSection"}
    skip |= {"DockerLauncherSection"}
    return [str(part) for part in path if str(part) not in skip]


def _nearest(location: list[str]) -> str:
    """The known key that was likely meant, and all that there are."""
    section: type[BaseModel] | None = AutoscalerFile
    for part in location[:-1]:
        section = _section_of(section, part)
    if section is None:
        return ""
    known = sorted(section.model_fields)
    near = difflib.get_close_matches(location[-1], known, n=1)
    meant = f", did you mean {near[0]}?" if near else ";"
    return f"{meant} There are: {', '.join(known)}" if near else f"; there are: {', '.join(known)}"


def _section_of(section: type[BaseModel] | None, part: str) -> type[BaseModel] | None:
    if section is None:
        return None
    field = section.model_fields.get(part)
    if field is None:
        # A name in `models`, an index in a list: the section is still that of the values.
        return section
    found = [
        argument
        for argument in (field.annotation, *_all_args(field.annotation))
        if isinstance(argument, type) and issubclass(argument, BaseModel)
    ]
    return found[0] if found else None


def _all_args(annotation: Any) -> list[Any]:
    inner: list[Any] = []
    for argument in get_args(annotation):
        inner += [argument, *_all_args(argument)]
    return inner


def _short(value: object) -> str:
    try:
        text = _SHORT.repr(value)  # not the whole: aliases make a small file a large value
    except ValueError:  # 0xFFF..., of more decimal digits than Python writes
        text = "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."
