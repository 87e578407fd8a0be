"""`llem results`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import percent
from llem.cli._command import add_folder, add_json, note, print_json

if TYPE_CHECKING:
    from llem.pipeline.viewing import Rows

EXAMPLE = """  llem results list runs/first
  llem results list runs/first --where "params>1e6 and loss<3" --sort loss
  llem results list runs/first --sort energy_j:desc
  llem results list runs/first --group-by params --json
  llem results list runs/first --columns run_id,loss,energy_j,energy_reason
  llem results show runs/first 3f2a        # a run by the start of its id
  llem results compare runs/first 3f2a 9bc0
  llem results compare runs/study --by options.batch_size,model --plot
  llem results export runs/first --format parquet --out first.parquet
  llem results export runs/first --table phases --where "phase=train" --out -"""

WHERE = """what --where understands:
  a field, one of = != < <= > >= ~ (holds the text), and a value: 1e6, 10M,
  completed, "some text" or unknown; joined by and, or, not and brackets. What
  is not known fulfils nothing but `= unknown`."""

# What a list shows unless columns are chosen; the second word heads it.
SHOWN = (
    ("run_id", "run"), ("status", "status"), ("params", "params"), ("tokens", "tokens"),
    ("seed", "seed"), ("loss", "loss"), ("energy_j", "energy"), ("joules_per_token", "J/token"),
    ("duration_s", "time"), ("mfu", "MFU"), ("coverage", "complete"),
)  # fmt: skip
# The same of a study's runs, and of groups of them.
SHOWN_SERVED = (
    ("run_id", "run"), ("status", "status"), ("model", "model"), ("backend", "backend"),
    ("cycle", "cycle"), ("tokens_out", "tokens"), ("energy_j", "energy"),
    ("j_per_token", "J/token"), ("prefill_j", "prefill"), ("decode_j", "decode"),
    ("ttft_p50_s", "TTFT p50"), ("itl_p50_s", "ITL p50"), ("tokens_per_s", "tokens/s"),
    ("coverage", "complete"),
)  # fmt: skip
SHOWN_GROUP = (
    ("completed", "runs"), ("cycles", "cycles"), ("j_per_token", "J/token"),
    ("prefill_j_per_token", "prefill J/token"), ("decode_j_per_token", "decode J/token"),
    ("tokens_per_s", "tokens/s"), ("ttft_p50", "TTFT p50"), ("itl_p50", "ITL p50"),
    ("itl_p99", "ITL p99"), ("peak_memory_window_bytes", "memory"),
)  # fmt: skip
# What a server's engine told, where one did.
SHOWN_ENGINE = (
    ("engine.running_mean", "running"), ("engine.occupancy", "of batch_size"),
    ("engine.waiting_mean", "waiting"), ("engine.cache_mean", "KV cache"),
    ("engine.cache_max", "at most"), ("engine.preempted", "preempted"),
    ("engine.prefix_hits", "prefix hits"), ("engine.right_guesses", "right guesses"),
)  # fmt: skip
SHARES = ("mfu", "coverage", "device_coverage", "engine.occupancy", "engine.cache_mean",
          "engine.cache_max", "engine.prefix_hits", "engine.right_guesses")  # fmt: skip
# Of more groups than this not all pairs are listed.
FEW_GROUPS = 4
# An interval of less than this is of rounding.
LEAST_SHARE = 1e-6
# From here on an interval is told as a factor.
WIDE_SHARE = 0.5
FORMATS = ("csv", "parquet", "hdf5", "json")
SUFFIXES = {"csv": "csv", "parquet": "parquet", "hdf5": "h5", "json": "json"}
LONGEST = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="list|show|compare|export"
    )

    def action(name: str, words: str) -> argparse.ArgumentParser:
        made = actions.add_parser(
            name, help=words, description=words[0].upper() + words[1:] + ".",
            epilog=f"example:\n{EXAMPLE}\n\n{WHERE}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        add_folder(made)
        return made

    lists = action("list", "one line for each run, or for each group of them")
    show = action("show", "all that is known of one run")
    compare = action("compare", "the fields in which runs differ")
    export = action("export", "a table for other programs")
    for made in (lists, export):
        made.add_argument("--where", metavar="EXPRESSION", help="the rows that this is true of")
        made.add_argument("--columns", type=_names, metavar="A,B", help="these fields alone")
        made.add_argument(
            "--sort", type=_names, default=[], metavar="A,B:desc", help="B from the largest on"
        )
        made.add_argument(
            "--group-by", type=_names, metavar="A,B", help="runs with the same A and B together"
        )
    compare.add_argument(
        "--by", type=_names, metavar="A,B",
        help="of a study: its runs by these fields, with intervals over cycles, and their ratios",
    )  # fmt: skip
    compare.add_argument("--where", metavar="EXPRESSION", help="with --by: of these rows alone")
    compare.add_argument(
        "--plot", nargs="?", const="", metavar="DIR",
        help="with --by: draw joules per token against latency and throughput, as PNG and SVG",
    )  # fmt: skip
    for made, many in ((show, None), (compare, "*")):
        made.add_argument(
            "run", metavar="RUN", nargs=many, help="a run id of `llem results list`, or its start"
        )
    export.add_argument("--format", choices=FORMATS, help="default: by the name of --out, else csv")
    export.add_argument(
        "--table", default="observations", metavar="NAME",
        help="observations (default), phases, devices, ranks or cells; of a study deployments and "
        "latencies in the place of cells",
    )  # fmt: skip
    export.add_argument(
        "--out", metavar="FILE", help="default: DIR/results/export/<table>; - is standard output"
    )
    for made in (lists, show, compare):
        add_json(made)


def run(args: argparse.Namespace) -> int:
    return {"list": _list, "show": _show, "compare": _compare, "export": _export}[args.action](args)


def _names(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _chosen(args: argparse.Namespace, table: str = "observations") -> Rows:
    from llem.cluster import CampaignFolder
    from llem.errors import Fault, InputError, typed
    from llem.pipeline.viewing import load_rows, newer_records

    folder = CampaignFolder(args.dir)
    if args.group_by and table != "observations":
        raise InputError("the call", [Fault("--group-by", "is for the observations")])
    found = load_rows(folder, table).where(args.where)
    if newer := newer_records(folder):
        again = typed("llem", "aggregate", args.dir)
        note(f"{newer} run(s) have newer records: `{again}` takes them in")
    if args.group_by:
        found = found.grouped(args.group_by)
    return found.sorted(args.sort).columns(args.columns)


def _list(args: argparse.Namespace) -> int:
    found = _chosen(args)
    if args.json:
        print_json([dict(row) for row in found.rows])
        return 0
    from llem.cli._table import table

    _tell_rehearsal(found.rehearsal)
    # the line above says it once for all rows
    heads = {name: name for name in found.kinds if name != "rehearsal"}
    if not args.columns and not args.group_by:
        heads = dict(SHOWN_SERVED if found.study else SHOWN)
    if not found.rows:
        note("no run")
        return 0
    table([*heads.values()], [[_cell(name, row[name]) for name in heads] for row in found.rows])
    _tell_estimates(found.rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    from llem.cli._table import table
    from llem.cluster import CampaignFolder
    from llem.pipeline.viewing import show_run

    found = show_run(CampaignFolder(args.dir), args.run)
    if args.json:
        print_json(found)
        return 0
    _tell_rehearsal(str(found["run"].get("rehearsal") or ""))
    width = max(map(len, found["run"]))
    for name, value in found["run"].items():
        told = _cell(name, value, whole=True)
        print(f"{name.ljust(width)}  {told}")
    for attempt in found["attempts"]:
        files = ", ".join(f"{f['name']} ({_bytes(f['bytes'])})" for f in attempt["files"])
        print(f"\n{attempt['folder']}: {attempt['status']}")
        for line in (attempt["reason"], files or "no record"):
            if line:
                print(f"  {line}")
    for name, title, fields in (
        ("phases", "phases", ("attempt", "phase", "duration_s", "steps", "tokens", "energy_j")),
        ("devices", "devices", ("attempt", "host", "uuid", "domain", "quality", "energy_j",
                                "coverage", "slowed_s", "capped_s", "reason")),
        ("ranks", "ranks", ("attempt", "rank", "host", "steps", "tokens", "wait_s", "last_share",
                            "clock_off_s", "clock")),
    ):  # fmt: skip
        if rows := found[name]:
            print()
            cells = [[_cell(field, row[field]) for field in fields] for row in rows]
            table([*fields], cells, title=title)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder
    from llem.errors import Fault, InputError
    from llem.pipeline.viewing import compare_runs, load_rows

    if args.by:
        return _compare_groups(args)
    given = [name for name, value in (("--where", args.where), ("--plot", args.plot))
             if value is not None]  # fmt: skip
    if given:
        raise InputError("the call", [Fault(name, "goes with --by") for name in given])
    if len(args.run) < 2:
        raise InputError("the call", [Fault("RUN", "two runs or more are compared")])
    every = load_rows(CampaignFolder(args.dir))
    found = compare_runs(every, args.run)
    if args.json:
        told = {"rehearsal": every.rehearsal} if every.rehearsal else {}
        print_json([{**line, **told} for line in found])
        return 0
    _tell_rehearsal(every.rehearsal)
    from llem.cli._table import table

    names = next(f["values"] for f in found if f["field"] == "run_id") if found else args.run
    rows = [
        [line["field"], *(_cell(line["field"], value) for value in line["values"]),
         *(_ratio(r) for r in line["ratios"] or [None] * (len(names) - 1))]
        for line in found if line["field"] != "run_id"
    ]  # fmt: skip
    heads = ["", *names, *(["ratio"] * (len(names) - 1))]
    table(heads, rows)
    return 0


def _compare_groups(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder
    from llem.errors import Fault, InputError
    from llem.pipeline.viewing import compare_groups, load_rows

    if args.run:
        hint = "either runs or --by"
        raise InputError("the call", [Fault("RUN", "goes without --by", hint)])
    every = load_rows(CampaignFolder(args.dir)).where(args.where)
    found, pairs = compare_groups(every, args.by)
    if args.plot is not None:
        from llem.report import draw_study

        place = Path(args.plot) if args.plot else args.dir / "results" / "study-plots"
        drawn = draw_study(place, found.rows, args.by)
        note(f"written: {', '.join(str(path) for path in drawn)}")
    if args.json:
        print_json({"groups": [dict(row) for row in found.rows],
                    "ratios": [vars(pair) for pair in pairs]})  # fmt: skip
        return 0
    from llem.cli._table import table
    from llem.results.study.deployments import group_name
    from llem.results.tables.where import known_or_none

    _tell_rehearsal(every.rehearsal)
    for title, shown in (("", SHOWN_GROUP), ("the engine", SHOWN_ENGINE)):
        if shown[0][0] in found.kinds:
            if title:
                print()
            heads = [*args.by, *(head for _, head in shown)]
            rows = [[*(_cell(name, row[name]) for name in args.by),
                     *(_with_interval(name, row) for name, _ in shown)]
                    for row in found.rows]  # fmt: skip
            table(heads, rows, title=title)
    print("x/ and ±: to either end of the 95 % interval, with cycles as clusters")
    _tell_estimates(every.rows)
    if pairs:
        print()
        if len(found.rows) > FEW_GROUPS:
            best = min(found.rows, key=lambda row: (row["j_per_token"] != row["j_per_token"],
                                                    row["j_per_token"]))  # fmt: skip
            key = tuple(known_or_none(best[name]) for name in args.by)
            pairs = [
                p if p.first == key else p.turned() for p in pairs if key in (p.first, p.second)
            ]
            print("against the least (all pairs: --json)")
        lines = [
            [group_name(p.second), group_name(p.first), _ratio(p.ratio), _interval(p.low, p.high),
             p.how]
            for p in pairs
        ]  # fmt: skip
        table(["J/token of", "over", "ratio", "95 % interval", "cycles"], lines)
    return 0


def _with_interval(name: str, row: Any) -> str:
    """A value, and how far its interval reaches to either side, as a share of it."""
    from llem._numerals import significant

    value = row[name] if name in row else row[f"{name}_s"]
    high = row.get(f"{name}_high", row.get(f"{name}_high_s", float("nan")))
    told = _cell(name if name in row else f"{name}_s", value)
    # intervals are symmetric on a log scale
    share = high / value - 1 if value else float("nan")
    if not share >= LEAST_SHARE:
        return told
    if share < WIDE_SHARE:
        return f"{told} ±{percent(share, digits=2)}"
    return f"{told} x/{significant(high / value, 2)}"


def _interval(low: float, high: float) -> str:
    from llem._numerals import UNKNOWN, significant

    return f"{significant(low)} to {significant(high)}" if low == low else UNKNOWN


def _export(args: argparse.Namespace) -> int:
    from llem.errors import Fault, InputError
    from llem.pipeline.viewing import STUDY_TABLES, TABLES
    from llem.results.tables.export import csv_text, export_rows, json_text

    known = {f".{suffix}": name for name, suffix in SUFFIXES.items()} | {".hdf5": "hdf5"}
    format = args.format or known.get(Path(args.out or "").suffix, "csv")
    found = _chosen(args, args.table)
    if args.out == "-":
        if format not in ("csv", "json"):
            raise InputError("the call", [Fault("--out", f"{format} is no text: name a file")])
        text = (csv_text if format == "csv" else json_text)(found.rows, found.kinds)
        sys.stdout.write(text)
        return 0
    results = args.dir / "results"
    out = Path(args.out or results / "export" / f"{args.table}.{SUFFIXES[format]}")
    own = tuple(f"{name}.csv" for name in {*TABLES, *STUDY_TABLES})
    if out.parent.resolve() == results.resolve() and out.name in own:
        hint = "another name, or leave --out away"
        raise InputError("the call", [Fault("--out", f"{out} is llem's own table", hint)])
    export_rows(found.rows, found.kinds, out, format=format)
    print(f"{len(found.rows)} rows: {out}")
    return 0


def _tell_estimates(rows: Sequence[Mapping[str, Any]]) -> None:
    """Whose joules nobody measured, below a table that has no column for it."""
    from llem._numerals import known as known_number

    known = [row for row in rows if row.get("energy_quality") and known_number(row.get("energy_j"))]
    estimated = sum(row["energy_quality"] == "model" for row in known)
    if estimated:
        of = "every run" if estimated == len(known) else f"{estimated} of {len(known)} runs"
        note(f"the energy of {of} is estimated by a model, not measured")


def _tell_rehearsal(law: str) -> None:
    if law:
        print(f"REHEARSED: nothing was trained or measured; the planted law is {law}\n")


def _cell(name: str, value: Any, *, whole: bool = False) -> str:
    """A value as a person reads it, by what the field's name ends in."""
    from llem._numerals import (
        UNKNOWN,
        format_count,
        format_duration,
        format_energy,
        format_flops,
        format_si,
        percent,
        significant,
    )
    from llem.results.tables.where import is_known

    if not is_known(value):
        return UNKNOWN
    if isinstance(value, str):
        return value if whole or len(value) <= LONGEST else value[: LONGEST - 1] + "…"
    if name.startswith(("params", "tokens", "unique_tokens")) and not name.endswith("_per_s"):
        told = format_count(value)
    elif name.startswith("flops"):
        told = format_flops(value)
    elif name.endswith("_j"):
        told = format_energy(value)
    elif name in ("duration_s", "gpu_seconds"):
        told = format_duration(value)
    elif name.startswith(("ttft_", "itl_", "latency_")):
        told = format_si(value, "s")
    elif name in SHARES:
        told = percent(value)
    elif name.startswith("peak_memory"):
        told = _bytes(value)
    else:
        return str(value) if isinstance(value, int) else significant(value, 4)
    return f"{told}  ({value!r})" if whole else told


def _ratio(value: float | None) -> str:
    from llem._numerals import UNKNOWN, significant

    return "" if value is None else UNKNOWN if value != value else f"{significant(value)}x"


def _bytes(value: float) -> str:
    from llem._numerals import format_si

    return format_si(value, "B")
