"""A library in the place of CUDA's runtime, made with the C compiler that the project needs anyway.

It has the functions that `pinned` calls, with CUDA's own signatures, and writes down what came.
"""

import ctypes
import subprocess
from pathlib import Path

SOURCE = r"""
#include <stdio.h>
#include <string.h>
char said[4096];
int refused;       /* what cudaHostRegister answers */
int last;
static int tell(const char *what) { strncat(said, what, sizeof said - strlen(said) - 1); return 0; }
int cudaSetDevice(int device) {
    char text[64];
    snprintf(text, sizeof text, "device %d;", device);
    return tell(text);
}
int cudaHostRegister(void *address, size_t size, unsigned flags) {
    char text[128];
    snprintf(text, sizeof text, "register %p %zu %u;", address, size, flags);
    tell(text);
    return last = refused;
}
int cudaHostUnregister(void *address) {
    char text[64];
    snprintf(text, sizeof text, "unregister %p;", address);
    tell(text);
    const char *file = FILE_NAME;
    if (*file) { FILE *out = fopen(file, "w"); fputs(said, out); fclose(out); }
    return 0;
}
int cudaGetLastError(void) { int was = last; last = 0; return was; }
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "?"; }
"""


def build(folder: Path, name: str = "libcudart.so.12", file: Path | None = None) -> Path:
    """The library. `file`: it writes there what it was told, at each cudaHostUnregister."""
    source, library = folder / "cudart.c", folder / name
    source.write_text(SOURCE.replace("FILE_NAME", f'"{file or ""}"'))
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return library


def said(library: ctypes.CDLL) -> list[str]:
    """All that it was told."""
    text = (ctypes.c_char * 4096).in_dll(library, "said").value.decode()
    return text.split(";")[:-1]
