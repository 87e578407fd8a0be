"""Builds the stand-in NVML: `python tests/nvml/build.py FOLDER` prints the library's path.

Beside it lies an executable `nvidia-smi` that says nothing: codecarbon looks for one on PATH before
it asks the library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
SONAME = "libnvidia-ml.so.1"


def build(out_dir: str | Path) -> Path:
    """Compile into `out_dir` and return the library. Raises RuntimeError with gcc's words.

    Nothing is done where the library there is newer than its source.
    """
    library = Path(out_dir) / SONAME
    if library.exists() and library.stat().st_mtime > SOURCE.stat().st_mtime:
        return library
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler on PATH")
    library.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that test may build at once.
    unfinished = library.with_name(f"{SONAME}.{os.getpid()}")
    command = [
        compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
        "-fvisibility=hidden", f"-Wl,-soname,{SONAME}", "-o", str(unfinished), str(SOURCE), "-lm",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} does not compile:\n{done.stderr}")
    stub = library.with_name("nvidia-smi")
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)
    unfinished.replace(library)
    return library


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(build(sys.argv[1]))
