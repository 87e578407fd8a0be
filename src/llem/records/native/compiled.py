"""The library of `passes.c` and `rows.c`, to numpy's bits; None in its place without a compiler.

All arrays are contiguous and of the types that records have (see `schema`). What is odd in a record
is found here and left to numpy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem import _compiling
from llem._compiling import Kept, Status, Unavailable
from llem.records.native.rows import Pass, SamplesPass, StepRows, address_of
from llem.records.schema import SAMPLES

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SOURCES = tuple(Path(__file__).with_name(name) for name in ("passes.c", "rows.c", "hdf5.c"))
# A fused multiply-add, a reordered sum or an assumption on overflow would change bits.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fwrapv", "-fPIC", "-shared")
# Arguments: i a whole number, d a float, p an array, s a text.
FUNCTIONS = {
    "llem_read": ("ipiiipiip", ctypes.c_int64),
    "llem_feed": ("ippi", ctypes.c_int64),
    "llem_most": ("ippi", ctypes.c_double),
    "llem_slopes": ("p", None),
    "llem_rises": ("piipp", None),
    "llem_waits": ("pi", ctypes.c_double),
    "llem_stretches": ("ipdippippp" + "pp", ctypes.c_int64),
    "llem_slope": ("ippp", ctypes.c_double),
    "llem_flat": ("ippppddp", ctypes.c_int64),
    "llem_median": ("ip", ctypes.c_double),
    "llem_waited": ("ippip", ctypes.c_int64),
    "llem_blocks": ("ipppdippp", ctypes.c_int64),
    "llem_hdf5": ("p", None),
    "llem_attributes": ("ispi", ctypes.c_int64),
    "llem_table": ("isipi", ctypes.c_int64),
    "llem_places": ("isipip", ctypes.c_int64),
}
KINDS = {"i": ctypes.c_int64, "d": ctypes.c_double, "p": ctypes.c_void_p, "s": ctypes.c_char_p}


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

    def use_hdf5(self, functions: Any) -> None:
        """Tell the calls of HDF5, in the order of `hdf5.NAMES`."""
        self._call["llem_hdf5"](ctypes.addressof(functions))

    def hdf5(self, name: str) -> Callable[..., int]:
        """One of those of `hdf5.c`."""
        call: Callable[..., int] = self._call[name]
        return call

    def read(
        self, descriptor: int, places: Integers, *, chunk_rows: int, slab_rows: int, into: Pass
    ) -> None:
        """Feed all rows of `into` from chunks at these places of a file; it may have enough before.

        Raises OSError, and EOFError where the file ends before.
        """
        state = into.state
        if len(places) * chunk_rows < state.rows:
            raise ValueError(f"{state.rows} rows, in {len(places)} chunks of {chunk_rows}")
        chunks = max(1, min(slab_rows // chunk_rows, len(places)))
        slab = np.empty(chunks * chunk_rows * state.row_bytes, np.uint8)
        code = self._call["llem_read"](
            descriptor, address_of(places), chunk_rows, state.rows, state.row_bytes,
            address_of(slab), chunks, into.kind, ctypes.addressof(state),
        )  # fmt: skip
        if code == -1:
            raise EOFError
        if code > 0:
            raise OSError(code, os.strerror(code))

    def feed(self, rows: NDArray[Any], *, into: Pass) -> bool:
        """Feed some rows of a table, in order; whether more are wanted."""
        state = into.state
        if rows.itemsize != state.row_bytes or state.done + len(rows) > state.rows:
            raise ValueError(f"{len(rows)} rows of {rows.itemsize} bytes")
        call = self._call["llem_feed"]
        return bool(call(into.kind, ctypes.addressof(state), address_of(rows), len(rows)))

    def most(self, at_s: Floats, joules: Floats, apart: int) -> float:
        """The most of the mean powers over `apart` samples; NaN where one of them is."""
        return float(
            self._call["llem_most"](len(at_s), address_of(at_s), address_of(joules), apart)
        )

    def line(self, start_ns: int, x: Floats, y: Floats) -> Line:
        """A line through two points or more, to be looked up: x are seconds since `start_ns`."""
        slope = np.empty(len(x) - 1)
        told = _Line(len(x), *(address_of(own) for own in (x, y, slope)))
        self._call["llem_slopes"](ctypes.addressof(told))
        return Line(told, start_ns, (x, y, slope))

    def rises(self, line: Line, t_ns: Integers) -> Floats:
        """np.diff(np.interp((t_ns - start_ns) / 1e9, x, y)), after a first value to be filled."""
        found = np.empty(len(t_ns))
        self._call["llem_rises"](
            ctypes.addressof(line.told), line.start_ns, len(t_ns), address_of(t_ns),
            address_of(found),
        )  # fmt: skip
        return found

    def waits(
        self,
        line: Line,
        from_ns: Integers,
        to_ns: Integers | None,
        read_mj: Floats | None,
        *,
        base_j: float = 0.0,
        least_j: float = 0.0,
        within_ns: tuple[int, int] = (0, 0),
    ) -> tuple[float, int]:
        """The sum of what the line rises by between these moments (None: 0); and how many readings
        of a counter at the former, of those in `within_ns`, are off by more than `least_j` from
        the line and the counter's `base_j` at its start."""
        if (
            not len(from_ns)
            == len(from_ns if to_ns is None else to_ns)
            == len(from_ns if read_mj is None else read_mj)
        ):
            raise ValueError("moments and readings are not as many")
        told = _Waits(
            ctypes.addressof(line.told), line.start_ns, address_of(from_ns),
            None if to_ns is None else address_of(to_ns),
            None if read_mj is None else address_of(read_mj),
            base_j, least_j, *within_ns,
        )  # fmt: skip
        total = self._call["llem_waits"](ctypes.addressof(told), len(from_ns))
        return float(total), int(told.doubtful)

    def stretches(
        self, steps: StepRows, place: Integers, span_e1_mj: Floats
    ) -> tuple[Integers, NDArray[np.uint8], Floats]:
        """Where stretches of steps begin, their phases, and their joules by readings of a counter;
        NaN where it goes back. Spans come before the steps `place`, in order."""
        most = len(steps.change) + len(place)
        begins, phase = np.empty(most, np.int64), np.empty(most, np.uint8)
        joules = np.empty(most)
        count = self._call["llem_stretches"](
            len(steps), address_of(steps.e1_mj), steps.began_mj, len(steps.change),
            address_of(steps.change), address_of(steps.phase), len(place), address_of(place),
            address_of(span_e1_mj), address_of(begins), address_of(phase), address_of(joules),
        )  # fmt: skip
        return begins[:count], phase[:count], joules[:count]

    def median(self, values: Floats) -> float:
        """np.median of one value or more."""
        own = values.astype(float)
        return float(self._call["llem_median"](len(own), address_of(own)))

    def flat(
        self, since: Integers, last: Integers, x: Floats, y: Floats, *, most: float, times: float
    ) -> int:
        """The number of the first window, from `since` to `last`, over which y has a slope whose
        amount `times` this is less than `most`; -1: none. -2 - k: not known of the k-th."""
        scratch = np.empty(int((last - since).max(initial=0)) + 1)
        return int(self._call["llem_flat"](
            len(since), address_of(since), address_of(last), address_of(x), address_of(y), most,
            times, address_of(scratch),
        ))  # fmt: skip

    def slope(self, x: Floats, y: Floats) -> float:
        """The slope of a least-squares line; NaN where a y is not finite."""
        scratch = np.empty(len(x))
        return float(
            self._call["llem_slope"](len(x), address_of(x), address_of(y), address_of(scratch))
        )

    def waited(
        self, from_ns: Integers, to_ns: Integers, *, same_ns: int = 0
    ) -> tuple[int, int, int]:
        """(to_ns - from_ns).sum(), how many are shorter than `same_ns` and how many below 0."""
        told = np.empty(2, dtype=np.int64)
        total = self._call["llem_waited"](
            len(from_ns), address_of(from_ns), address_of(to_ns), same_ns, address_of(told)
        )
        return int(total), int(told[0]), int(told[1])

    def blocks(
        self, joules: Floats, tokens: Floats, seconds: Floats, *, total_s: float, count: int
    ) -> tuple[Integers, Floats, Floats] | None:
        """Steps, joules and tokens of each of `count` equal parts of the steps' time; None where
        something is not finite."""
        steps, block_j, block_t = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
        done = self._call["llem_blocks"](
            len(joules), address_of(joules), address_of(tokens), address_of(seconds), total_s,
            count, address_of(steps), address_of(block_j), address_of(block_t),
        )  # fmt: skip
        return (steps, block_j, block_t) if done else None


class _Line(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("x", "y", "slope")),
    )  # fmt: skip


class _Waits(ctypes.Structure):
    _fields_ = (
        ("line", ctypes.c_void_p), ("start_ns", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("from_ns", "to_ns", "read_mj")),
        *((name, ctypes.c_double) for name in ("base_j", "least")),
        *((name, ctypes.c_int64)
          for name in ("first_ns", "last_ns", "doubtful", "from_place", "to_place")),
    )  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line through points, prepared; `told` says where its arrays lie, `kept` keeps them."""

    told: _Line
    start_ns: int
    kept: tuple[NDArray[Any], ...]


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
    table = np.zeros(n, SAMPLES)
    table["t_ns"], table["energy_mj"], table["power_mw"] = t_ns, energy_mj, power_mw
    into = SamplesPass(n, failed=1, slowed=1, capped=2, most_s=2.0, every_read=7, head_ns=0)
    got = into.found() if found.feed(table, into=into) else None
    at_s = (t_ns - t_ns[0]) / 1e9
    joules = np.append(0.0, np.cumsum(np.diff(energy_mj) / 1e3))
    power_w = power_mw / 1e3
    integral_j = ((power_w[1:] + power_w[:-1]) / 2 * np.diff(at_s)).sum()
    asked = np.sort(t_ns[0] + (chance[3 * n :] * 1.3e8).astype(np.int64) + 6 * 10**10)
    line = found.line(int(t_ns[0]), at_s, joules)
    looked_up = np.interp((asked - t_ns[0]) / 1e9, at_s, joules)
    later, _ = found.waits(line, t_ns, asked, None)
    begins = np.array([0, 1, 300, n - 2])
    steps = StepRows(
        step=t_ns[1:], t1_ns=t_ns[1:], e1_mj=energy_mj[1:], tokens=0, unique=0, total=0,
        change=begins[:2], phase=np.zeros(2, np.uint8), began_ns=0, began_mj=energy_mj[0],
        first_ns=0, last_ns=0, stamped=True,
    )  # fmt: skip
    stretches = found.stretches(steps, begins[2:], energy_mj[begins[2:]])
    return (
        got is not None
        and np.array_equal(got.at_s, at_s)
        and np.array_equal(got.joules, joules)
        and got.integral_j == integral_j
        and np.array_equal(found.rises(line, asked)[1:], np.diff(looked_up))
        and later == (looked_up - joules).sum()
        and np.array_equal(stretches[2], np.add.reduceat(np.diff(energy_mj) / 1e3, begins))
        and found.most(at_s, joules, 7)
        == ((joules[7:] - joules[:-7]) / (at_s[7:] - at_s[:-7])).max(initial=0.0)
    )
