"""Compiles the hot path into the wheel, with mypyc: `HATCH_BUILD_HOOK_ENABLE_CUSTOM=true`.

The same sources run with and without. What a request passes through is compiled; an editable
install never is, as a compiled module would hide the edits (docs/decisions/0016).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE_ROOTS = ("proto", "server", "autoscaler", "clients")
_SERVER = "server/tideserve/server"
_REPLICA = "server/tideserve/replica"
# Whole folders, and what a request meets beside them. Not what loops over a tensor's elements
# (`replica/tensors`, `contents`, `padding`): compiled code lets no other thread in, and a replica
# that reads a million strings has to beat meanwhile, a server to answer /healthz.
_FOLDERS = (f"{_SERVER}/core", f"{_SERVER}/front/native")
_MODULES = (
    "proto/tideserve/v1/varint.py",
    *(
        f"{_SERVER}/{name}.py"
        for name in (
            "arena",
            "batch",
            "cuts",
            "dispatcher",
            "exchanges",
            "gather",
            "mailbox",
            "parts",
            "placement",
            "plans",
            "stats",
            "wire",
        )
    ),
    *(f"{_SERVER}/service/{name}.py" for name in ("inference", "leases", "replicas", "streams")),
    *(
        f"{_REPLICA}/{name}.py"
        for name in (
            "arena",
            "completion",
            "exchange",
            "exchanger",
            "http2",
            "model_io",
            "rooms",
            "runner",
            "sockets",
            "unary",
            "wire",
        )
    ),
)
_SETUP = """
from mypyc.build import mypycify
from setuptools import setup

setup(
    name="tideserve",
    packages=[],
    py_modules=[],
    ext_modules=mypycify({arguments!r}, opt_level="2", debug_level="0", target_dir={target!r}),
)
"""
# Functions of one module call those of another directly, not by way of the dynamic linker's tables:
# 3 % of a request, with -O2 over -O1. The first two are the interpreter's own, which are left out
# where CFLAGS are given.
_CFLAGS = "-DNDEBUG -fwrapv -fvisibility=hidden -fno-plt"
# What is not installed where the wheel is built is taken as untyped.
_MYPY_SETTINGS = """
[mypy]
mypy_path = {roots}
namespace_packages = True
explicit_package_bases = True
ignore_missing_imports = True
follow_imports = silent
"""


class CompiledHotPath(BuildHookInterface[Any]):
    """Adds a compiled module beside each of the sources above. Raises RuntimeError with the
    compiler's words when it fails."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        root = Path(self.root)
        self._folder = Path(mkdtemp(prefix="tideserve-build-"))
        try:
            compiled = _compile(root, self._folder)
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        for path in compiled:
            build_data["force_include"][str(path)] = str(path.relative_to(self._folder / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, *_: Any) -> None:
        if self.target_name == "wheel" and version != "editable":
            shutil.rmtree(self._folder)


def compiled_sources(root: Path) -> list[str]:
    """The sources that are compiled, from the project's folder."""
    folders = [
        str(path.relative_to(root))
        for folder in _FOLDERS
        for path in sorted((root / folder).glob("*.py"))
        if path.name != "__init__.py"
    ]
    return folders + list(_MODULES)


def _compile(root: Path, folder: Path) -> list[Path]:
    """The compiled modules, below `folder`/lib as they lie in a wheel."""
    settings = folder / "mypy.ini"
    settings.write_text(_MYPY_SETTINGS.format(roots=":".join(_SOURCE_ROOTS)))
    setup = folder / "setup.py"
    arguments = [f"--config-file={settings}", *compiled_sources(root)]
    setup.write_text(_SETUP.format(arguments=arguments, target=str(folder / "c")))
    done = subprocess.run(
        [
            sys.executable,
            str(setup),
            "build_ext",
            f"--build-lib={folder / 'lib'}",
            f"--build-temp={folder / 'temp'}",
        ],
        cwd=root,
        env={**os.environ, "CFLAGS": f"{_CFLAGS} {os.environ.get('CFLAGS', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = f"{done.stdout}\n{done.stderr}"[-4000:]
        raise RuntimeError(f"mypyc could not compile the hot path:\n{said}")
    return sorted((folder / "lib").rglob("*.so"))
