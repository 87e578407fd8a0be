"""A table of observations as columns: read from CSV in chunks, its faults named by line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.errors import Fault, InputError, did_you_mean

FloatArray = NDArray[np.float64]

# Other names that published tables use for the columns.
ALIASES = {"N": "params", "D": "tokens", "L": "loss", "C": "flops"}
REQUIRED = ("params", "tokens", "loss")
# Columns of numbers -> whether an empty cell and 0 are allowed, and what to say otherwise.
NUMBERS: dict[str, tuple[bool, bool, str]] = {
    "params": (False, False, "must be a finite number above 0"),
    "tokens": (False, False, "must be a finite number above 0"),
    "loss": (False, False, "must be a finite number above 0"),
    "weight": (False, True, "must be a finite number, 0 or more"),
    "flops": (True, False, "must be above 0, or empty where not known"),
    "params_nonembedding": (True, False, "must be above 0, or empty where not known"),
    "unique_tokens": (True, False, "must be above 0, or empty where not known"),
    "ranks": (True, True, "must not be negative"),
    "nodes": (True, True, "must not be negative"),
    "steps": (True, True, "must not be negative"),
    "energy_j": (True, True, "must be 0 or more, or empty where not measured"),
    "duration_s": (True, True, "must be 0 or more, or empty where not measured"),
    "gpu_seconds": (True, True, "must be 0 or more, or empty where not measured"),
    "tokens_trunk": (True, True, "must be 0 or more, or empty where not known"),
    "learning_rate": (True, True, "must be 0 or more, or empty where not known"),
    "annealed": (True, True, "must be 0 or 1, or empty where not known"),
    "warmup_tokens": (True, True, "must be 0 or more, or empty where not known"),
}
TEXTS = (
    "run_id", "status", "reason", "family", "energy_quality", "energy_domains", "rehearsal",
)  # fmt: skip
CHUNK_ROWS = 65_536
# Smaller files are read with the reader that names every fault; greater ones at once.
GREAT_BYTES = 1 << 20
FAULTS_SHOWN = 20
DELIMITERS = ",;\t"


class TableError(InputError):
    """The table cannot be read: the first faults by line and column, and how many more."""

    def __init__(self, source: str, faults: Sequence[Fault], *, more: int = 0) -> None:
        super().__init__(source, faults)
        self.more = more
        if more:
            self.message = f"{source}: {len(faults) + more} faults"

    def lines(self) -> list[str]:
        return [*super().lines(), *([f"  and {self.more} more"] if self.more else [])]


@dataclass(frozen=True)
class Table:
    """Columns of n rows: `numbers` (n,) with NaN where empty, `texts` (n,) of str.

    place: where each row stands, for messages ("line 7"). names: column -> its name in the file.
    unread: (row, column) -> text of cells that are no number. source: the file.
    """

    rows: int
    numbers: Mapping[str, FloatArray]
    texts: Mapping[str, NDArray[np.str_]]
    source: str = "observations"
    lines: NDArray[np.int64] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[tuple[int, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Table | Sequence[Mapping[str, Any]]) -> Table:
        """A table of mappings, as those of `observations.csv`; a Table is returned as it is."""
        if isinstance(rows, Table):
            return rows
        unread: dict[tuple[int, str], str] = {}
        present = {name for row in rows for name in row}
        numbers = {
            name: np.array([_cell(row.get(name), i, name, unread) for i, row in enumerate(rows)])
            for name in NUMBERS
            if name in present
        }
        texts = {
            name: np.array(["" if row.get(name) is None else str(row[name]) for row in rows])
            for name in TEXTS
            if name in present
        }
        return cls(len(rows), numbers, texts, unread=unread)

    def number(self, name: str) -> FloatArray:
        """A column (n,), NaN where there is none."""
        return self.numbers.get(name, np.full(self.rows, math.nan))

    def text(self, name: str) -> NDArray[np.str_]:
        """A column (n,), empty where there is none."""
        return self.texts.get(name, np.full(self.rows, ""))

    def name(self, row: int) -> str:
        """Name of the run of a row: as given, else where it stands."""
        return str(self.texts["run_id"][row]) if "run_id" in self.texts else self.place(row)

    def place(self, row: int) -> str:
        """Where a row stands, in words."""
        return f"row {row}" if self.lines is None else f"line {int(self.lines[row])}"

    def check(self, used: NDArray[np.bool_]) -> None:
        """Raise TableError with the faults of the rows that are `used` (n,), in their order."""
        missing = [name for name in REQUIRED if name not in self.numbers]
        if missing:
            raise TableError(self.source, [Fault(n, "column is missing") for n in missing])
        found: list[tuple[int, str]] = []
        count = 0
        for name, column in self.numbers.items():
            bad = used & ~_allowed(name, column)
            for row, other in self.unread:
                if other == name and used[row]:
                    bad[row] = True
            rows = np.flatnonzero(bad)
            count += rows.size
            found += [(int(row), name) for row in rows[:FAULTS_SHOWN]]
        if found:
            found.sort()
            shown = [self._fault(row, name) for row, name in found[:FAULTS_SHOWN]]
            raise TableError(self.source, shown, more=count - len(shown))

    def _fault(self, row: int, name: str) -> Fault:
        where = f"{self.place(row)}, {self.names.get(name, name)}"
        text = self.unread.get((row, name))
        if text is not None:
            hint = "write a decimal point" if _has_comma(text) else None
            return Fault(where, f"{text[:40]!r} is not a number", hint)
        value = float(self.numbers[name][row])
        hint = "the cell is empty or NaN" if math.isnan(value) else f"found {value:g}"
        return Fault(where, NUMBERS[name][2], hint)


def read_table(path: str | Path) -> Table:
    """Read a CSV with `params, tokens, loss` (or N, D, L) in a header, in bounded memory.

    The delimiter is a comma, a semicolon or a tab. Cells that are no number are kept as faults,
    which `Table.check` raises for the rows that are used. Raises InputError.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)
            header = _Header.of(next(csv.reader([first], delimiter=delimiter), []), str(path))
            whole = _numeric(Path(path), header, delimiter)
            if whole is not None:
                return whole
            return _read(csv.reader(file, delimiter=delimiter), header, str(path))
    except FileNotFoundError:
        raise InputError(str(path), ["there is no such file or folder"]) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), [f"cannot be read as CSV: {error}"]) from None


@dataclass(frozen=True)
class _Header:
    """The first line: names as given, and as columns are called here."""

    given: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, cells: Sequence[str], source: str) -> _Header:
        given = tuple(name.strip() for name in cells)
        names = tuple(ALIASES.get(name, name) for name in given)
        if not any(names):
            raise TableError(source, [Fault("", "the file is empty", _columns_hint())])
        missing = [name for name in REQUIRED if name not in names]
        twice = sorted({name for name in names if name in NUMBERS and names.count(name) > 1})
        faults = [
            Fault(n, "column is missing", did_you_mean(n, names) or _other_name(n)) for n in missing
        ]
        faults += [Fault(name, "stands in the header twice") for name in twice]
        if faults:
            raise TableError(source, faults)
        return cls(given, names)

    def places(self, kind: Sequence[str] | Mapping[str, Any]) -> dict[str, int]:
        """Where the columns of a kind stand."""
        return {name: i for i, name in enumerate(self.names) if name in kind}

    def as_given(self) -> dict[str, str]:
        """Column -> its name in the file."""
        return dict(zip(self.names, self.given, strict=True))


def _numeric(path: Path, header: _Header, delimiter: str) -> Table | None:
    """A great table of numbers alone, read at once; None where it is anything else.

    What this reader of numpy's passes over (empty lines, cells too many) shows in the counts of
    lines and delimiters, and such a table is left to the one that names its faults.
    """
    if path.stat().st_size < GREAT_BYTES or header.places(TEXTS):
        return None
    lines = cells = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            lines += block.count(b"\n")
            cells += block.count(delimiter.encode())
            last = block[-1:]
    rows = lines - (last == b"\n")
    if cells != (rows + 1) * (len(header.names) - 1):
        return None
    places = header.places(NUMBERS)
    try:
        table = np.loadtxt(
            path, delimiter=delimiter, skiprows=1, usecols=list(places.values()), comments=None,
            ndmin=2,
        )  # fmt: skip
    except ValueError:
        return None
    if table.shape[0] != rows or not rows:
        return None
    return Table(
        rows=rows,
        numbers={name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(places)},
        texts={},
        source=str(path),
        lines=np.arange(2, rows + 2),
        names=header.as_given(),
    )


def _read(reader: Any, header: _Header, source: str) -> Table:
    numbers: dict[str, list[FloatArray]] = {n: [] for n in header.places(NUMBERS)}
    texts: dict[str, list[NDArray[np.str_]]] = {n: [] for n in header.places(TEXTS)}
    places = header.places({**NUMBERS, **dict.fromkeys(TEXTS)})
    unread: dict[tuple[int, str], str] = {}
    lines: list[NDArray[np.int64]] = []
    begin = 0
    for rows, at in _chunks(reader, len(header.names), source):
        columns = list(zip(*rows, strict=True))
        for name in numbers:
            numbers[name].append(_numbers(columns[places[name]], begin, name, unread))
        for name in texts:
            texts[name].append(np.char.strip(np.array(columns[places[name]])))
        lines.append(np.array(at))
        begin += len(rows)
    if not begin:
        raise TableError(source, [Fault("", "there is no row below the header")])
    return Table(
        rows=begin,
        numbers={name: np.concatenate(parts) for name, parts in numbers.items()},
        texts={name: np.concatenate(parts) for name, parts in texts.items()},
        source=source,
        lines=np.concatenate(lines),
        names=header.as_given(),
        unread=unread,
    )


def _chunks(reader: Any, width: int, source: str) -> Iterator[tuple[list[list[str]], list[int]]]:
    """Rows and their lines, many at a time; empty lines are passed over."""

    def numbered() -> Iterator[tuple[list[str], int]]:
        for row in reader:
            if row:
                yield row, reader.line_num + 1  # the header was read before

    stream = numbered()
    while chunk := list(islice(stream, CHUNK_ROWS)):
        odd = [
            Fault(f"line {line}", f"has {len(row)} cells, the header has {width}")
            for row, line in chunk
            if len(row) != width
        ]
        if odd:
            more = max(len(odd) - FAULTS_SHOWN, 0)
            raise TableError(source, odd[:FAULTS_SHOWN], more=more)
        yield [row for row, _ in chunk], [line for _, line in chunk]


def _numbers(
    cells: Sequence[str], begin: int, name: str, unread: dict[tuple[int, str], str]
) -> FloatArray:
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array([_cell(cell, begin + i, name, unread) for i, cell in enumerate(cells)])


def _cell(value: Any, row: int, name: str, unread: dict[tuple[int, str], str]) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        unread[row, name] = str(value)
        return math.nan


def _allowed(name: str, column: FloatArray) -> NDArray[np.bool_]:
    empty, zero, _ = NUMBERS[name]
    good = np.isfinite(column) & ((column >= 0) if zero else (column > 0))
    if name == "annealed":
        good &= (column == 0) | (column == 1)
    return np.asarray(good | np.isnan(column) if empty else good)


def _has_comma(text: str) -> bool:
    return text.replace(",", ".", 1) != text and text.replace(",", "", 1).strip("-+. ").isdigit()


def _other_name(name: str) -> str:
    other = next(short for short, long in ALIASES.items() if long == name)
    return f"it may also be called {other}"


def _columns_hint() -> str:
    return f"a header with {', '.join(REQUIRED)} is needed"
