"""The table of a study's runs: the columns that every study has, and those of its own settings."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llem.errors import Fault, InputError
from llem.results.rows.served import FIXED, ServedRow
from llem.results.tables.observation import kinds_of

Row = Mapping[str, Any]
GROUPS = ("options.", "effective.", "prompts.", "arrival.", "layout.", "engine.")
_READERS = {"int": int, "float": float, "str": str}


def study_table(rows: Sequence[ServedRow]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Columns (int, float or str) and rows: the settings stand after what says which run it is."""
    names = sorted({name for row in rows for name in row.settings}, key=_order)
    settings = {name: _kind_of([row.settings.get(name) for row in rows]) for name in names}
    fixed = {name: kind for name, kind in kinds_of(ServedRow).items() if name in FIXED}
    at = list(fixed).index("params")
    kinds = dict([*list(fixed.items())[:at], *settings.items(), *list(fixed.items())[at:]])
    found = []
    for row in rows:
        values = {**vars(row), **{name: row.settings.get(name) for name in names}}
        found.append(
            {
                name: _told(values[name]) if kind == "str" else values[name]
                for name, kind in kinds.items()
            }
        )
    return kinds, found


def read_study(path: str | Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The table as `study_table` gave it, from CSV. Raises InputError naming every cell that cannot
    be read."""
    fixed = {name: kind for name, kind in kinds_of(ServedRow).items() if name in FIXED}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), [str(error)]) from None
    header = list(lines[0]) if lines else list(fixed)
    if missing := [name for name in FIXED if name not in header]:
        raise InputError(str(path), [f"no column {', '.join(missing[:5])}: aggregate again"])
    kinds = {
        name: fixed.get(name) or _kind_of([_guess(line[name]) for line in lines]) for name in header
    }
    faults: list[Fault] = []
    rows = []
    for number, line in enumerate(lines, start=2):
        row: dict[str, Any] = {}
        for name, kind in kinds.items():
            text = line[name]
            if text == "" or text is None:
                row[name] = {"float": math.nan, "str": ""}.get(kind)
                continue
            try:
                row[name] = _READERS[kind](text)
            except ValueError:
                faults.append(Fault(f"line {number}, {name}", f"{text!r} is no number"))
        rows.append(row)
    if faults:
        raise InputError(str(path), faults)
    return kinds, rows


def _order(name: str) -> tuple[int, str]:
    return next((i for i, group in enumerate(GROUPS) if name.startswith(group)), len(GROUPS)), name


def _kind_of(values: Iterable[Any]) -> str:
    known = [value for value in values if value is not None]
    if not known or any(isinstance(value, str) for value in known):
        return "str"
    return "int" if all(isinstance(value, int) for value in known) else "float"


def _guess(text: str) -> int | float | str | None:
    if text == "":
        return None
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _told(value: Any) -> str:
    # one row, one line: the file stays readable to grep
    return "" if value is None else " ".join(str(value).split())
