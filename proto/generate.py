"""Writes the generated modules beside the .proto files: `python proto/generate.py [OUT]`.

`make check` generates into an empty folder and compares, so the protobuf release that
generates is pinned (6.30: tritonclient's range begins there, and a process that imports
both needs a runtime at least as new as either's generator).
"""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).parent
SOURCES = sorted(ROOT.glob("tideserve/v1/*.proto"))


def generate(out: Path) -> None:
    """Generates message modules and their stubs for type checkers into `out`."""
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        *(str(source) for source in SOURCES),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit(f"protoc refused {', '.join(map(str, SOURCES))}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
