"""Which files the documents come from: files, folders and patterns, resolved and told apart."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llem.campaign.data.saveddata import is_saved, saved_dataset
from llem.errors import Fault, InputError, UnavailableError

TEXT, JSONL, PARQUET, ARROW = "text", "jsonl", "parquet", "arrow"
# How a file's name ends -> what it holds; all else is text.
FORMATS = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSONL,
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
}
_ZSTD = ".zst"
_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
COMPRESSIONS = (*_OPENERS, _ZSTD)


@dataclass(frozen=True)
class SourceFile:
    """A file with documents. `path` is as it was found in `place`, and faults name it so."""

    place: str
    path: str
    format: str
    compressed: bool
    bytes: int


def find_sources(places: Iterable[str | Path]) -> tuple[SourceFile, ...]:
    """The files of `places`, in their order, each once; those of a folder by name.

    A place is a file, a folder (all files below it but hidden ones), a folder that `datasets`
    saved, or a pattern with `*`, `?` or `[`. Raises InputError with all that cannot be read.
    """
    faults: list[Fault] = []
    found: dict[str, SourceFile] = {}
    for place in places:
        try:
            for path in _files_of(str(place)):
                found.setdefault(os.path.realpath(path), _described(str(place), path))
        except _NoSource as error:
            faults.append(Fault(str(place), *error.args))
        except OSError as error:
            faults.append(Fault(error.filename or str(place), error.strerror or str(error)))
    if not faults and not found:
        faults.append(Fault("", "no source was named"))
    if faults:
        raise InputError("the sources", faults)
    return tuple(found.values())


class _NoSource(Exception):
    """What is wrong with a place, and the hint."""


def _files_of(place: str) -> Iterator[str]:
    if os.path.isdir(place):
        yield from _below(place)
    elif os.path.lexists(place):
        yield place
    elif glob.has_magic(place):
        matches = sorted(glob.glob(place, recursive=True))
        if not matches:
            raise _NoSource("no file is called so")
        for match in matches:
            if os.path.isdir(match):
                # `data/*` means what lies there, and of a saved data set its files.
                yield from _saved(match) if is_saved(match) else ()
            else:
                yield match
    else:
        raise _NoSource("there is no such file or folder")


def _below(folder: str) -> Iterator[str]:
    if is_saved(folder):
        yield from _saved(folder)
        return
    empty = True
    seen = {os.path.realpath(folder)}
    for here, folders, names in os.walk(folder, followlinks=True):
        places = {name: os.path.realpath(os.path.join(here, name)) for name in folders}
        # A link may lead to where it is.
        folders[:] = sorted(n for n in folders if not n.startswith(".") and places[n] not in seen)
        seen.update(places.values())
        saved = [name for name in folders if is_saved(os.path.join(here, name))]
        folders[:] = [name for name in folders if name not in saved]
        for name in saved:
            empty = False
            yield from _saved(os.path.join(here, name))
        for name in sorted(names):
            if not name.startswith("."):
                empty = False
                yield os.path.join(here, name)
    if empty:
        raise _NoSource("holds no file")


def _saved(folder: str) -> list[str]:
    """The Arrow files of a data set on disk, in its own order."""
    try:
        return [str(path) for path in saved_dataset(folder).files]
    except InputError as error:
        fault = error.faults[0]
        raise _NoSource(fault.message, fault.hint) from None


def _described(place: str, path: str) -> SourceFile:
    size = os.stat(path).st_size
    if not os.path.isfile(path):
        raise _NoSource("is no regular file")
    stem, suffix = os.path.splitext(path)
    compressed = suffix.lower() in COMPRESSIONS
    if compressed:
        suffix = os.path.splitext(stem)[1]
    kind = FORMATS.get(suffix.lower(), TEXT)
    if compressed and kind in (PARQUET, ARROW):
        raise _NoSource(f"a compressed {kind} file", "decompress it: the format compresses itself")
    with open(path, "rb"):  # Whether it may be read is asked before hours of work, not after.
        pass
    return SourceFile(place, path, kind, compressed, size)


def open_bytes(source: SourceFile) -> IO[bytes]:
    """The file's content, decompressed as it is read. Raises UnavailableError, OSError."""
    path = Path(source.path)
    if not source.compressed:
        return open(path, "rb", buffering=0)
    suffix = path.suffix.lower()
    if suffix != _ZSTD:
        opened = _OPENERS[suffix](path)
    else:
        opened = import_arrow(source.path).input_stream(str(path), compression="zstd")
    file: IO[bytes] = opened
    return file


def import_arrow(path: str) -> Any:
    """pyarrow. Raises UnavailableError saying which file needs it."""
    try:
        import pyarrow
    except ImportError:
        raise UnavailableError(
            f"{path}: reading this file needs pyarrow, which is not installed",
            remedy="pip install 'llem[data]'",
        ) from None
    return pyarrow
