"""What `rows.c` takes of rows while they pass: columns, a rank's steps, a device's samples.

A pass is made for so many rows, and fed all of them in order (`compiled.Library.read`, `feed`).
The structures are those of `rows.c`, field by field; what is 0 there begins as 0.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llem.records.schema import SAMPLES, STEPS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WHOLE, REAL, SINGLE, PLACE = ctypes.c_int64, ctypes.c_double, ctypes.c_float, ctypes.c_void_p
ROWS = ("rows", "done", "row_bytes")


def address_of(array: NDArray[Any]) -> int:
    """Where C finds an array. Raises ValueError where its values do not lie together."""
    if not array.flags.c_contiguous:
        raise ValueError("an array of values that do not lie together")
    # array.ctypes takes four times as long
    address: int = array.__array_interface__["data"][0]
    return address


def _fields(**kinds: tuple[Any, tuple[str, ...]]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in kinds.values() for name in names]


class _Parted(ctypes.Structure):
    _fields_ = _fields(a=(WHOLE, (*ROWS, "columns")), b=(PLACE, ("offset", "size", "out")))


# The columns that are taken, by the names of their offsets in a row.
STEP_OFFSETS = {
    "at_step": "step", "at_t0": "t0_ns", "at_t1": "t1_ns", "at_tokens": "tokens_rank",
    "at_unique": "tokens_unique", "at_e0": "e0_mj", "at_e1": "e1_mj", "at_phase": "phase",
}  # fmt: skip
SAMPLE_OFFSETS = {
    "at_t": "t_ns", "at_read": "read_ns", "at_energy": "energy_mj", "at_power": "power_mw",
    "at_celsius": "temperature_c", "at_use": "utilization", "at_throttle": "throttle",
    "at_flags": "flags",
}  # fmt: skip


class _Steps(ctypes.Structure):
    _fields_ = _fields(
        a=(WHOLE, (*ROWS, *STEP_OFFSETS)),
        b=(PLACE, ("known", "step", "t1_ns", "tokens", "unique", "change", "e1_mj", "phase")),
        c=(WHOLE, ("unlike", "disordered", "changes", "first_ns", "last_ns", "began_ns", "total",
                   "plain", "plain_tokens", "plain_unique", "finite")),
        d=(REAL, ("began_mj",)),
    )  # fmt: skip


class _Samples(ctypes.Structure):
    _fields_ = _fields(
        a=(WHOLE, (*ROWS, *SAMPLE_OFFSETS, "failed", "slowed", "capped", "every_read", "head_ns")),
        b=(REAL, ("most_s",)),
        c=(PLACE, ("at_s", "joules", "trapezoid", "slowed_s", "capped_s", "head_mw", "read_ns",
                   "change_ns", "head_t_ns", "celsius", "head_use")),
        d=(WHOLE, ("odd", "changes", "head", "start_ns", "end_ns", "told", "warm_ns", "stands")),
        e=(REAL, ("start_mj", "end_mj", "end_w", "sum_j", "most_w", "stood_s", "integral_j")),
        f=(SINGLE, ("warm",)),
    )  # fmt: skip


class Pass:
    """Something that rows are fed to: its kind in C, and its state there."""

    kind: ClassVar[int]
    state: Any

    @property
    def whole(self) -> bool:
        """Whether it has seen all rows."""
        return bool(self.state.done == self.state.rows)


class ColumnsPass(Pass):
    """Columns as they are: fills `columns`, each of `rows` values."""

    kind = 0

    def __init__(
        self, rows: int, dtype: np.dtype[Any], columns: Mapping[str, NDArray[Any]]
    ) -> None:
        if any(len(column) != rows for column in columns.values()):
            raise ValueError(f"columns that are not of {rows} rows")
        fields: Mapping[str, Any] = dtype.fields or {}
        self._kept = (
            np.array([fields[name][1] for name in columns], dtype=np.int64),
            np.array([column.itemsize for column in columns.values()], dtype=np.int64),
            np.array([address_of(column) for column in columns.values()], dtype=np.uintp),
        )
        self.columns = columns
        self.state = _Parted(
            rows, 0, dtype.itemsize, len(columns), *(address_of(own) for own in self._kept)
        )


@dataclass(frozen=True)
class StepRows:
    """A rank's steps, each once, in order by number and by end.

    `tokens` and `unique` are of each step, or one number where all have the same; `total` the sum
    of `tokens`. `change` are the places at which a phase begins, `phase` the phases. `began_ns` and
    `began_mj` are the start of the first step and the counter then, `first_ns` the earliest start
    and `last_ns` the latest end. `stamped`: the counter was read at the end of some step.
    """

    step: Integers
    t1_ns: Integers
    e1_mj: Floats
    tokens: Integers | int
    unique: Integers | int
    total: int
    change: Integers
    phase: NDArray[np.uint8]
    began_ns: int
    began_mj: float
    first_ns: int
    last_ns: int
    stamped: bool

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def of(cls, steps: Any) -> StepRows:
        """From columns of steps that are in order."""
        n, phase = len(steps), steps["phase"]
        new = np.ones(n, dtype=bool)
        new[1:] = phase[1:] != phase[:-1]
        change = np.flatnonzero(new)
        return cls(
            step=steps["step"],
            t1_ns=steps["t1_ns"],
            e1_mj=steps["e1_mj"],
            tokens=steps["tokens_rank"],
            unique=steps["tokens_unique"],
            total=int(steps["tokens_rank"].sum()),
            change=change,
            phase=phase[change],
            began_ns=int(steps["t0_ns"][0]) if n else 0,
            began_mj=float(steps["e0_mj"][0]) if n else np.nan,
            first_ns=int(steps["t0_ns"].min()) if n else 0,
            last_ns=int(steps["t1_ns"].max()) if n else 0,
            stamped=bool(np.isfinite(steps["e1_mj"]).any()),
        )


class StepsPass(Pass):
    """A rank's steps; `known` are the numbers that they will probably have."""

    kind = 1

    def __init__(self, rows: int, *, known: Integers | None = None) -> None:
        self._known = known if known is not None and len(known) == rows else None
        self._step = np.empty(0 if self._known is not None else rows, np.int64)
        self._whole = [np.empty(rows, np.int64) for _ in range(4)]
        self._e1_mj, self._phase = np.empty(rows), np.empty(rows, np.uint8)
        self.state = _Steps(
            rows, 0, STEPS.itemsize, *_offsets(STEPS, STEP_OFFSETS),
            None if self._known is None else address_of(self._known), address_of(self._step),
            *map(address_of, self._whole), address_of(self._e1_mj), address_of(self._phase),
        )  # fmt: skip

    def found(self) -> StepRows | None:
        """None where they are in disorder, or have other numbers than were known."""
        state = self.state
        if not self.whole or not state.rows or state.unlike or state.disordered:
            return None
        t1_ns, tokens, unique, change = self._whole
        alike = state.plain == state.rows
        if not alike:
            tokens[: state.plain], unique[: state.plain] = state.plain_tokens, state.plain_unique
        return StepRows(
            step=self._step if self._known is None else self._known,
            t1_ns=t1_ns,
            e1_mj=self._e1_mj,
            tokens=state.plain_tokens if alike else tokens,
            unique=state.plain_unique if alike else unique,
            total=state.total,
            change=change[: state.changes].copy(),
            phase=self._phase[: state.changes].copy(),
            began_ns=state.began_ns,
            began_mj=state.began_mj,
            first_ns=state.first_ns,
            last_ns=state.last_ns,
            stamped=bool(state.finite),
        )


@dataclass(frozen=True)
class SampleRows:
    """A device's samples at which nothing is odd: seconds since the first, and the running energy
    by its counter, which showed `start_mj` at first.

    `integral_j` is the energy by power, `most_w` the most power, `stood_s` the longest that the
    counter stood. `read_ns` are some of how long readings took. `celsius` at `warm_ns` are the ends
    of all times without a change. `head` are t_ns, utilization and power_mw of the first samples.
    `slowed_s` and `capped_s` are seconds up to each sample; None where it never was.
    """

    at_s: Floats
    joules: Floats
    start_ns: int
    end_ns: int
    start_mj: float
    integral_j: float
    most_w: float
    stood_s: float
    read_ns: Integers
    warm_ns: Integers
    celsius: NDArray[np.float32]
    head: Mapping[str, NDArray[Any]]
    slowed_s: Floats | None
    capped_s: Floats | None


class SamplesPass(Pass):
    """A device's samples. `failed`, `slowed` and `capped` are bits of `flags` and `throttle`; a
    reason counts for `most_s` at most; `head_ns`: the head is what comes before."""

    kind = 2

    def __init__(
        self,
        rows: int,
        *,
        failed: int,
        slowed: int,
        capped: int,
        most_s: float,
        every_read: int,
        head_ns: int,
    ) -> None:
        self._masks = (slowed, capped)
        self._real = [np.empty(rows) for _ in range(6)]
        self._read_ns = np.empty(-(-rows // every_read), np.int64)
        self._change_ns, self._head_ns = np.empty(rows, np.int64), np.empty(rows, np.int64)
        self._celsius, self._use = np.empty(rows, np.float32), np.empty(rows, np.float32)
        self.state = _Samples(
            rows, 0, SAMPLES.itemsize, *_offsets(SAMPLES, SAMPLE_OFFSETS),
            failed, slowed, capped, every_read, head_ns, most_s,
            *map(address_of, self._real), address_of(self._read_ns), address_of(self._change_ns),
            address_of(self._head_ns), address_of(self._celsius), address_of(self._use),
        )  # fmt: skip
        self.state.stands = -1

    def found(self) -> SampleRows | None:
        """None where a sample is odd, or there are fewer than two."""
        state = self.state
        if state.odd or not self.whole or state.rows < 2:
            return None
        at_s, joules, _, slowed_s, capped_s, head_mw = self._real
        changes, head = state.changes, slice(0, state.head)
        told = [bool(state.told & mask) for mask in self._masks]
        return SampleRows(
            at_s=at_s,
            joules=joules,
            start_ns=state.start_ns,
            end_ns=state.end_ns,
            start_mj=state.start_mj,
            integral_j=state.integral_j,
            most_w=state.most_w,
            stood_s=state.stood_s,
            read_ns=self._read_ns,
            warm_ns=self._change_ns[:changes].copy(),
            celsius=self._celsius[:changes].copy(),
            head={
                "t_ns": self._head_ns[head].copy(),
                "utilization": self._use[head].copy(),
                "power_mw": head_mw[head].copy(),
            },
            slowed_s=slowed_s if told[0] else None,
            capped_s=capped_s if told[1] else None,
        )


def _offsets(dtype: np.dtype[Any], names: Mapping[str, str]) -> list[int]:
    fields: Mapping[str, Any] = dtype.fields or {}
    return [fields[name][1] for name in names.values()]
