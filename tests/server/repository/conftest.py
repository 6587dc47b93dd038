"""What the tests of the repository share: folders of models, and a configuration with every
field set."""

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tideserve.v1.model_config_pb2 import ModelConfig

AddModel = Callable[..., Path]
EveryField = Callable[[int], ModelConfig]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def add_model(root: Path) -> AddModel:
    """Makes <root>/<name> with a config.pbtxt, unless None, and the files, by relative name."""

    def add(name: str, config: str | None = None, *files: str) -> Path:
        folder = root / name
        folder.mkdir(exist_ok=True)
        if config is not None:
            (folder / "config.pbtxt").write_text(config)
        for file in files:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
        return folder

    return add


@pytest.fixture
def every_field() -> EveryField:
    """A configuration with every field of every message set to something other than its
    default; of a oneof the member number `choice`, so that six choices meet them all."""

    def make(choice: int) -> ModelConfig:
        config = ModelConfig()
        _fill(config, choice)
        return config

    return make


def _fill(message: Message, choice: int) -> None:
    for field in message.DESCRIPTOR.fields:
        group = field.containing_oneof
        if group is not None and group.fields[choice % len(group.fields)] is not field:
            continue
        current = getattr(message, field.name)
        if field.message_type is None:
            if hasattr(current, "extend"):
                current.extend([_scalar(field), _scalar(field)])
            else:
                setattr(message, field.name, _scalar(field))
        elif field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            if value.message_type is None:
                current[_scalar(key)] = _scalar(value)
            else:
                _fill(current[_scalar(key)], choice)
        elif hasattr(current, "extend"):
            child = GetMessageClass(field.message_type)()
            _fill(child, choice)
            current.extend([child, child])
        else:
            current.SetInParent()
            _fill(current, choice)


def _scalar(field: FieldDescriptor) -> int | float | bool | str:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return f'{field.name} "é\\'
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return int(field.enum_type.values[-1].number)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return 0.5
        case _:
            return 3
