"""One row for each planned run, and its table on disk."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from llem.errors import Fault, InputError

NAN = math.nan

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one planned run gave. Unknown numbers are NaN, and a reason says why.

    status            completed, diverged, interrupted, failed (the end record's word),
                      unfinished (killed, or still running), missing (never started)
    tokens            tokens (or samples) trained on by all ranks, each step number counted once
    tokens_trunk      those of `tokens` that another run trained, from whose checkpoint this one
                      began: energy, time and what follows from them are of the rest alone
    unique_tokens     those of `tokens` that no step before had read; epochs is tokens over these
    flops             tokens x the plan's FLOPs per token
    loss, loss_se     evaluation at the last step of the attempt that completed, nats per token
    energy_j          gross energy of all attempts; energy_seen_j is the part that was measured
    energy_domains    what is in energy_j: gpu, module, package, dram, node; rows can be compared
                      where these are the same
    energy_net_j      less idle power x time, never clipped; idle_source says whose idle power
    joules_per_token  energy_j / tokens; its standard error is that of a ratio of sums over
                      joules_per_token_clusters
    wait_energy_j     what devices used while their rank had ended a step and another had not; NaN
                      where ranks are missing or their hosts' clocks were not compared
    steady_from_step  the first step known to be steady in the attempt; the ratio from there on
    energy_facility_j energy_j x PUE; cost and carbon_g follow from it
    duration_s        sum of the attempts' windows; gpu_seconds is that x ranks
    tokens_per_s      tokens / time from each attempt's first step to its last, redone steps' time
                      included; mfu is flops / (that time x ranks x peak)
    peak_memory_bytes the largest of the attempts' own words: tensors of the fullest rank
    device_coverage   the least covered device's part of its window that was sampled
    rehearsal         the planted law where nothing was trained or measured, empty for a real run
    coverage          least of: ranks, steps and device-seconds seen / expected
    """

    run_id: str
    attempt: int | None = None
    status: str = "missing"
    reason: str = ""
    seed: int | None = None
    level: int | None = None
    params: int | None = None
    params_nonembedding: int | None = None
    tokens: float = NAN
    flops: float = NAN
    loss: float = NAN
    loss_se: float = NAN
    energy_j: float = NAN
    energy_net_j: float = NAN
    energy_facility_j: float = NAN
    energy_quality: str = "none"
    energy_reason: str = ""
    energy_domains: str = ""
    energy_seen_j: float = NAN
    idle_source: str = ""
    joules_per_token: float = NAN
    joules_per_token_se: float = NAN
    joules_per_token_clusters: str = ""
    wait_energy_j: float = NAN
    steady_from_step: int | None = None
    steady_joules_per_token: float = NAN
    steady_reason: str = ""
    cost: float = NAN
    carbon_g: float = NAN
    carbon_reason: str = ""
    duration_s: float = NAN
    gpu_seconds: float = NAN
    mfu: float = NAN
    tokens_per_s: float = NAN
    peak_memory_bytes: float = NAN
    nodes: int = 0
    ranks: int = 0
    coverage: float = 0.0
    expected_nodes: int = 0
    expected_ranks: int = 0
    steps_seen: int = 0
    expected_steps: int = 0
    devices: int = 0
    device_seconds: float = 0.0
    device_coverage: float = 0.0
    expected_device_seconds: float = NAN
    attempts: int = 0
    tokens_planned: float = NAN
    tokens_seen: float = NAN
    unique_tokens: float = NAN
    epochs: float = NAN
    tokens_trunk: float = 0.0
    flops_planned: float = NAN
    workload: str = "training"
    rehearsal: str = ""


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Observation))


def _optional_int(text: str) -> int | None:
    return int(text) if text else None


def _float(text: str) -> float:
    return float(text) if text else NAN


# How a column's text is read, by the annotation of its field.
_READERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "int | None": _optional_int,
    "float": _float,
}


def write_observations(observations: Iterable[Observation], path: str | Path) -> None:
    """Write the rows as CSV: whole or not at all, even where the machine stops in the middle."""
    write_rows(Observation, observations, path)


def write_rows(kind: type[Any], rows: Iterable[Any], path: str | Path) -> None:
    """Write dataclasses of one kind as CSV: whole or not at all."""
    path = Path(path)
    columns = [f.name for f in fields(kind)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_text(getattr(row, name)) for name in columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_observations(path: str | Path) -> tuple[Observation, ...]:
    """Inverse of `write_observations`; columns of other tools are passed over.

    Raises InputError naming every line and column that cannot be read.
    """
    return tuple(read_rows(Observation, path))


def read_rows(kind: type[Row], path: str | Path) -> list[Row]:
    """Inverse of `write_rows`. Raises InputError as `read_observations` does."""
    readers = {f.name: _READERS[str(f.type)] for f in fields(kind)}  # type: ignore[arg-type]
    first = next(iter(readers))
    faults: list[Fault] = []
    rows: list[Row] = []
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if first not in (table.fieldnames or ()):
                raise InputError(str(path), [Fault("", f"no column {first}")])
            for line in table:
                values: dict[str, Any] = {}
                for name, read in readers.items():
                    if line.get(name) is None:
                        continue
                    try:
                        values[name] = read(line[name])
                    except ValueError:
                        where = f"line {table.line_num}, {name}"
                        faults.append(Fault(where, f"{line[name]!r} is no number"))
                rows.append(kind(**values))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), [str(error)]) from None
    except TypeError:
        raise InputError(str(path), ["columns are missing: aggregate again"]) from None
    if faults:
        raise InputError(str(path), faults)
    return rows


def kinds_of(kind: type[Any]) -> dict[str, str]:
    """The columns of a table as int, float or str, in their order."""
    return {f.name: str(f.type).removesuffix(" | None") for f in fields(kind)}


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return repr(float(value))
    # one row, one line: the file stays readable to grep
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)
