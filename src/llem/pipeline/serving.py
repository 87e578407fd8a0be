"""A study's runs -> the laws of what serving costs, and with a training's law the best size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llem._numerals import number
from llem.cluster import finite_or_none, write_json
from llem.errors import Fault, InputError
from llem.pipeline.files import FIT_FILE
from llem.results.tables.where import known_or_none

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder
    from llem.scaling import Fit, ServingLaw, Use

Row = Mapping[str, Any]

SCHEMA = "llem.study-fit/2"
# Settings that the law itself has terms for; runs that differ in another have laws of their own.
IN_THE_LAW = ("batch_size", "count", "input_tokens", "output_tokens")
KINDS = ("options.", "layout.")


@dataclass(frozen=True)
class Variant:
    """Runs that differ in size, batch and length alone: what they have in common, and their laws
    (or why there is none)."""

    common: Mapping[str, Any]
    runs: int
    laws: Mapping[str, ServingLaw]
    reason: str = ""

    @property
    def name(self) -> str:
        """`transformers, precision bf16`."""
        told = [str(self.common["backend"])]
        told += [f"{key.partition('.')[2]} {value}" for key, value in self.common.items()
                 if key != "backend"]  # fmt: skip
        return ", ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """As in fit.json."""
        return {
            "name": self.name,
            "common": dict(self.common),
            "runs": self.runs,
            "reason": self.reason,
            "laws": {name: law.to_dict() for name, law in self.laws.items()},
        }

    def __str__(self) -> str:
        from llem.report.serving import law_lines

        lines = [f"{self.name}: {self.runs} runs"]
        lines += [f"  no law: {self.reason}"] if self.reason else []
        for law in self.laws.values():
            lines += law_lines(finite_or_none(law.to_dict()))
        return "\n".join(lines)


@dataclass(frozen=True)
class ServeQuestion:
    """What is to be served, over a model's life; `use` None: as the study did."""

    variants: Sequence[Variant]
    loss: float
    served_tokens: float
    use: Use | None = None

    def answer(self, fit: Fit) -> list[dict[str, Any]]:
        """One answer for each variant with a law of energy, least joules first."""
        from llem.scaling import train_and_serve

        found = []
        for variant in self.variants:
            law = variant.laws.get("energy_j")
            if law is not None:
                life = train_and_serve(fit.ensemble, law, loss=self.loss, use=self.use,
                                       served_tokens=self.served_tokens)  # fmt: skip
                found.append({"variant": variant.name, **finite_or_none(life.to_dict())})
        return sorted(found, key=lambda entry: (entry["total_j"] is None, entry["total_j"]))


def study_variants(
    folder: CampaignFolder,
    *,
    where: str | None = None,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[list[Variant], list[dict[str, Any]]]:
    """The laws of energy and of device time of each variant, and {run_id, reason} of the runs that
    are left out. Raises InputError for what is no study, or has no run that could be fitted."""
    from llem.pipeline.viewing import load_rows

    every = load_rows(folder)
    if not every.study:
        raise InputError(str(folder.root), [Fault("", "is no study of served models")])
    every = every.where(where)
    left_out = [{"run_id": row["run_id"], "reason": why} for row in every.rows
                if (why := _unfit(row))]  # fmt: skip
    used = [row for row in every.rows if not _unfit(row)]
    if not used:
        told = sorted({str(entry["reason"]) for entry in left_out})
        reason = f"no run can be fitted: {'; '.join(told)}" if told else "there is no run"
        raise InputError(str(folder.root), [Fault("", reason)])
    names = [
        name
        for name in every.kinds
        if name.startswith(KINDS)
        and name.rpartition(".")[2] not in IN_THE_LAW
        and len({known_or_none(row[name]) for row in used}) > 1
    ]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in used:
        key = (row["backend"], *(known_or_none(row[name]) for name in names))
        groups.setdefault(key, []).append(row)
    options = {"bootstrap": bootstrap, "level": level, "seed": seed}
    keys = ("backend", *names)
    return [
        _variant(dict(zip(keys, key, strict=True)), rows, options) for key, rows in groups.items()
    ], left_out


def fit_study(folder: CampaignFolder, **options: Any) -> dict[str, Any]:
    """Fit the study's laws and write `results/fit.json`; options as of `study_variants`."""
    variants, left_out = study_variants(folder, **options)
    values = folder.plan_values()
    fit: dict[str, Any] = finite_or_none(
        {
            "schema": SCHEMA,
            "variants": [variant.to_dict() for variant in variants],
            "excluded": left_out,
            "provenance": {
                "campaign": (values.get("campaign") or {}).get("name", ""),
                "plan": values.get("digest", ""),
                "llem": values.get("llem", ""),
            },
        }
    )
    write_json(folder.results / FIT_FILE, fit)
    return fit


def _unfit(row: Row) -> str:
    """Why a run tells the law nothing; empty where it does."""
    if row["status"] != "completed":
        return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])
    if not number(row["energy_j"]) > 0:
        return f"energy unknown: {row['energy_reason']}"
    if not number(row["prefills"]) + number(row["decodes"]) > 0:
        return "neither forward passes nor the times of tokens were recorded"
    if not number(row["params"]) > 0:
        return "size unknown"
    return ""


def _variant(common: Mapping[str, Any], rows: Sequence[Row], options: Mapping[str, Any]) -> Variant:
    from llem.scaling import ScalingDataError, fit_serving

    columns = _columns(rows)
    laws = {}
    for quantity, unit, phases in (
        ("energy_j", "J", [_joules(row) for row in rows]),
        ("gpu_seconds", "s", [_seconds(row) for row in rows]),
    ):
        cost, prefill, decode = zip(*phases, strict=True)
        try:
            law = fit_serving(cost, **columns, prefill=prefill, decode=decode, quantity=quantity,
                              unit=unit, **options)  # fmt: skip
        except ScalingDataError as error:
            return Variant(
                common, len(rows), {}, "; ".join(fault.message for fault in error.faults)
            )
        laws[quantity] = replace(law, warnings=(*law.warnings, *_notes(rows, quantity)))
    return Variant(common, len(rows), laws)


def _joules(row: Row) -> tuple[float, float, float]:
    """Joules of a window, of its prefill with what the host does before it, and of decoding; what
    the devices draw while no request is there is the arrivals' doing."""
    whole = row["energy_j"] - max(0.0, number(row["idle_j"]))
    decode = number(row["decode_j"])
    return whole, whole - decode, decode


def _seconds(row: Row) -> tuple[float, float, float]:
    """Device seconds of passes, of prefill and of decoding; of a server's those of its window."""
    per_replica = max(1, row["ranks"]) / max(1, row["replicas"])
    prefill, decode = (per_replica * number(row[name]) for name in ("prefill_s", "decode_s"))
    if math.isfinite(prefill + decode):
        return prefill + decode, prefill, decode
    return row["span_s"] * max(1, row["ranks"]), math.nan, math.nan


def _notes(rows: Sequence[Row], quantity: str) -> list[str]:
    """What is to be known of how the columns came about."""
    found = []
    told = [row for row in rows if row["passes_by"] == "tokens"]
    if told:
        found.append(
            f"the passes of {len(told)} runs are their server's own: told from when tokens came, "
            "and prefill not apart from decoding"
        )
    timed = [row for row in rows if "divided by time" in str(row["split_reason"])]
    if quantity == "energy_j" and timed:
        found.append(
            f"prefill and decoding of {len(timed)} of {len(rows)} runs were told apart by time "
            "alone: a meter is slower than they are"
        )
    return found


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """The columns of `fit_serving` but the cost."""
    from llem.scaling import Counts, Models

    def column(of: Callable[[Row], float]) -> Any:
        import numpy as np

        return np.array([of(row) for row in rows], dtype=np.float64)

    def head(row: Row) -> float:
        return float(number(row["width"]) * number(row["vocabulary"]))

    def sequences(row: Row) -> float:
        found = number(row["batch_mean"]) * row["decodes"]
        return float(found) if found > 0 else 0.0

    def pairs(row: Row) -> float:
        mean = row["tokens_in"] / row["requests_done"]
        counted = number(row["pairs_in"])
        return float(counted if counted > 0 else row["requests_done"] * mean * (mean + 1) / 2)

    return {
        "models": Models.of(
            column(lambda row: row["params"]),
            # the table of embeddings is looked up in, not multiplied with
            multiplied=column(lambda row: number(row["params_nonembedding"]) + head(row)),
            head=column(head),
            layers=column(lambda row: number(row["layers"])),
            width=column(lambda row: number(row["width"])),
            kv=column(lambda row: number(row["kv_per_token"])),
        ),
        "counts": Counts(
            prefills=column(lambda row: row["prefills"]),
            requests=column(lambda row: row["requests_done"]),
            tokens_in=column(lambda row: row["tokens_in"]),
            pairs=column(pairs),
            decodes=column(lambda row: row["decodes"]),
            rows=column(sequences),
            context=column(
                lambda row: number(row["context_mean"]) * sequences(row) if sequences(row) else 0.0
            ),
        ),
        "batch": [_batch(row) for row in rows],
        "tokens_in": [row["tokens_in"] / row["requests_done"] for row in rows],
        "tokens_out": [row["tokens_out"] / row["requests_done"] for row in rows],
        "deployment": [row["deployment_id"] for row in rows],
    }


def _batch(row: Row) -> float:
    """What was asked for, or how many sequences were there on average."""
    for name in ("effective.batch_size", "options.batch_size"):
        value = row.get(name)
        if isinstance(value, (int, float)) and value >= 1:
            return float(value)
    mean = number(row["batch_mean"])
    return mean if mean >= 1 else 1.0
