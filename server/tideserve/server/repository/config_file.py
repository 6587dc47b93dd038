"""config.pbtxt: protobuf text format, with errors that say where, what and what instead."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from stat import S_ISREG
from typing import Final

from google.protobuf import text_format
from google.protobuf.message import Message

from tideserve.server.errors import ModelConfigError
from tideserve.v1 import model_config_pb2
from tideserve.v1.model_config_pb2 import ModelConfig

# Real ones have a few KiB; one of this size takes half a second to parse.
MAX_CONFIG_BYTES: Final = 1024 * 1024


def read_config(path: Path) -> ModelConfig:
    """Reads one config.pbtxt. Raises `ModelConfigError` also where it cannot be read."""
    try:
        if not S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise ModelConfigError(f"{path}: expected a regular file, got something else")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelConfigError(
            f"{path}: expected a file that this user can read, got: {error.strerror}"
        ) from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ModelConfigError(f"{path}: expected at most {MAX_CONFIG_BYTES} bytes, got more")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise ModelConfigError(
            f"{path}:{line}:{column}: expected UTF-8 text, got byte 0x{content[error.start]:02x}"
        ) from error
    return parse_config(text, str(path))


def parse_config(text: str, source: str) -> ModelConfig:
    """Parses text format. Raises `ModelConfigError`: `source:line:column: expected, got`."""
    config = ModelConfig()
    try:
        with warnings.catch_warnings():
            # What the parser's string decoder only warns of, Triton's parser refuses.
            warnings.simplefilter("error", DeprecationWarning)
            text_format.Parse(text, config)
    except DeprecationWarning as warning:
        raise ModelConfigError(f"{source}:{_bad_escape(text)}") from warning
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        raise ModelConfigError(
            f"{source}:{line}:{column}: {_explain(str(error), text, line, column)}"
        ) from error
    _refuse_unknown_numbers(config, "", source)
    return config


def _explain(message: str, text: str, line: int, column: int) -> str:
    """The parser's message in words of expected and got."""
    lines = text.split("\n")
    current = lines[line - 1] if 0 < line <= len(lines) else ""
    message = message.removeprefix(f"{line}:{column} : ")
    # The parser quotes the line only where the position is that of the token it refuses;
    # past the last token it quotes an empty one.
    if message.startswith("'': "):
        message, token = message.removeprefix("'': "), ""
    elif message.startswith(f"'{current}': "):
        message = message.removeprefix(f"'{current}': ")
        token = _token(current[column - 1 :])
    else:
        token = ""
    got = f"got {token}" if token else "got the end of the file"
    for pattern, explain in _EXPLANATIONS:
        if match := re.fullmatch(pattern, message, re.DOTALL):
            return explain(*match.groups(), got)
    return message.replace("tideserve.v1.", "")


def _bad_escape(text: str) -> str:
    """Where the first escape is that C does not have, which the decoder does not tell."""
    found = re.search(r"\\(?:[^abfnrtv\\'\"0-7xuU]|[4-7][0-7]{2})", text)
    start, escape = (found.start(), found.group()) if found else (0, "another")
    line = text.count("\n", 0, start) + 1
    column = start - text.rfind("\n", 0, start)
    return f"{line}:{column}: expected an escape that C has, got {escape}"


def _token(rest: str) -> str:
    found = re.match(r"[\w.+-]+|\"[^\"]*\"?|\S", rest)
    token = found.group()[:80] if found else ""
    return token if token.isprintable() else ascii(token)


def _unknown_field(message_type: str, name: str, _got: str) -> str:
    descriptor = model_config_pb2.DESCRIPTOR.pool.FindMessageTypeByName(message_type)
    known = [field.name for field in descriptor.fields]
    hint = _nearest(name, known) or f"expected one of {', '.join(known)}"
    return f"{descriptor.name} has no field {name!r}: {hint}"


def _unknown_value(enum_type: str, name: str, _got: str) -> str:
    descriptor = model_config_pb2.DESCRIPTOR.pool.FindEnumTypeByName(enum_type)
    known = [value.name for value in descriptor.values]
    return f"expected one of {', '.join(known)}, got {name}"


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


_EXPLANATIONS: Final[tuple[tuple[str, Callable[..., str]], ...]] = (
    (r'Message type "([\w.]+)" has no field named "(.*)"\.', _unknown_field),
    (r'Enum type "([\w.]+)" has no value named (.*)\.', _unknown_value),
    (
        r'Message type "[\w.]+" should not have multiple "(\w+)" fields\.',
        lambda name, _got: f"expected {name!r} once, got it a second time",
    ),
    (
        r'Field "(\w+)" is specified along with field "(\w+)", another member .*',
        lambda name, other, _got: f"expected one of {other!r} and {name!r}, got both",
    ),
    (r"Couldn't parse integer: .*", lambda got: f"expected an integer, {got}"),
    (r"Couldn't parse float: .*", lambda got: f"expected a number, {got}"),
    (
        r"Value out of range: (.*)",
        lambda value, _got: f"expected an integer in the field's range, got {value}",
    ),
    (r"Expected string but found: .*", lambda got: f"expected a string in quotes, {got}"),
    (
        r"(?:Couldn't parse string: .*|'.*' codec can't .*)",
        lambda got: (
            "expected UTF-8 text and valid escapes in the string"
            + ("" if got.endswith("file") else f", {got}")
        ),
    ),
    (
        r"String missing ending quote: .*",
        lambda got: f"expected a closing quote on the same line, {got}",
    ),
    (
        r"Expected identifier or number, got .*",
        lambda got: f"expected the name of a field, {got}",
    ),
    (r"Expected (.*)\.", lambda what, got: f"expected {what}, {got}"),
)


def _refuse_unknown_numbers(message: Message, prefix: str, source: str) -> None:
    """Text format takes any number for an enum; a number without a name means nothing."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if field.enum_type is not None:
            names = field.enum_type.values_by_number
            for number in [value] if isinstance(value, int) else value:
                if number not in names:
                    known = ", ".join(entry.name for entry in names.values())
                    raise ModelConfigError(
                        f"{source}: {path}: expected one of {known}, got {number}"
                    )
        elif field.message_type is not None:
            for child in _messages(value):
                _refuse_unknown_numbers(child, f"{path}.", source)


def _messages(value: object) -> list[Message]:
    """The messages in a field's value: itself, a repeated field's or a map's."""
    match value:
        case Message():
            return [value]
        case Mapping():
            return [child for child in value.values() if isinstance(child, Message)]
        case Sequence():
            return list(value)
        case _:
            raise TypeError(f"expected a message field's value, got {type(value).__name__}")
