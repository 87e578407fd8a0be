"""What a campaign has given, looked at: rows chosen, grouped, compared, and one run whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.errors import Fault, InputError, did_you_mean, run_named
from llem.pipeline.campaigns import aggregate_campaign, is_study
from llem.pipeline.files import DEPLOYMENTS_FILE, OBSERVATIONS_FILE, SAMPLES_FILE

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder
    from llem.results.ranks.pool import Pool
    from llem.results.study.deployments import PairRatio

TABLES = ("observations", "phases", "devices", "ranks", "cells")
# What a study has in the place of cells.
STUDY_TABLES = ("observations", "phases", "devices", "ranks", "deployments", "latencies")
CANDIDATES = 8
DESCENDING = ":desc"
REHEARSAL = "rehearsal"
STATUSES = ("completed", "diverged", "interrupted", "failed", "unfinished", "missing")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a table; `kinds` are its columns: int, float or str.

    `rehearsal` is the planted law where the campaign was only rehearsed. Then every row says so in
    a column `rehearsal`, whatever columns are chosen.
    """

    kinds: Mapping[str, str]
    rows: tuple[Mapping[str, Any], ...]
    rehearsal: str = ""
    # Of a study's runs: the samples that percentiles over several of them are of, by run id.
    pools: Mapping[str, Mapping[str, Pool]] | None = None

    @property
    def study(self) -> bool:
        """Whether these are runs that served models."""
        return self.pools is not None

    def where(self, text: str | None) -> Rows:
        """Those that an expression such as `params>1e6 and status=completed` is true of."""
        if text is None:
            return self
        from llem.records import QUALITIES
        from llem.results.tables.where import parse_where

        words = {"status": STATUSES, "energy_quality": QUALITIES}
        test = parse_where(text, self.kinds, words=words)
        return replace(self, rows=tuple(row for row in self.rows if test(row)))

    def columns(self, names: Sequence[str] | None) -> Rows:
        """With these columns alone, in this order. Raises InputError naming unknown ones."""
        if names is None:
            return self
        _check(names, self.kinds, "--columns")
        kinds = {name: self.kinds[name] for name in names}
        return Rows(
            kinds=kinds, rows=tuple({n: row[n] for n in names} for row in self.rows)
        )._marked(self.rehearsal)

    def sorted(self, by: Sequence[str]) -> Rows:
        """By these columns, `loss:desc` from the largest on; what is not known comes last."""
        from llem.results.tables.where import is_known

        _check([name.removesuffix(DESCENDING) for name in by], self.kinds, "--sort")
        rows = list(self.rows)
        for name in reversed(by):
            field = name.removesuffix(DESCENDING)
            known = [row for row in rows if is_known(row[field])]
            known.sort(key=lambda row: row[field], reverse=name.endswith(DESCENDING))
            rows = known + [row for row in rows if not is_known(row[field])]
        return replace(self, rows=tuple(rows))

    def grouped(self, by: Sequence[str]) -> Rows:
        """One row for each set of values of these fields; see `llem.results.tables.grouping`, and
        `llem.results.study.deployments` of a study."""
        from llem.results.tables.grouping import group_rows

        _check(by, self.kinds, "--group-by")
        if self.pools is not None:
            from llem.results.study.deployments import group_served, kind_of

            rows = tuple(group_served(self.rows, by, self.pools))
            kinds = {name: kind_of(name, self.kinds) for name in (rows[0] if rows else by)}
            return Rows(kinds=kinds, rows=rows)._marked(self.rehearsal)
        rows = tuple(group_rows(self.rows, by))
        whole = {"runs": "int", "completed": "int", "without_loss": "int", "without_energy": "int"}
        names = rows[0] if rows else [*by]
        kinds = {name: whole.get(name) or self.kinds.get(name, "float") for name in names}
        return Rows(kinds=kinds, rows=rows)._marked(self.rehearsal)

    def _marked(self, law: str) -> Rows:
        if not law:
            return self
        return replace(
            self,
            kinds={**self.kinds, REHEARSAL: "str"},
            rows=tuple({**row, REHEARSAL: law} for row in self.rows),
            rehearsal=law,
        )

    def find(self, word: str) -> Mapping[str, Any]:
        """The row of the run that `word` names, whole or by how its id begins.

        Raises InputError where there is none, or more than one: then with the candidates.
        """
        by_id = {str(row["run_id"]): row for row in self.rows}
        see = "see `llem results list`"
        return by_id[run_named(word, list(by_id), place="campaign", see=see, most=CANDIDATES)]


def load_rows(folder: CampaignFolder, table: str = "observations") -> Rows:
    """A table of the last aggregation; where there is none yet, it is made first.

    Raises InputError for a folder that is no campaign, another table, or one that is damaged.
    """
    from llem.results import CellRatio, DeviceRow, Observation, PhaseEnergy, RankRow
    from llem.results.tables.observation import kinds_of, read_rows

    of = {"observations": Observation, "phases": PhaseEnergy, "devices": DeviceRow,
          "ranks": RankRow, "cells": CellRatio}  # fmt: skip
    plan = folder.plan_values()
    study = is_study(plan)
    tables = STUDY_TABLES if study else TABLES
    if table not in tables:
        hint = did_you_mean(table, tables)
        raise InputError("the call", [Fault("table", f"there is no {table!r}", hint)])
    law = str((plan.get("rehearsal") or {}).get("law", ""))
    if study and (found := _load_study(folder, table)) is not None:
        return found._marked(law)
    path = folder.results / f"{table}.csv"
    if not path.is_file():
        aggregate_campaign(folder)
    kind: type[Any] = of[table]
    rows = tuple(asdict(row) for row in read_rows(kind, path))
    return Rows(kinds=kinds_of(kind), rows=rows)._marked(law)


def _load_study(folder: CampaignFolder, table: str) -> Rows | None:
    """A table that a study alone has; None for those that all campaigns have."""
    from llem.results.ranks.pool import read_pools
    from llem.results.study.deployments import deployment_table
    from llem.results.study.table import read_study

    if table not in ("observations", "deployments", "latencies"):
        return None
    needed = (OBSERVATIONS_FILE, DEPLOYMENTS_FILE, SAMPLES_FILE)
    if not all((folder.results / name).is_file() for name in needed):
        aggregate_campaign(folder)
    kinds, rows = read_study(folder.results / OBSERVATIONS_FILE)
    pools = read_pools(folder.results / SAMPLES_FILE)
    if table == "deployments":
        kinds, rows = deployment_table(kinds, rows, pools)
    elif table == "latencies":
        kinds = {"run_id": "str", "time": "str", "ns": "int", "count": "int"}
        rows = [
            {"run_id": run_id, "time": name, "ns": ns, "count": count}
            for run_id, of_run in pools.items()
            for name, pool in of_run.items()
            for ns, count in zip(pool.ns.tolist(), pool.count.tolist(), strict=True)
        ]
    return Rows(kinds=kinds, rows=tuple(rows), pools=pools if table == "observations" else None)


def compare_groups(rows: Rows, by: Sequence[str]) -> tuple[Rows, list[PairRatio]]:
    """A study's runs by these fields, and each two groups' joules per token against each other.

    Raises InputError for a campaign that trains, and for unknown fields.
    """
    from llem.results.study.deployments import pair_ratios

    if not rows.study:
        raise InputError("the call", [Fault("--by", "is for studies of served models")])
    _check(by, rows.kinds, "--by")
    return rows.grouped(by), pair_ratios(rows.rows, by)


def newer_records(folder: CampaignFolder) -> int:
    """How many runs have records or end records newer than the last aggregation."""
    try:
        made_ns = (folder.results / OBSERVATIONS_FILE).stat().st_mtime_ns
    except OSError:
        return 0
    return sum(
        any(_written_ns(path) > made_ns for attempt in folder.attempts(run.name)
            for path in (*attempt.glob("*.h5"), attempt / "end.json"))
        for run in (folder.runs.iterdir() if folder.runs.is_dir() else ())
    )  # fmt: skip


def show_run(folder: CampaignFolder, word: str) -> dict[str, Any]:
    """All that is known of one run: its row, how each attempt ended, its phases, devices, files."""
    rows = load_rows(folder)
    row = rows.find(word)
    run_id = str(row["run_id"])
    attempts = []
    for path in folder.attempts(run_id):
        files = [{"name": f.name, "bytes": f.stat().st_size} for f in sorted(path.glob("*.h5"))]
        attempts.append(
            {
                "folder": str(path),
                **_end(path, run_id, rehearsed=bool(rows.rehearsal)),
                "files": files,
            }
        )
    parts = {
        table: [r for r in load_rows(folder, table).rows if r["run_id"] == run_id]
        for table in ("phases", "devices", "ranks")
    }
    return {"run": dict(row), "attempts": attempts, **parts}


def compare_runs(rows: Rows, words: Sequence[str]) -> list[dict[str, Any]]:
    """The fields in which runs differ: `field`, the `values` in the order of `words`, and for
    numbers the `ratios` to the first."""
    runs = [rows.find(word) for word in words]
    found = []
    for field, kind in rows.kinds.items():
        values = [run[field] for run in runs]
        if all(_alike(value, values[0]) for value in values):
            continue
        numbers = kind in ("int", "float")
        found.append(
            {"field": field, "values": values, "ratios": _ratios(values) if numbers else None}
        )
    return found


def _ratios(values: Sequence[Any]) -> list[float]:
    first = values[0]
    return [
        value / first if first and value is not None and math.isfinite(first) else math.nan
        for value in values[1:]
    ]


def _alike(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))


def _end(attempt: Path, run_id: str, *, rehearsed: bool) -> dict[str, Any]:
    from llem.results.ranks.endrecord import read_end

    end = read_end(attempt / "end.json", run_id=run_id, rehearsed=rehearsed)
    if end is None:
        return {"status": "unfinished", "reason": "no end record: it was killed or still runs"}
    if isinstance(end, str):
        return {"status": "unfinished", "reason": end}
    return {"status": end.status, "reason": end.reason, "steps": end.steps, "tokens": end.tokens}


def _check(names: Iterable[str], kinds: Mapping[str, str], option: str) -> None:
    faults = [
        Fault(option, f"there is no field {name!r}", did_you_mean(name, list(kinds)))
        for name in names
        if name not in kinds
    ]
    if faults:
        raise InputError("the call", faults)


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
