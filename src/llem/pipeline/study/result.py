"""What `run_experiment` and `run_study` answer: what serving cost, with intervals over cycles.

All of it is read from the tables that `llem aggregate` writes; nothing is computed twice.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from llem.errors import Fault, InputError, LlemError, did_you_mean
from llem.pipeline.answers import Estimate, Rows

if TYPE_CHECKING:
    from llem.pipeline.serving import Variant
    from llem.pipeline.viewing import Rows as Chosen

EXPERIMENT_SCHEMA = "llem-experiment-result-1"
STUDY_SCHEMA = "llem-study-result-1"
LEVEL = 0.95
DEPLOYMENT = "deployment_id"
NAMED = ("model", "backend")
SETTINGS = ("options.", "prompts.", "arrival.", "layout.")
PERCENTS = ("p50", "p90", "p99")
# Columns of a table; those with intervals have one beside them.
RATES = ("j_per_token", "j_per_request", "tokens_per_s")
TIMES = ("ttft_p50_s", "itl_p50_s", "itl_p99_s")
# What a Pareto front is drawn against: its column, and which way is better.
AGAINST = {"latency": ("itl_p50_s", 1), "throughput": ("tokens_per_s", -1)}


@dataclass(frozen=True)
class _Served:
    """A folder of runs that served models, and what was wrong with its records."""

    folder: Path
    problems: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The result of a study's folder. Raises InputError."""
        found = cls(Path(folder))
        if not found._chosen.study:
            raise InputError(str(folder), [Fault("", "is no study of served models")])
        return found

    @cached_property
    def _chosen(self) -> Chosen:
        from llem.cluster import CampaignFolder
        from llem.pipeline.viewing import load_rows

        return load_rows(CampaignFolder(self.folder))

    @property
    def rows(self) -> Rows:
        """One row for each deployment and cycle: the columns of `results/observations.csv`."""
        return Rows(dict(row) for row in self._chosen.rows)

    @cached_property
    def deployments(self) -> Rows:
        """One row for each deployment over its cycles: the columns of `deployments.csv`."""
        from llem.cluster import CampaignFolder
        from llem.pipeline.viewing import load_rows

        return Rows(dict(r) for r in load_rows(CampaignFolder(self.folder), "deployments").rows)

    @property
    def completed(self) -> int:
        """How many runs were served to their end."""
        return sum(row["status"] == "completed" for row in self._chosen.rows)

    def report(self) -> Path:
        """Write the whole report, `results/report.html`, with its plots."""
        from llem.cluster import CampaignFolder
        from llem.pipeline.finishing import finish

        return finish(CampaignFolder(self.folder)).report


@dataclass(frozen=True)
class ExperimentResult(_Served):
    """One deployment over its cycles. Figures are of the measured windows of completed cycles."""

    @property
    def deployment(self) -> Mapping[str, Any]:
        """The deployment's row."""
        return self.deployments[0]

    @property
    def energy_j(self) -> float:
        """Joules of all cycles together; NaN where they are not known."""
        return float(self.deployment["energy_j"])

    @property
    def j_per_token(self) -> Estimate:
        """Joules over tokens that came out: a ratio of sums, with its interval over cycles."""
        return _estimate(self.deployment, "j_per_token")

    @property
    def tokens_per_s(self) -> Estimate:
        return _estimate(self.deployment, "tokens_per_s")

    @property
    def ttft_s(self) -> dict[str, Estimate]:
        """Arrival to first token: `p50`, `p90`, `p99` of all raw samples."""
        return _percentiles(self.deployment, "ttft")

    @property
    def itl_s(self) -> dict[str, Estimate]:
        """Times between tokens."""
        return _percentiles(self.deployment, "itl")

    @property
    def latency_s(self) -> dict[str, Estimate]:
        """Arrival to last token."""
        return _percentiles(self.deployment, "latency")

    @property
    def options(self) -> dict[str, Any]:
        """The options that were asked for."""
        return self._settings("options.")

    @property
    def effective(self) -> dict[str, Any]:
        """What they became, by the backend's own word."""
        return self._settings("effective.")

    def _settings(self, group: str) -> dict[str, Any]:
        from llem.results.tables.where import is_known

        return {name.removeprefix(group): value for name, value in self.deployment.items()
                if name.startswith(group) and is_known(value)}  # fmt: skip

    def table(self) -> Rows:
        """The figures of the experiment, one a row, with their intervals."""
        row = self.deployment
        found = Rows()
        for name in (*RATES, *(f"{time}_{p}_s" for time in ("ttft", "itl", "latency")
                               for p in PERCENTS)):  # fmt: skip
            told = _estimate(row, name)
            found.append({"figure": name, "value": told.value,
                          "interval": (told.low, told.high)})  # fmt: skip
        for name in ("energy_j", "prefill_j", "decode_j", "peak_memory_window_bytes", "mfu"):
            found.append({"figure": name, "value": float(row[name]),
                          "interval": (math.nan, math.nan)})  # fmt: skip
        return found

    def to_json(self, path: str | Path | None = None) -> str:
        """All of it as JSON, written to `path` if given."""
        values = {
            "schema": EXPERIMENT_SCHEMA,
            "options": self.options,
            "effective": self.effective,
            "figures": [dict(row) for row in self.table()],
            "runs": [dict(row) for row in self.rows],
            "problems": list(self.problems),
        }
        return _json(values, path)

    def __str__(self) -> str:
        row = self.deployment
        head = (f"{row['model']} by {row['backend']}: {self.completed} of {len(self.rows)} cycles, "
                f"{_short(self.energy_j)} J")  # fmt: skip
        lines = [
            head,
            f"  J/token   {self.j_per_token}",
            f"  tokens/s  {self.tokens_per_s}",
            f"  TTFT      {self.ttft_s['p50']} s (p50), {_short(self.ttft_s['p99'].value)} s (p99)",
            f"  ITL       {self.itl_s['p50']} s (p50), {_short(self.itl_s['p99'].value)} s (p99)",
            f"  records   {self.folder}",
        ]
        return "\n".join([*lines, *(f"  note      {text}" for text in self.problems)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, _, _ = str(self).partition("\n")
        return f"<p>{html.escape(head)}</p>{self.table()._repr_html_()}"


@dataclass(frozen=True)
class StudyResult(_Served):
    """Every deployment of a study over its cycles."""

    @property
    def varied(self) -> list[str]:
        """The settings in which deployments differ, by their keys in the campaign file."""
        from llem.results.tables.where import known_or_none

        rows = self.deployments
        names = [name for name in (rows[0] if rows else ())
                 if name in NAMED or name.startswith(SETTINGS)]  # fmt: skip
        return [n for n in names if len({known_or_none(row[n]) for row in rows}) > 1]

    def table(self, by: str | Sequence[str] | None = None) -> Rows:
        """What serving cost: for each deployment, or for each set of values of the fields `by`.

        Raises InputError for unknown fields.
        """
        if by is None:
            return _figures(self.deployments, [DEPLOYMENT, *self.varied])
        names = _names(by)
        return _figures([dict(row) for row in self._chosen.grouped(names).rows], names)

    def compare(self, by: str | Sequence[str]) -> Rows:
        """Joules per token of each two groups against each other: `of` over `over`, with its 95 %
        interval; `cycles` says whether they were paired by cycle. Raises InputError."""
        from llem.pipeline.viewing import compare_groups
        from llem.results.study.deployments import group_name

        _, pairs = compare_groups(self._chosen, _names(by))
        return Rows(
            {"of": group_name(pair.second), "over": group_name(pair.first), "ratio": pair.ratio,
             "interval": (pair.low, pair.high), "cycles": pair.how}
            for pair in pairs
        )  # fmt: skip

    def pareto(
        self,
        against: Literal["latency", "throughput"] = "latency",
        *,
        by: str | Sequence[str] | None = None,
    ) -> Rows:
        """The rows of `table(by)` that no other of the same model beats in joules per token and in
        the median time between tokens, or in tokens a second. Raises InputError."""
        from llem.report.plots.pareto import front

        if against not in AGAINST:
            hint = did_you_mean(str(against), list(AGAINST))
            text = f"{against!r} is none of {', '.join(AGAINST)}"
            raise InputError("pareto", [Fault("against", text, hint)])
        column, sign = AGAINST[against]
        rows = self.table(by)
        models = [str(row.get("model", "")) for row in rows]
        kept: list[int] = []
        for model in dict.fromkeys(models):
            own = [i for i, name in enumerate(models) if name == model]
            points = [(sign * rows[i][column], rows[i]["j_per_token"]) for i in own]
            kept += [own[place] for place in front(points)]
        return Rows(rows[i] for i in kept)

    @cached_property
    def _variants(self) -> list[Variant]:
        from llem.cluster import CampaignFolder
        from llem.pipeline.serving import study_variants

        return study_variants(CampaignFolder(self.folder))[0]

    def law(self, variant: str | None = None) -> Variant:
        """The laws of joules and of device time against size, batch and length (`.laws`).

        Runs that differ in other settings have laws of their own: `variant` names one of them.
        Raises InputError where it has to, LlemError where the runs carry no law.
        """
        found = {v.name: v for v in self._variants}
        if variant is None and len(found) > 1:
            text = f"there are {len(found)} laws"
            raise InputError("law", [Fault("variant", text, f"one of: {'; '.join(found)}")])
        if variant is not None and variant not in found:
            hint = did_you_mean(variant, list(found)) or f"one of: {'; '.join(found)}"
            raise InputError("law", [Fault("variant", f"there is no {variant!r}", hint)])
        chosen = found[variant] if variant is not None else next(iter(found.values()))
        if not chosen.laws:
            raise LlemError(
                f"{chosen.name}: no law: {chosen.reason}",
                remedy="vary the model's size, the batch and the length of prompts",
            )
        return chosen

    def plot(self, path: str | Path, *, by: str | Sequence[str] | None = None) -> list[Path]:
        """Draw joules per token against latency and throughput, with the Pareto front: a PNG or an
        SVG where `path` is named so, else both in the folder `path`. Returns the files.

        Raises UnavailableError without matplotlib, LlemError where no energy is known.
        """
        from llem.report.page import check_plots
        from llem.report.plots import pareto
        from llem.report.plots.theme import LIGHT
        from llem.report.study import draw_study

        names = _names(by) if by is not None else self.varied or [DEPLOYMENT]
        rows = self.deployments if by is None else list(self._chosen.grouped(names).rows)
        target = Path(path)
        if target.suffix not in (".png", ".svg"):
            drawn = draw_study(target, rows, names)
        else:
            check_plots()
            plot = pareto.plot(rows, names)
            drawn = []
            if plot is not None:
                target.write_bytes(plot.png() if target.suffix == ".png" else plot.svg(LIGHT))
                drawn = [target]
        if not drawn:
            raise LlemError("nothing to draw: no energy is known of any deployment")
        return drawn

    def to_json(self, path: str | Path | None = None) -> str:
        """All of it as JSON, written to `path` if given: runs, deployments, laws or why none."""
        try:
            laws = [variant.to_dict() for variant in self._variants]
            reason = ""
        except InputError as error:
            laws, reason = [], str(error)
        values = {
            "schema": STUDY_SCHEMA,
            "varied": self.varied,
            "deployments": [dict(row) for row in self.deployments],
            "runs": [dict(row) for row in self.rows],
            "laws": laws,
            "laws_reason": reason,
            "problems": list(self.problems),
        }
        return _json(values, path)

    def __str__(self) -> str:
        head = (f"{len(self.deployments)} deployments, {self.completed} of {len(self.rows)} runs "
                f"completed; records: {self.folder}")  # fmt: skip
        return "\n".join([head, *self.problems, "", self.table().to_markdown()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, _, _ = str(self).partition("\n")
        return f"<p>{html.escape(head)}</p>{self.table()._repr_html_()}"


def _figures(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Rows:
    """What a table shows of grouped rows: what they are, and what they cost."""
    found = Rows()
    for row in rows:
        line: dict[str, Any] = {name: row[name] for name in names}
        line |= {"completed": row["completed"], "cycles": row["cycles"],
                 "energy_j": row["energy_j"]}  # fmt: skip
        for name in RATES:
            told = _estimate(row, name)
            line |= {name: told.value, f"{name} interval": (told.low, told.high)}
        line |= {name: row[name] for name in (*TIMES, "peak_memory_window_bytes")}
        found.append(line)
    return found


def _estimate(row: Mapping[str, Any], name: str) -> Estimate:
    stem = name.removesuffix("_s") if name.startswith(("ttft_", "itl_", "latency_")) else name
    unit = "_s" if stem != name else ""
    return Estimate(row[name], row[f"{stem}_low{unit}"], row[f"{stem}_high{unit}"], LEVEL)


def _percentiles(row: Mapping[str, Any], name: str) -> dict[str, Estimate]:
    return {p: _estimate(row, f"{name}_{p}_s") for p in PERCENTS}


def _names(by: str | Sequence[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(by)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _json(values: Mapping[str, Any], path: str | Path | None) -> str:
    from llem.cluster import finite_or_none

    text = json.dumps(finite_or_none(values), indent=1)
    if path is not None:
        Path(path).write_text(text + "\n")
    return text
