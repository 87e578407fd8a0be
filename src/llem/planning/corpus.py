"""Real text that is on every machine: the Python standard library's own sources, as bytes."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

from llem.errors import UnavailableError

# Installed packages and the test suite are not part of every installation.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3"}


def write_python_sources(path: Path) -> Path:
    """Write the standard library's sources to `path`, one file after the other, as bytes.

    The order is that of a hash of each file's name, so that the held-out end of the file is
    drawn from the whole library and not from the modules whose names begin with z. Leaves an
    existing file of the same content alone. Raises UnavailableError where there are no sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names: list[Path] = []
    for folder, below, files in os.walk(root):
        # Not even looked into: a site-packages holds a hundred times as many files.
        below[:] = [name for name in below if name not in _LEFT_OUT]
        place = Path(folder).relative_to(root)
        names += [place / name for name in files if name.endswith(".py") and name not in _LEFT_OUT]
    if not names:
        raise UnavailableError(
            f"no Python sources in {root}",
            remedy="give a text or token file of your own: data: {path: ...}",
        )
    names.sort(key=lambda name: (hashlib.blake2b(str(name).encode()).digest(), str(name)))
    content = b"".join((root / name).read_bytes() for name in names)
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two commands on one campaign may both write it.
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_bytes(content)
        os.replace(partial, path)
    return path
