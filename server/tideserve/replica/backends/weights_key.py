"""For which files, runtime and machine shared weights were made."""

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Final

import onnxruntime as ort

_KEY_CHARACTERS: Final = 24
_MACHINE_CHARACTERS: Final = 8


def name_of(path: Path) -> str:
    """Of one model version's file, in a folder without links; readable for people."""
    return f"{path.parent.parent.name}-{path.parent.name}-{_digest(os.fspath(path))}"


def key_of(path: Path, options: ort.SessionOptions) -> str:
    """Of all that what is made depends on. And of this boot: nobody waits until the disk has it, so
    that after a crash of the machine it may be anything."""
    held = [(os.fspath(file.relative_to(path.parent)), file.stat()) for file in files_of(path)]
    # A link to a folder beside the model may be turned from one to another.
    held += [
        (f"{link.relative_to(path.parent)} -> {link.readlink()}", link.lstat())
        for link in path.parent.rglob("*")
        if link.is_symlink()
    ]
    # st_ctime: a file in another's place may have its size and its time, but never that.
    files = [
        (name, it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns)
        for name, it in sorted(held, key=lambda each: each[0])
    ]
    runtime = ort.__version__, ort.get_build_info(), str(options.graph_optimization_level)
    content = _digest(str(files), *runtime, _processor(), _boot())
    return f"{machine()}-{content}"


def machine() -> str:
    """What keys of this machine begin with."""
    return _digest(platform.node())[:_MACHINE_CHARACTERS]


def files_of(path: Path) -> list[Path]:
    """The model's and those that lie beside it or below, as weights do."""
    return [file for file in path.parent.rglob("*") if file.is_file()]


def _digest(*parts: str) -> str:
    text = "\0".join(parts).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:_KEY_CHARACTERS]


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    return ""


def _processor() -> str:
    """Its name and what it can do: weights are arranged for that."""
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        lines: dict[str, str] = {}
        for line in file:
            name, _, value = line.partition(":")
            lines.setdefault(name.strip(), value.strip())
        names = ("model name", "CPU part", "flags", "Features")
        return "\0".join(lines.get(name, "") for name in names)
    return platform.machine() + platform.processor()
