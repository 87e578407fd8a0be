"""Observations -> the law: which rows are used, what is refused, and fit.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from llem.errors import Fault, InputError, did_you_mean
from llem.pipeline.files import FIT_FILE, OBSERVATIONS_FILE
from llem.pipeline.slices import EdgeMinimaError, Grid, edge_minima
from llem.pipeline.table import Table

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder
    from llem.pipeline.serving import ServeQuestion
    from llem.results import Observation
    from llem.scaling import Estimator, Target
    from llem.scaling.answers.optimum import Prices


Rows = Table | Sequence[Mapping[str, Any]]
Mask = NDArray[np.bool_]
# Columns passed on as they are, where anything in them is known.
PASSED = (
    "flops",
    "params_nonembedding",
    "unique_tokens",
    "energy_j",
    "duration_s",
    "gpu_seconds",
    "ranks",
    "nodes",
    "steps",
)
# Of a run that began from another's checkpoint these are of its own steps, not of all its tokens.
OF_OWN_STEPS = ("energy_j", "duration_s", "gpu_seconds")
# Columns in which 0 means that nothing is known.
COUNTED = ("ranks", "nodes", "steps")


@dataclass(frozen=True)
class Selected:
    """What is fitted: columns (n,) as `fit_law` takes them, and the account of what is not.

    left_out: {run_id, reason}. checkpoints: what `select_checkpoints` tells, None where each run
    has one row. grid: its slices, if it was designed as isoFLOP slices. rows: (n,) of the table.
    unlike: what is to be known of energies that are not of the same, '' where all are.
    """

    columns: dict[str, Any]
    left_out: list[dict[str, Any]]
    checkpoints: dict[str, Any] | None
    grid: Grid
    rows: NDArray[np.intp]
    unlike: str = ""


def fit_observations(
    rows: Rows,
    *,
    law: str = "chinchilla",
    targets: Sequence[Target | float] = (),
    estimator: Estimator | None = None,
    bootstrap: int = 1000,
    resampling: Literal["runs", "rows"] = "runs",
    level: float = 0.95,
    seed: int = 0,
    exclude: frozenset[str] = frozenset(),
    excluded: Sequence[Mapping[str, Any]] = (),
    checkpoints: Literal["drop", "correct", "keep"] = "drop",
    weights: Literal["run", "row"] = "run",
    prices: Prices | None = None,
    unique_tokens: float | None = None,
    exponent_error: float | None = None,
    declared: Mapping[str, str] | None = None,
    allow_edge_minima: bool = False,
    serve: ServeQuestion | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fit a law to observations (a Table, or mappings with its columns), as fit.json.

    Rows that did not complete, have no loss or are named in `exclude` are left out, by name and
    with the reason; `excluded` adds what was left out before. Where runs have several rows, those
    are chosen and weighed as `checkpoints` (what is done with un-annealed ones) and `weights`
    say, see `select_checkpoints`. unique_tokens (of the data) and exponent_error (the law's own)
    hold at the targets, prices for money; declared answers the checklist; `serve` asks for the size
    that is best over training and serving. The other options are those of `fit_law`.

    Raises TableError and ScalingDataError where the rows cannot carry a law, EdgeMinimaError where
    slices of a designed isoFLOP grid have no minimum, unless `allow_edge_minima`.
    """
    from llem.scaling import ScalingDataError, fit_law
    from llem.scaling.answers.allowance import EXPONENT_ERROR
    from llem.scaling.judging.checklist import checklist

    table = Table.of(rows)
    selected = select(
        table, exclude=exclude, excluded=excluded, checkpoints=checkpoints, weights=weights
    )
    if selected.grid.refused and not allow_edge_minima:
        raise EdgeMinimaError(table.source, selected.grid)
    try:
        fit = fit_law(
            **selected.columns,
            law=law,
            estimator=estimator,
            bootstrap=bootstrap,
            resampling=resampling,
            level=level,
            seed=seed,
            targets=tuple(targets),
            excluded=tuple(selected.left_out),
            prices=prices,
            target_unique_tokens=unique_tokens,
            exponent_error=EXPONENT_ERROR if exponent_error is None else exponent_error,
            watch=watch,
        )
    except ScalingDataError as error:
        # The fitter knows columns; the reader knows which file they come from.
        error.message = error.message.replace(error.source, table.source, 1)
        error.source = table.source
        raise
    out = fit.to_dict()
    if serve is not None:
        out["train_and_serve"] = serve.answer(fit)
    for worst in out["residuals"]["worst"]:
        row = int(selected.rows[worst["row"]])
        worst |= {"row": row, "run_id": table.name(row)}
    out["checkpoints"] = selected.checkpoints
    out["refusals"] = selected.grid.to_dict(allowed=allow_edge_minima)
    out["warnings"] += selected.grid.warnings()
    if selected.unlike:
        out["warnings"].append(selected.unlike)
    if law_planted := _rehearsal(table):
        out["provenance"] = {**(out.get("provenance") or {}), "rehearsal": {"law": law_planted}}
        out["warnings"].insert(
            0,
            f"REHEARSED: nothing was trained or measured; every loss is of the law {law_planted}, "
            "with noise",
        )
    out["energy_quality"] = _energy_quality(table, selected.rows)
    out["checklist"] = checklist(out, declared=declared)
    return out


def _energy_quality(table: Table, rows: NDArray[np.intp]) -> dict[str, int]:
    """How the energy of the fitted rows is known -> how many; empty where no column tells."""
    told = [str(quality) for quality in table.text("energy_quality")[rows] if str(quality)]
    return {quality: told.count(quality) for quality in sorted(set(told))}


def _rehearsal(table: Table) -> str:
    """The planted law where the rows were rehearsed, else ''. InputError where only some were."""
    laws = sorted(set(table.text("rehearsal").tolist()))
    if len(laws) > 1:
        told = ", ".join(repr(law) if law else "none (measured)" for law in laws)
        text = f"rows of several worlds cannot be fitted together: {told}"
        raise InputError(table.source, [Fault("rehearsal", text)])
    return str(laws[0]) if laws else ""


def compare_observations(
    rows: Rows,
    laws: Sequence[str],
    *,
    estimator: Estimator | None = None,
    exclude: frozenset[str] = frozenset(),
    checkpoints: Literal["drop", "correct", "keep"] = "drop",
    weights: Literal["run", "row"] = "run",
) -> dict[str, Any]:
    """Rank `laws` by their error on the largest compute, held out; see `compare_laws`."""
    from llem.scaling import compare_laws

    selected = select(Table.of(rows), exclude=exclude, checkpoints=checkpoints, weights=weights)
    return compare_laws(**selected.columns, laws=list(laws), estimator=estimator)


def fit_campaign(
    folder: CampaignFolder,
    *,
    table: Table | None = None,
    targets: Sequence[Target | float] = (),
    law: str | None = None,
    prices: Prices | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fit the campaign's law to its observations and write `results/fit.json`.

    table: the observations where they were read before. law, targets and prices default to the
    campaign's and its site's; options are those of `fit_observations`.
    """
    from llem.cluster import write_json
    from llem.pipeline.declaring import declared_of
    from llem.report.promise import PARTS

    values = folder.plan_values()
    # A user's own words stand before the plan's.
    options["declared"] = {**declared_of(values), **(options.get("declared") or {})}
    fit = fit_observations(
        campaign_table(folder) if table is None else table,
        law=law or values["campaign"].get("law", "chinchilla"),
        targets=targets or (values["design"]["target_flops"],),
        prices=campaign_prices(folder) if prices is None else prices,
        **options,
    )
    fit["provenance"] = {
        **(fit.get("provenance") or {}),
        "campaign": values["campaign"]["name"],
        "plan": values["digest"],
        "llem": values["llem"],
    }
    # What the plan promised, so that whoever reads the answer sees whether it was kept.
    design = values["design"]
    if not targets and design.get(PARTS[0]) is not None:
        fit["promise"] = {name: design.get(name) for name in (*PARTS, "noise", "noise_degrees")}
    write_json(folder.results / FIT_FILE, fit)
    return fit


def campaign_prices(
    folder: CampaignFolder,
    *,
    per_kwh: float | None = None,
    per_gpu_hour: float | None = None,
    pue: float | None = None,
) -> Prices:
    """What the campaign's site pays; what is given stands in its place."""
    from llem.scaling.answers.optimum import Prices

    site = folder.plan_values()["site"]
    prices = site.get("prices") or {}
    return Prices(
        per_kwh=prices.get("per_kwh") if per_kwh is None else per_kwh,
        per_gpu_hour=prices.get("per_gpu_hour") if per_gpu_hour is None else per_gpu_hour,
        currency=prices.get("currency") or Prices().currency,
        pue=site.get("pue", 1.0) if pue is None else pue,
    )


def campaign_table(folder: CampaignFolder, rows: Sequence[Observation] | None = None) -> Table:
    """The campaign's observations as columns, read from disk where they are not given."""
    from dataclasses import asdict

    from llem.results import read_observations

    path = folder.results / OBSERVATIONS_FILE
    if rows is None:
        if not path.is_file():
            raise InputError(str(path), ["there is no such file: run `llem aggregate` first"])
        rows = read_observations(path)
    # What a step takes of the layout is told by the steps of the plan.
    told = [{**asdict(row), "steps": row.expected_steps or row.steps_seen} for row in rows]
    return replace(Table.of(told), source=str(path))


def select(
    table: Table,
    *,
    exclude: frozenset[str] = frozenset(),
    excluded: Sequence[Mapping[str, Any]] = (),
    checkpoints: Literal["drop", "correct", "keep"] = "drop",
    weights: Literal["run", "row"] = "run",
) -> Selected:
    """The rows to fit, as columns. Raises TableError, InputError."""
    used, reasons = _usable(table, exclude)
    table.check(used)
    left_out = [dict(item) for item in excluded]
    left_out += [{"run_id": table.name(i), "reason": reasons[i]} for i in sorted(reasons)]
    columns: dict[str, Any] = {
        name: table.number(name)[used] for name in ("params", "tokens", "loss")
    }
    columns["weight"] = table.number("weight")[used] if "weight" in table.numbers else None
    columns["run_id"] = table.text("run_id")[used] if "run_id" in table.texts else None
    other, unlike = _unlike_energy(table, used)
    for name in PASSED:
        column = table.number(name)[used]
        if name == "energy_j":
            column = np.where(other, np.nan, column)
        if name in COUNTED:
            column = np.where(column > 0, column, np.nan)
        if name in OF_OWN_STEPS:
            column = np.where(table.number("tokens_trunk")[used] > 0, np.nan, column)
        if np.isfinite(column).any():
            columns[name] = column
    account = None
    if columns["run_id"] is not None:
        account = _choose_checkpoints(table, used, columns, checkpoints, weights)
    rows = np.flatnonzero(used)
    if account is not None:
        rows = np.delete(rows, np.searchsorted(rows, [d["row"] for d in account["dropped"]]))
    return Selected(columns, left_out, account, _grid(columns), rows, unlike)


def _unlike_energy(table: Table, used: Mask) -> tuple[Mask, str]:
    """Rows (n,) of the `used` whose energy is of other domains than that of most, and a sentence on
    them: a law of joules with the processors' in some would be one of neither."""
    domains = table.text("energy_domains")[used]
    known = (domains != "") & np.isfinite(table.number("energy_j")[used])
    kinds, counts = np.unique(domains[known], return_counts=True)
    if kinds.size < 2:
        return np.zeros(domains.size, dtype=bool), ""
    most = kinds[np.argmax(counts)]
    told = ", ".join(f"{n} of {kind}" for kind, n in zip(kinds, counts, strict=True))
    text = f"energy is not of the same in all runs ({told}): its law is of those of {most}"
    return known & (domains != most), text


def _usable(table: Table, exclude: frozenset[str]) -> tuple[Mask, dict[int, str]]:
    """Rows to fit (n,), and row -> why of the others. InputError for names that no run has.

    Only a table that tells a status may lack losses: elsewhere an empty loss is a fault.
    """
    reasons: dict[int, str] = {}
    if "status" in table.texts:
        status, why = table.text("status"), table.text("reason")
        lost = ~np.isfinite(table.number("loss"))
        for i in np.flatnonzero(((status != "completed") & (status != "")) | lost).tolist():
            if status[i] in ("", "completed"):
                if (i, "loss") not in table.unread:
                    reasons[i] = "no evaluation loss"
            else:
                reasons[i] = f"{status[i]}: {why[i]}" if why[i] else str(status[i])
    if exclude:
        names = [table.name(i) for i in range(table.rows)]
        known = list(dict.fromkeys(names))
        unknown = sorted(exclude.difference(known))
        if unknown:
            faults = [Fault(n, "there is no such run", did_you_mean(n, known)) for n in unknown]
            raise InputError(table.source, faults)
        reasons |= {i: "excluded by the user" for i, n in enumerate(names) if n in exclude}
    used = np.ones(table.rows, dtype=bool)
    used[list(reasons)] = False
    return used, reasons


def _choose_checkpoints(
    table: Table,
    used: Mask,
    columns: dict[str, Any],
    unannealed: Literal["drop", "correct", "keep"],
    weights: Literal["run", "row"],
) -> dict[str, Any] | None:
    """Choose and weigh the rows of runs that have several; None where no run has.

    Rows of one name are checkpoints of a run where they have one size and different tokens; a
    name for several sizes only says what is resampled together.
    """
    _, run = np.unique(columns["run_id"], return_inverse=True)
    runs = int(run.max(initial=-1)) + 1
    if runs == run.size:
        return None

    def differs(column: NDArray[np.float64]) -> Mask:
        low, high = np.full(runs, np.inf), np.zeros(runs)
        np.minimum.at(low, run, column)
        np.maximum.at(high, run, column)
        return high > low * (1 + 1e-9)

    several = ~differs(columns["params"]) & differs(columns["tokens"])
    if not several.any():
        return None
    from llem.scaling import select_checkpoints

    # Rows that are no checkpoints stand each for themselves.
    key = np.where(several[run], run, runs + np.arange(run.size))
    family = table.text("family")[used] if "family" in table.texts else None
    chosen = select_checkpoints(
        key,
        columns["tokens"],
        columns["loss"],
        learning_rate=table.number("learning_rate")[used],
        annealed=table.number("annealed")[used],
        warmup_tokens=table.number("warmup_tokens")[used],
        family=None if family is None else np.where(family == "", key.astype(str), family),
        unannealed=unannealed,
        weights=weights,
    )
    names = columns["run_id"]
    account = chosen.to_dict()
    places = np.flatnonzero(used)
    for entry in account["dropped"]:
        row = entry["row"]
        entry |= {"run_id": str(names[row]), "row": int(places[row])}
    account |= {"unannealed_rows": unannealed, "weights": weights}
    given = columns["weight"]
    columns["loss"] = chosen.loss
    columns["weight"] = chosen.weight if given is None else chosen.weight * given
    for name, column in columns.items():
        if column is not None:
            columns[name] = column[chosen.keep]
    return account


def _grid(columns: Mapping[str, Any]) -> Grid:
    from llem.scaling import fit_flops_model

    size, tokens = columns["params"], columns["tokens"]
    weight = columns["weight"] if columns["weight"] is not None else np.ones(size.size)
    if not size.size:
        return Grid()
    given = columns.get("flops")
    by_model = fit_flops_model(size, tokens, given, weight=weight).flops(size, tokens)
    flops = by_model if given is None else np.where(np.isfinite(given), given, by_model)
    return edge_minima(size, columns["loss"], flops, weight=weight)
