"""HDF5's own calls from C (`hdf5.c`), for what a record has many of.

h5py makes two or three objects of Python's for each attribute and one for each chunk, which takes
longer than reading a rank's steps. The calls are found in the library that h5py itself has loaded,
and made under its lock; where one of them is missing, all is left to h5py.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records.native import compiled
from llem.records.native.rows import address_of

# In the order of the structure in `hdf5.c`.
NAMES = (
    "H5Oopen", "H5Oclose", "H5Aiterate2", "H5Aopen", "H5Aget_type", "H5Aget_space", "H5Aread",
    "H5Aclose", "H5Tget_class", "H5Tget_size", "H5Tget_sign", "H5Tget_order",
    "H5Tis_variable_str", "H5Tenum_valueof", "H5Tequal", "H5Tclose",
    "H5Sget_simple_extent_type", "H5Sget_simple_extent_ndims",
    "H5Sget_simple_extent_dims", "H5Sclose", "H5Dopen2", "H5Dget_type", "H5Dget_space", "H5Dread",
    "H5Dget_create_plist", "H5Dchunk_iter", "H5Dclose", "H5Pget_layout", "H5Pget_nfilters",
    "H5Pget_chunk", "H5Pclose",
)  # fmt: skip
INTEGER, REAL, STRING, NAMED = 0, 1, 3, 8
ATTRIBUTE_BYTES, MOST_CHUNKS, SHORT_BYTES = 1 << 16, 1 << 16, 1 << 16
# Before it, H5Dchunk_iter told sizes in another type, or was not there.
LEAST_VERSION = (1, 14, 0)


class Calls:
    """The calls, for one thread at a time: h5py's lock is held meanwhile."""

    def __init__(self, library: compiled.Library, lock: Any) -> None:
        self._library, self._lock = library, lock
        self._bytes = np.empty(ATTRIBUTE_BYTES, np.uint8)
        self._places = np.empty(MOST_CHUNKS, np.int64)

    def attributes(self, file: Any, name: str, other: Callable[[str], Any]) -> dict[str, Any]:
        """All attributes of an object; `other` reads one that is no plain number or text.
        Raises KeyError where they cannot be read."""
        with self._lock:
            used = self._library.hdf5("llem_attributes")(
                file.id.id, name.encode(), address_of(self._bytes), len(self._bytes)
            )
            told = self._bytes[: max(used, 0)].tobytes()
        if used < 0:
            raise KeyError(name)
        found: dict[str, Any] = {}
        at = 0
        while at < len(told):
            heads = np.frombuffer(told, np.int32, 4, at).tolist()
            long_, size, kind, sign = heads
            key = told[at + 16 : at + 16 + long_].decode("utf-8", "surrogateescape")
            at += 16 + long_
            value = told[at : at + size]
            at += size
            if kind == STRING:
                found[key] = value.rstrip(b"\0")
            elif kind == INTEGER:
                found[key] = int.from_bytes(value, "little", signed=bool(sign))
            elif kind == REAL and size in (4, 8):
                found[key] = float(np.frombuffer(value, f"<f{size}")[0])
            elif kind == NAMED:
                found[key] = value == b"\1"
            else:
                found[key] = other(key)
        return found

    def table(self, file: Any, name: str, dtype: np.dtype[Any], kind: Any) -> NDArray[Any] | None:
        """A short table whose rows are of h5py's type `kind`; None where it is another."""
        with self._lock:
            rows = self._library.hdf5("llem_table")(
                file.id.id, name.encode(), kind.id, address_of(self._bytes),
                SHORT_BYTES // dtype.itemsize,
            )  # fmt: skip
            if rows < 0:
                return None
            return self._bytes[: rows * dtype.itemsize].copy().view(dtype)

    def places(self, file: Any, name: str, kind: Any) -> tuple[int, int, NDArray[np.int64]] | None:
        """Rows, rows of a chunk, and where the chunks lie; None where the bytes of chunks are not
        the rows' own."""
        told = np.zeros(2, np.int64)
        with self._lock:
            code = self._library.hdf5("llem_places")(
                file.id.id, name.encode(), kind.id, address_of(self._places), MOST_CHUNKS,
                address_of(told),
            )  # fmt: skip
            if code < 0:
                return None
            rows, chunk = told.tolist()
            return rows, chunk, self._places[: -(-rows // chunk)].copy()


def calls() -> Calls | None:
    """None where all is to be left to h5py."""
    library = compiled.library()
    return None if library is None else _calls(library)


@cache
def _calls(library: compiled.Library) -> Calls | None:
    import h5py

    if sys.byteorder != "little" or h5py.version.hdf5_version_tuple < LEAST_VERSION:
        return None
    try:
        from h5py import h5d
        from h5py._objects import phil

        # what an extension module is linked with is found through it, wherever that lies
        loaded = ctypes.CDLL(h5d.__file__)
        found = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in NAMES]
    except (ImportError, OSError, AttributeError):
        return None
    library.use_hdf5((ctypes.c_void_p * len(found))(*found))
    return Calls(library, phil)
