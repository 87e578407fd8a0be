"""What `find_optimal` answers: the law with its intervals, and what follows from it."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llem._numerals import format_flops, format_times
from llem.campaign import Budget, parse_budget
from llem.errors import Fault, InputError, UnavailableError
from llem.pipeline.answers import Answer, Estimate, FittedLaw, Rows

if TYPE_CHECKING:
    from llem.pipeline.foreign import Looked
    from llem.pipeline.optimal.sizes import Ladder
    from llem.planning import Plan
    from llem.scaling import Fit

SCHEMA = "llem-result-1"
RESULT_FILE = "result.json"
# Beyond this many times the largest run an answer is an extrapolation.
BEYOND = 1.01
# How far from a guess a size is looked for that can be built (heads divide it), how often anew.
NEIGHBOURS = 64
AIMS = 12


@dataclass(frozen=True)
class Preview:
    """What `plan_only` gives: the plan, of which nothing was trained or written."""

    plan: Plan
    looked: Looked = field(repr=False)
    ladder: Ladder = field(repr=False)
    notes: tuple[str, ...] = ()

    def table(self) -> Rows:
        """Every training that would be made."""
        by_params = {p.params: p.value for p in self.ladder.rungs}
        unit = f"{self.looked.data.unit}s"
        return Rows(
            {
                self.looked.size: by_params[some.run.params], "params": some.run.params,
                unit: some.run.tokens, "steps": some.run.steps, "FLOP": some.run.flops,
                "learning rate": some.run.recipe.learning_rate, "seeds": len(some),
            }
            for some in self.plan.runs.replicates
        )  # fmt: skip

    def __str__(self) -> str:
        totals = self.plan.totals
        head = (
            f"{totals['runs']:.0f} runs of {len(self.ladder.rungs)} models for "
            f"{format_flops(totals['flops'])} FLOP of {self.plan.budget}; nothing was trained"
        )
        return "\n".join([head, *self.notes, *self.plan.warnings, "", self.table().to_markdown()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, _, _ = str(self).partition("\n")
        return f"<p>{html.escape(head)}</p>{self.table()._repr_html_()}"


@dataclass(frozen=True)
class Result:
    """The answer of `find_optimal`. Everything in it follows from the records in `folder`.

    `unit` is what D counts, "token" or "sample". `sizes` are (value, parameters) of the models that
    were trained. `observations` has a row for each run, `problems` what was wrong with records.
    """

    folder: Path
    model: str
    size: str
    unit: str
    sizes: tuple[tuple[int, int], ...]
    target: Budget
    fit_json: Mapping[str, Any] = field(repr=False)
    observations: tuple[Mapping[str, Any], ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    looked: Looked | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, folder: Path, *, fit: Mapping[str, Any], looked: Looked, ladder: Ladder,
        problems: Sequence[str], notes: Sequence[str], target: Budget,
    ) -> Result:  # fmt: skip
        plan = _plan_values(folder)
        return cls(
            folder=Path(folder), model=plan["campaign"]["model"]["class"], size=looked.size,
            unit=looked.data.unit, sizes=tuple((p.value, p.params) for p in ladder.rungs),
            target=target, fit_json=fit, observations=_observations(Path(folder)),
            notes=tuple(notes), problems=tuple(problems), looked=looked,
        )  # fmt: skip

    @classmethod
    def read(cls, folder: str | Path) -> Result:
        """The Result of a campaign folder that `find_optimal` has filled. Raises InputError."""
        root = Path(folder)
        plan = _plan_values(root)
        try:
            fit = json.loads((root / "results" / "fit.json").read_text())
        except (OSError, ValueError) as error:
            text = f"there is no fit to read: {error}"
            raise InputError(str(root), [Fault("results/fit.json", text)]) from None
        runs = plan["runs"]
        if "samples" not in runs[0]["data"]:
            raise InputError(str(root), ["not a campaign of find_optimal"])
        sizes = sorted({(run["model"]["value"], run["params"]) for run in runs})
        return cls(
            folder=root, model=runs[0]["model"]["class_path"], size=runs[0]["model"]["size"],
            unit=runs[0]["data"]["unit"], sizes=tuple(sizes),
            target=parse_budget(plan["campaign"]["target"]), fit_json=fit,
            observations=_observations(root),
        )  # fmt: skip

    @cached_property
    def fit(self) -> Fit:
        """The fit with its resamples: that of `results/fit.json`, made again by its seed."""
        from llem.cluster import CampaignFolder
        from llem.pipeline.fitting import campaign_prices, campaign_table, select
        from llem.scaling import fit_law

        folder = CampaignFolder(self.folder)
        table = campaign_table(folder)
        ci = self.fit_json["ci"]
        return fit_law(
            **select(table).columns, law=self.fit_json["law"], prices=campaign_prices(folder),
            level=float(ci["level"]), seed=int(ci.get("seed") or 0),
        )  # fmt: skip

    @property
    def law(self) -> FittedLaw:
        """The fitted law: parameters with their intervals."""
        fit = self.fit_json
        told = fit["ci"].get("params") or {}
        nothing = (math.nan, math.nan)
        return FittedLaw(
            name=fit["law"], formula=fit["formula"], params=dict(fit["params"]),
            ci={n: _pair(told[n]) if told.get(n) else nothing for n in fit["params"]},
            level=float(fit["ci"]["level"]),
        )  # fmt: skip

    def optimum(self, budget: str | float | Budget | None = None) -> Answer:
        """The best training at a budget (`1e13`, "3 GPUh"; by default at the target)."""
        wanted = self._budget(budget)
        from llem.scaling import Target

        found = self.fit.optimum(Target(wanted.value, wanted.unit))
        beyond = found.extrapolation_ratio > BEYOND
        return Answer(
            budget=wanted, flops=found.flops, params=found.params, tokens=found.tokens,
            loss=found.loss, unit=self.unit, size=self.size, value=self.value_for(found.params),
            ci={name: found.ci[name] for name in ("params", "tokens", "loss")},
            extrapolation=found.extrapolation_ratio, beyond_data=beyond,
            warnings=tuple(found.warnings), optimum=found,
        )  # fmt: skip

    def predict(self, params: float, tokens: float) -> Estimate:
        """The loss of N parameters after D tokens or samples, by the law, with its interval."""
        faults = [
            Fault(name, f"{value!r} is no number above 0")
            for name, value in (("params", params), ("tokens", tokens))
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0)
        ]
        if faults:
            raise InputError("predict", faults)
        fit, level = self.fit, float(self.fit_json["ci"]["level"])
        value = float(fit.predict(params, tokens))
        samples = fit.ensemble.samples
        low = high = math.nan
        if len(samples):
            drawn = fit.ensemble.law.loss(samples, math.log(params), math.log(tokens))
            low, high = np.quantile(np.asarray(drawn), [0.5 - level / 2, 0.5 + level / 2]).tolist()
        return Estimate(value, low, high, level, beyond_data=self._outside(params, tokens))

    def table(self, budgets: Sequence[str | float | Budget] | None = None) -> Rows:
        """The optimum at each of `budgets`: by default at the compute levels trained, and the
        target. As text it is Markdown."""
        if budgets is None:
            levels = sorted({float(f"{run['flops']:.2g}") for run in self._completed})
            budgets = [*_apart(levels), self.target]
        unit = f"{self.unit}s"
        rows = Rows()
        for budget in budgets:
            best = self.optimum(budget)
            rows.append(
                {
                    "budget": str(best.budget), self.size: best.value, "params": best.params,
                    "params interval": best.ci["params"], unit: best.tokens,
                    f"{unit} interval": best.ci["tokens"], f"{unit} per param":
                    best.tokens / best.params, "loss": best.loss,
                    "loss interval": best.ci["loss"],
                    "beyond the data": (
                        f"{format_times(best.extrapolation)}x" if best.beyond_data else ""
                    ),
                }
            )  # fmt: skip
        return rows

    def plot(self, path: str | Path | None = None) -> Any:
        """Loss by size with the law, and the optimum by compute: a matplotlib Figure.

        Written to `path` where one is given. Raises UnavailableError without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise UnavailableError(
                "plots need matplotlib, which is not installed", remedy="pip install 'llem[plot]'"
            ) from None
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        self._draw_losses(left)
        self._draw_optima(right)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def to_json(self, path: str | Path | None = None) -> str:
        """All of it as JSON: the law, the table, the runs, the fit; written to `path` if given."""
        from llem.cluster import finite_or_none

        law = self.law
        values = {
            "schema": SCHEMA,
            "model": self.model,
            "size": self.size,
            "unit": self.unit,
            "sizes": [{"value": v, "params": p} for v, p in self.sizes],
            "law": {
                "name": law.name, "formula": law.formula, "level": law.level,
                "params": dict(law.params), "ci": {k: list(v) for k, v in law.ci.items()},
            },
            "optimum": self.optimum().to_dict(),
            "table": [dict(row) for row in self.table()],
            "runs": [dict(row) for row in self.observations],
            "notes": list(self.notes),
            "problems": list(self.problems),
            "fit": dict(self.fit_json),
        }  # fmt: skip
        text = json.dumps(finite_or_none(values), indent=1)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    def report(self) -> Path:
        """Write the campaign's whole report, `results/report.html`, with its plots."""
        from llem.cluster import CampaignFolder
        from llem.pipeline.finishing import report_campaign

        return report_campaign(CampaignFolder(self.folder))

    def value_for(self, params: float) -> int | None:
        """The value of the size whose model has about so many parameters; None where unknown.

        Interpolated between the models that were trained; where the class is at hand, the nearest
        value at which it can be built.
        """
        if not (math.isfinite(params) and params > 0):
            return None
        known = dict(self.sizes)
        guess = _between(known, params)
        if self.looked is None:
            return guess
        # Beyond the sizes trained a model may grow faster than between them: look, and aim again.
        for _ in range(AIMS):
            near = self._nearest_buildable(guess, known)
            if near is None:
                return guess
            best = min(known, key=lambda value: abs(math.log(known[value] / params)))
            aimed = _between(known, params)
            if aimed in known or aimed == guess:
                return best
            guess = aimed
        return min(known, key=lambda value: abs(math.log(known[value] / params)))

    def _nearest_buildable(self, guess: int, known: dict[int, int]) -> int | None:
        """The value nearest to a guess at which the class can be built, added to the `known`."""
        from llem.training.samples.probe import built

        looked = self.looked
        assert looked is not None
        for offset in sorted(range(-NEIGHBOURS, NEIGHBOURS + 1), key=abs):
            value = guess + offset
            if value in known:
                return value
            if value < 1:
                continue
            try:
                known[value] = built(looked.objects, size=looked.size, value=value,
                                     arguments=looked.arguments)  # fmt: skip
            except InputError:
                continue
            return value
        return None

    @property
    def _completed(self) -> list[Mapping[str, Any]]:
        return [run for run in self.observations if run["status"] == "completed"]

    def _outside(self, params: float, tokens: float) -> bool:
        ranges = self.fit_json["range"]
        return not all(
            ranges[name][0] / BEYOND <= value <= ranges[name][1] * BEYOND
            for name, value in (("params", params), ("tokens", tokens))
        )

    def _budget(self, budget: str | float | Budget | None) -> Budget:
        if budget is None:
            return self.target
        if isinstance(budget, Budget):
            return budget
        try:
            return parse_budget(budget)
        except ValueError as error:
            raise InputError("optimum", [Fault("budget", str(error))]) from None

    def _draw_losses(self, ax: Any) -> None:
        from llem.scaling.judging.isoflop import compute_levels

        rows = self._completed
        n, loss, flops = (
            np.array([float(r[k]) for r in rows]) for k in ("params", "loss", "flops")
        )
        model = self.fit.flops_model
        for number, chosen in enumerate(compute_levels(flops)):
            middle = float(np.exp(np.log(flops[chosen]).mean()))
            colour = f"C{number % 10}"
            ax.scatter(n[chosen], loss[chosen], s=22, color=colour, label=f"{middle:.1e} FLOP")
            line = np.geomspace(n.min() / 1.3, n.max() * 1.3, 100)
            # D that the level's FLOPs leave at each N: C = k N^g D.
            tokens = middle / (model.coefficient * line**model.exponent)
            ax.plot(line, self.fit.predict(line, tokens), color=colour, lw=1.2)
        ax.set_xscale("log")
        ax.set_xlabel("parameters N")
        ax.set_ylabel("held-out loss")
        ax.set_title(f"{self.model.partition(':')[2]}: runs and law", loc="left", fontsize=10)
        ax.legend(fontsize=8)

    def _draw_optima(self, ax: Any) -> None:
        largest = max(float(run["flops"]) for run in self._completed)
        smallest = min(float(run["flops"]) for run in self._completed)
        end = max(largest, self.optimum().flops)
        budgets = np.geomspace(smallest, end, 25)
        found = [self.fit.ensemble.at(float(c), brief=True) for c in budgets]
        best = np.array([o.params for o in found])
        band = np.array([o.ci["params"] for o in found])
        ax.fill_between(budgets, band[:, 0], band[:, 1], alpha=0.2, lw=0)
        inside = budgets <= largest * BEYOND
        ax.plot(budgets[inside], best[inside])
        last = max(int(inside.sum()) - 1, 0)
        ax.plot(budgets[last:], best[last:], ls="--", color="C0")
        answer = self.optimum()
        ax.scatter([answer.flops], [answer.params], color="C3", zorder=3)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("compute C, FLOP")
        ax.set_title("best size N*, dashed beyond the data", loc="left", fontsize=10)

    def __str__(self) -> str:
        done = len(self._completed)
        runs = f"{done} of {len(self.observations)} runs, {len(self.sizes)} sizes"
        lines = [
            f"{self.model}: {runs}, D in {self.unit}s",
            f"  law      {self.law}",
            f"  optimum  {self.optimum()}",
            f"  records  {self.folder}",
        ]
        lines += [f"  note     {text}" for text in self._warnings()]
        return "\n".join(lines)

    __repr__ = __str__

    def _warnings(self) -> Iterator[str]:
        yield from self.problems
        yield from list(self.fit_json.get("warnings") or [])

    def _repr_html_(self) -> str:
        done = len(self._completed)
        head = (
            f"<b>{html.escape(self.model)}</b>: {done} of {len(self.observations)} runs, D in "
            f"{self.unit}s<br><code>{html.escape(str(self.law))}</code>"
        )
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in self._warnings())
        return f"<p>{head}</p>{self.table()._repr_html_()}" + (f"<ul>{notes}</ul>" if notes else "")


def _between(known: Mapping[int, int], params: float) -> int:
    """The value of so many parameters, by a power law through the two nearest that are known."""
    pairs = sorted(known.items())
    logs = np.log(np.array(pairs, dtype=np.float64))
    wanted = math.log(params)
    place = int(np.clip(np.searchsorted(logs[:, 1], wanted), 1, len(pairs) - 1))
    (v0, p0), (v1, p1) = logs[place - 1], logs[place]
    value = math.exp(min(v0 + (wanted - p0) * (v1 - v0) / (p1 - p0), 60.0))
    return max(1, round(value))


def _apart(levels: Sequence[float]) -> list[float]:
    """Levels that are the same but for rounding, once."""
    found: list[float] = []
    for level in levels:
        if not found or level > 1.5 * found[-1]:
            found.append(level)
    return found


def _plan_values(folder: Path) -> dict[str, Any]:
    from llem.cluster import CampaignFolder

    return CampaignFolder(folder).plan_values()


def _observations(folder: Path) -> tuple[Mapping[str, Any], ...]:
    from dataclasses import asdict

    from llem.pipeline.files import OBSERVATIONS_FILE
    from llem.results import read_observations

    return tuple(asdict(row) for row in read_observations(folder / "results" / OBSERVATIONS_FILE))


def _pair(values: Sequence[float | None]) -> tuple[float, float]:
    low, high = (math.nan if v is None else float(v) for v in values)
    return low, high
