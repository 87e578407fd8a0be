"""The passes of `passes.c`, to the same bits as numpy's; None in their place without a compiler.

All arrays are contiguous and of the types that records have (see `schema`): whoever calls has them
from `read_columns`. What is odd in a record is found here and left to numpy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem import _compiling
from llem._compiling import Kept, Status, Unavailable

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SOURCES = (Path(__file__).with_name("passes.c"),)
# A fused multiply-add, a reordered sum or an assumption on overflow would change bits.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fwrapv", "-fPIC", "-shared")
# Arguments: i a whole number, d a float, p an array.
FUNCTIONS = {
    "llem_read_columns": ("ipiiipiippp", ctypes.c_int64),
    "llem_series": ("ippppipppp" + "p", None),
    "llem_most": ("ippi", ctypes.c_double),
    "llem_slopes": ("ippp", None),
    "llem_lookup": ("ipppiipp", None),
    "llem_difference": ("ippp", ctypes.c_double),
    "llem_slope": ("ippp", ctypes.c_double),
    "llem_waited": ("ippip", ctypes.c_int64),
    "llem_blocks": ("ipppdippp", ctypes.c_int64),
    "llem_doubtful": ("ipppdiid", ctypes.c_int64),
    "llem_changes": ("ipp", ctypes.c_int64),
    "llem_scan": ("ippppp", None),
    "llem_line": ("ipppppippp" + "ppp", ctypes.c_int64),
}
KINDS = {"i": ctypes.c_int64, "d": ctypes.c_double, "p": ctypes.c_void_p}


@dataclass(frozen=True)
class Series:
    """One pass over a device's samples: how many energies and powers are not finite, how often
    times and the counter go back, how many samples failed; the longest that the counter stood, s,
    the most power, W, and the trapezoids' sum, J."""

    at_s: Floats
    joules: Floats
    unknown: int
    dark: int
    late: int
    back: int
    failed: int
    stood_s: float
    most_w: float
    integral_j: float


@dataclass(frozen=True)
class Scan:
    """One pass over a rank's steps: whether they are in order by number and by end."""

    numbered: bool
    ordered: bool
    first_ns: int
    last_ns: int
    tokens: int


class Library:
    """The functions of a loaded library."""

    def __init__(self, path: Path) -> None:
        try:
            handle = ctypes.CDLL(str(path))
            self._call: dict[str, Any] = {name: getattr(handle, name) for name in FUNCTIONS}
        except (OSError, AttributeError) as error:
            raise Unavailable(f"{path} cannot be loaded: {error}") from None
        for name, (arguments, result) in FUNCTIONS.items():
            self._call[name].argtypes = [KINDS[kind] for kind in arguments]
            self._call[name].restype = result

    def read_columns(
        self,
        descriptor: int,
        *,
        places: Sequence[int],
        chunk_rows: int,
        rows: int,
        dtype: np.dtype[Any],
        slab_rows: int,
        columns: Mapping[str, NDArray[Any]],
    ) -> None:
        """Fill `columns`, each of `rows` values, from chunks at these places of a file. Raises
        OSError, and EOFError where the file ends before."""
        fields: Mapping[str, Any] = dtype.fields or {}
        chunks = max(1, slab_rows // chunk_rows)
        slab = np.empty(min(chunks, len(places)) * chunk_rows * dtype.itemsize, np.uint8)
        at = np.array(places, dtype=np.int64)
        offset = np.array([fields[name][1] for name in columns], dtype=np.int64)
        size = np.array([column.itemsize for column in columns.values()], dtype=np.int64)
        out = np.array([_at(column) for column in columns.values()], dtype=np.uintp)
        if any(len(column) != rows for column in columns.values()) or len(at) * chunk_rows < rows:
            raise ValueError(f"{rows} rows, in {len(at)} chunks of {chunk_rows}")
        code = self._call["llem_read_columns"](
            descriptor, _at(at), chunk_rows, rows, dtype.itemsize, _at(slab), chunks,
            len(columns), _at(offset), _at(size), _at(out),
        )  # fmt: skip
        if code < 0:
            raise EOFError
        if code:
            raise OSError(code, os.strerror(code))

    def series(
        self, t_ns: Integers, energy_mj: Floats, power_mw: Floats, flags: Any, *, failed: int
    ) -> Series:
        """Of two samples or more."""
        n = len(t_ns)
        at_s, joules, scratch = np.empty(n), np.empty(n), np.empty(n)
        told, found = np.empty(5, dtype=np.int64), np.empty(3)
        self._call["llem_series"](
            n, _at(t_ns), _at(energy_mj), _at(power_mw), _at(flags), failed,
            _at(at_s), _at(joules), _at(scratch), _at(told), _at(found),
        )  # fmt: skip
        return Series(at_s, joules, *told.tolist(), *found.tolist())

    def most(self, at_s: Floats, joules: Floats, apart: int) -> float:
        """The most of the mean powers over `apart` samples; NaN where one of them is."""
        return float(self._call["llem_most"](len(at_s), _at(at_s), _at(joules), apart))

    def slopes(self, x: Floats, y: Floats) -> Floats:
        """(n - 1,) slopes."""
        slopes = np.empty(len(x) - 1)
        self._call["llem_slopes"](len(x), _at(x), _at(y), _at(slopes))
        return slopes

    def lookup(self, x: Floats, y: Floats, slopes: Floats, start_ns: int, t_ns: Integers) -> Floats:
        """np.interp((t_ns - start_ns) / 1e9, x, y), of two points or more."""
        found = np.empty(len(t_ns))
        self._call["llem_lookup"](
            len(x), _at(x), _at(y), _at(slopes), start_ns, len(t_ns), _at(t_ns), _at(found)
        )
        return found

    def difference(self, later: Floats, earlier: Floats) -> float:
        """(later - earlier).sum()"""
        scratch = np.empty(len(later))
        return float(
            self._call["llem_difference"](len(later), _at(later), _at(earlier), _at(scratch))
        )

    def slope(self, x: Floats, y: Floats) -> float:
        """The slope of a least-squares line; NaN where a y is not finite."""
        scratch = np.empty(len(x))
        return float(self._call["llem_slope"](len(x), _at(x), _at(y), _at(scratch)))

    def waited(
        self, from_ns: Integers, to_ns: Integers, *, same_ns: int = 0
    ) -> tuple[int, int, int]:
        """(to_ns - from_ns).sum(), how many are shorter than `same_ns` and how many below 0."""
        told = np.empty(2, dtype=np.int64)
        total = self._call["llem_waited"](
            len(from_ns), _at(from_ns), _at(to_ns), same_ns, _at(told)
        )
        return int(total), int(told[0]), int(told[1])

    def blocks(
        self, joules: Floats, tokens: Floats, seconds: Floats, *, total_s: float, count: int
    ) -> tuple[Integers, Floats, Floats] | None:
        """Steps, joules and tokens of each of `count` equal parts of the steps' time; None where
        something is not finite."""
        steps, block_j, block_t = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
        done = self._call["llem_blocks"](
            len(joules), _at(joules), _at(tokens), _at(seconds), total_s, count,
            _at(steps), _at(block_j), _at(block_t),
        )  # fmt: skip
        return (steps, block_j, block_t) if done else None

    def doubtful(
        self,
        t_ns: Integers,
        read_mj: Floats,
        looked_up: Floats,
        *,
        base_j: float,
        within_ns: tuple[int, int],
        least_j: float,
    ) -> int:
        """How many readings of a counter are off by more than `least_j` from what was looked up."""
        return int(self._call["llem_doubtful"](
            len(t_ns), _at(t_ns), _at(read_mj), _at(looked_up), base_j, *within_ns, least_j
        ))  # fmt: skip

    def changes(self, values: NDArray[np.float32]) -> Integers | None:
        """The places of the first and last of equal values in a row; None where one is not
        finite."""
        places = np.empty(len(values), dtype=np.int64)
        count = self._call["llem_changes"](len(values), _at(values), _at(places))
        return None if count < 0 else places[:count].copy()

    def scan(self, step: Integers, t0_ns: Integers, t1_ns: Integers, tokens: Integers) -> Scan:
        """Of one step or more."""
        told = np.empty(5, dtype=np.int64)
        self._call["llem_scan"](
            len(step), _at(step), _at(t0_ns), _at(t1_ns), _at(tokens), _at(told)
        )
        same, late, *rest = told.tolist()
        return Scan(not same, not late, *rest)

    def line(
        self, steps: Any, place: Integers, span_t1_ns: Integers, span_e1_mj: Floats
    ) -> tuple[Integers, Floats, Integers]:
        """Starts, joules and the places where stretches begin, of one step or more in order."""
        n = len(steps)
        starts, joules = np.empty(n, dtype=np.int64), np.empty(n)
        begins = np.empty(n, dtype=np.int64)
        names = ("t0_ns", "t1_ns", "e0_mj", "e1_mj", "phase")
        count = self._call["llem_line"](
            n, *(_at(steps[name]) for name in names), len(place), _at(place), _at(span_t1_ns),
            _at(span_e1_mj), _at(starts), _at(joules), _at(begins),
        )  # fmt: skip
        return starts, joules, begins[:count].copy()


def _at(array: NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("an array of values that do not lie together")
    address: int = array.ctypes.data
    return address


def look(environment: Mapping[str, str]) -> tuple[Library | None, Status]:
    """What these environment variables lead to, whatever is in use."""
    return _compiling.look(
        environment, sources=SOURCES, flags=FLAGS, load=Library, agrees=agrees_with_numpy
    )


_kept: Kept[Library] = Kept(look)
library, status, forget = _kept.library, _kept.status, _kept.forget


def agrees_with_numpy(found: Library) -> bool:
    """Whether the library gives numpy's bits on this machine: its sums and its interpolation may
    be compiled otherwise elsewhere."""
    n = 1237
    chance: Floats = np.sin(np.arange(4.0 * n) * 1.7) * 1e3
    t_ns: Integers = 10**15 + np.cumsum(10**8 + (chance[:n] * 1e4).astype(np.int64))
    energy_mj: Floats = np.asarray(3e12 + np.round(np.cumsum(6e4 + 20 * chance[n : 2 * n])), float)
    power_mw: Floats = 6e5 + chance[2 * n : 3 * n]
    got = found.series(t_ns, energy_mj, power_mw, np.zeros(n, np.uint16), failed=1)
    at_s = (t_ns - t_ns[0]) / 1e9
    joules = np.append(0.0, np.cumsum(np.diff(energy_mj) / 1e3))
    power_w = power_mw / 1e3
    integral_j = ((power_w[1:] + power_w[:-1]) / 2 * np.diff(at_s)).sum()
    asked = np.sort(t_ns[0] + (chance[3 * n :] * 1.3e8).astype(np.int64) + 6 * 10**10)
    looked_up = found.lookup(at_s, joules, found.slopes(at_s, joules), int(t_ns[0]), asked)
    wanted = np.interp((asked - t_ns[0]) / 1e9, at_s, joules)
    return (
        np.array_equal(got.at_s, at_s)
        and np.array_equal(got.joules, joules)
        and got.integral_j == integral_j
        and np.array_equal(looked_up, wanted)
        and found.difference(power_w, joules) == (power_w - joules).sum()
        and found.most(at_s, joules, 7)
        == ((joules[7:] - joules[:-7]) / (at_s[7:] - at_s[:-7])).max(initial=0.0)
    )
