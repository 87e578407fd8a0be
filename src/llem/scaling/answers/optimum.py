"""The best N and D at a target, from a fitted law, its resamples and what runs cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import format_amount, format_flops, format_times, percent
from llem.scaling.answers.allowance import (
    EXPONENT_ERROR,
    EXTRAPOLATION_LIMIT,
    TYPICAL_EXPONENT,
    Widening,
    sd_of_log_loss,
    sd_of_log_params,
)
from llem.scaling.answers.alternatives import (
    SECONDS_PER_HOUR,
    IntervalRule,
    Intervals,
    Point,
    Side,
    cloud,
    equal_loss,
    exp,
    flop_optimal,
)
from llem.scaling.answers.answer import FIGURES, Interval, Optimum
from llem.scaling.answers.cost import CostLaw, Lines, in_words
from llem.scaling.answers.features import Layout
from llem.scaling.answers.spending import Buyer, Spending, absurd, at_edge
from llem.scaling.answers.targets import MONEY, Prices, Target
from llem.scaling.fitting.bootstrap import percentile_interval
from llem.scaling.flops import TRUSTED_RATIO_TO_6ND, FlopsModel
from llem.scaling.laws.law import LOG_PARAMS_RANGE, Law

__all__ = ["Ensemble", "Optimum", "Prices", "Target"]

FloatArray = NDArray[np.float64]

JOULES_PER_KWH = 3.6e6
NAN = float("nan")
UNKNOWN: Interval = (NAN, NAN)
BRIEF_FIGURES = ("params", "tokens", "loss")
# Mean error of the largest runs beyond which a predicted cost carries a warning.
COST_ERROR_TOLD = 0.2
UNSOLVED_TOLD = 0.02
# Half widths, in log N and log C, of the differences that give local slopes.
SLOPE_STEP = 1e-3
COMPUTE_STEP = 0.1
# Where a loss is all but its floor: log N = log D.
LOG_INFINITE = 600.0


def _percentile(samples: FloatArray, estimate: float, level: float) -> Interval:
    return percentile_interval(samples, level)


@dataclass(frozen=True)
class Ensemble:
    """A fitted law with its bootstrap: what is needed to answer at any target.

    natural: (p,), in the order of the law's parameters. samples: (k, p) of the same, one a
    resample, k = 0 without a bootstrap. cost_samples: coefficients (k, m) per cost law. prices:
    for money, and the PUE. unique_tokens: of the data at the target (None: unlimited). layout:
    that of the target's training (None: the largest that each cost law has seen). exponent_error:
    the allowance (`allowance.py`); 0 switches it off. interval: the rule that turns
    resamples of a figure's log into an interval.
    """

    law: Law
    natural: FloatArray
    flops_model: FlopsModel
    costs: dict[str, CostLaw]
    largest_flops: float
    level: float
    samples: FloatArray = field(default_factory=lambda: np.empty((0, 5)))
    cost_samples: dict[str, FloatArray] = field(default_factory=dict)
    prices: Prices = field(default_factory=Prices)
    unique_tokens: float | None = None
    layout: Layout | None = None
    exponent_error: float = EXPONENT_ERROR
    interval: IntervalRule = _percentile

    def assumptions(self) -> dict[str, Any]:
        """What the answers assume beside the fit, as in fit.json."""
        return {
            "prices": self.prices.to_dict(),
            "unique_tokens": self.unique_tokens,
            "layout": None if self.layout is None else self.layout.to_dict(),
            "exponent_error": self.exponent_error,
        }

    @staticmethod
    def read_assumptions(data: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `assumptions`, as arguments of an Ensemble."""
        return {
            "prices": Prices.from_dict(data["prices"]),
            "unique_tokens": data["unique_tokens"],
            "layout": None if data["layout"] is None else Layout.from_dict(data["layout"]),
            "exponent_error": float(data["exponent_error"]),
        }

    def at(self, target: Target | float, *, brief: bool = False) -> Optimum:
        """The optimum at a target (a plain number is FLOP), with intervals.

        The FLOPs model is kept fixed over the resamples. brief: intervals of params, tokens and
        loss only, without the comparisons and the cloud, for the many points of a frontier.
        """
        wanted = target if isinstance(target, Target) else Target(float(target))
        reason = self._refusal(wanted)
        if reason:
            return self._nothing(wanted, reason)
        estimate, drawn = self.side(False), self.side(True)
        if not self.law.has_optimum:
            return self._loss_alone(wanted, estimate.buyer, drawn.buyer)
        best = self._solve(estimate, wanted)
        lost = not np.isfinite(best.log_n)
        if lost or (wanted.quantity != "flops" and at_edge(best.log_n)):
            return self._nothing(wanted, self._unaffordable(wanted))
        others = self._solve(drawn, wanted)
        logs, sample_logs = best.figures(), others.figures()
        value: dict[str, Any] = {name: exp(v) for name, v in logs.items()}
        if wanted.quantity == "flops":
            value["flops"] = wanted.value
        ratio = value["flops"] / self.largest_flops
        intervals = Intervals(self.interval, self.level)
        told = BRIEF_FIGURES if brief else FIGURES
        if wanted.quantity != "flops":
            told = ("flops", *told)
        ci = {name: UNKNOWN for name in FIGURES if name not in told}
        ci |= {name: intervals.positive(sample_logs[name], logs[name]) for name in told}
        allowance = self._allowance(best, wanted, ratio)
        optimum = Optimum(
            target=wanted,
            **value,
            currency=self.prices.currency if self.prices.any else "",
            ci=self._widened(ci, value, allowance),
            ci_parameters=ci,
            extrapolation_ratio=ratio,
            warnings=tuple(self._warnings(ratio, value["params"], others.log_n)),
            allowance=allowance,
            layout=self._layout(),
        )
        if brief:
            return optimum
        budget, same_loss = None, None
        if wanted.quantity != "flops":
            budget = flop_optimal(best, others, wanted, intervals)
        elif self._cost("energy_j").fitted:
            same_loss = equal_loss(best, others, intervals)
        return replace(optimum, cloud=cloud(sample_logs), flop_optimal=budget, equal_loss=same_loss)

    def _solve(self, side: Side, target: Target) -> Point:
        """The best training at a target."""
        amount = target.value * target.factor
        if target.quantity == "flops":
            return Point(side, *side.buyer.at_flops(amount))
        spending = side.spending(target.quantity)
        return Point(side, *side.buyer.under(spending, spending.log_left(amount)))

    def _allowance(self, best: Point, target: Target, ratio: float) -> dict[str, Any] | None:
        """What the law's own error adds, None within 10 times the largest compute."""
        sd = sd_of_log_params(self.exponent_error, ratio)
        if sd == 0:
            return None
        # How every figure moves with log N while the target stays spent.
        side, log_n, log_d = best.side, best.log_n, best.log_d
        ends = []
        for step in (-SLOPE_STEP, SLOPE_STEP):
            n = log_n + step
            if target.quantity == "flops":
                d = log_d - self.flops_model.exponent * step
            else:
                spending = side.spending(target.quantity)
                d = log_d + spending.log_per_token(log_n) - spending.log_per_token(n)
            ends.append(side.figures(n, d))
        sds = {
            name: sd * abs(float(ends[1][name] - ends[0][name])) / (2.0 * SLOPE_STEP)
            for name in ("flops", "params", "tokens", "energy_j", "gpu_hours", "money")
        }
        flops = ratio * self.largest_flops
        floor, exponent = _reducible(side.buyer, flops)
        of_loss = sd_of_log_loss(self.exponent_error, ratio, exponent)
        factor = math.exp(sd)
        return {
            "exponent_error": self.exponent_error,
            "decades": math.log10(ratio),
            "sd_log_params": sds["params"],
            "sd_log_tokens": sds["tokens"],
            "sd_log_reducible_loss": of_loss,
            "sd_log": sds,
            "loss_floor": floor,
            "text": (
                f"the intervals allow for a law that bends: beyond the data the exponent of N* may "
                f"be off by {self.exponent_error:g}, which puts N* within a factor of "
                f"{factor:.3g} (one standard deviation) whatever the fit says"
            ),
        }

    def _widened(
        self, ci: dict[str, Interval], value: dict[str, float], allowance: dict[str, Any] | None
    ) -> dict[str, Interval]:
        if allowance is None:
            return dict(ci)
        widen = Widening(self.level)
        out = {}
        for name, interval in ci.items():
            if name == "loss":
                floor, sd = allowance["loss_floor"], allowance["sd_log_reducible_loss"]
                out[name] = widen.loss(interval, value[name], floor, sd)
            else:
                sd = allowance["sd_log"].get(name, 0.0)
                out[name] = widen.log(
                    interval, value.get(name, NAN), sd if math.isfinite(sd) else 0.0
                )
        return out

    def side(self, drawn: bool) -> Side:
        """The estimate and what it pays, or the resamples."""
        natural = self.samples if drawn else self.natural
        unique = None if self.unique_tokens is None else math.log(self.unique_tokens)
        energy, time = self._lines("energy_j", drawn), self._lines("gpu_seconds", drawn)
        prices = self.prices
        parts = []
        if prices.per_kwh:
            parts.append(energy.times(prices.per_kwh * prices.pue / JOULES_PER_KWH))
        if prices.per_gpu_hour:
            parts.append(time.times(prices.per_gpu_hour / SECONDS_PER_HOUR))
        money = energy.times(NAN) if not parts else parts[0]
        for part in parts[1:]:
            money = money + part
        model = self.flops_model
        return Side(
            Buyer(self.law, natural, model, unique),
            Spending(energy, model),
            Spending(time, model),
            Spending(money, model),
            prices.pue,
        )

    def _lines(self, quantity: str, drawn: bool) -> Lines:
        """What a cost law gives the estimate, or each resample."""
        law = self._cost(quantity)
        if not drawn:
            return law.lines(layout=self.layout)
        count = self.samples.shape[0]
        coefficients = self.cost_samples.get(quantity)
        if coefficients is None or not law.fitted:
            coefficients = np.broadcast_to(law.coefficients, (count, len(law.terms)))
        return law.lines(coefficients, layout=self.layout)

    def _cost(self, quantity: str) -> CostLaw:
        absent = CostLaw(quantity, "", (), 0, (), NAN, f"{quantity} was not given")
        return self.costs.get(quantity, absent)

    def _layout(self) -> dict[str, Any]:
        """What the costs assume, in numbers and in words; empty without a cost law."""
        fitted = [law for law in self.costs.values() if law.fitted]
        if not fitted:
            return {}
        largest = max((law.layout for law in fitted), key=lambda v: v.ranks)
        at = largest if self.layout is None else self.layout
        ranks = "1 rank" if at.ranks == 1 else f"{at.ranks:g} ranks"
        nodes = "1 node" if at.nodes == 1 else f"{at.nodes:g} nodes"
        text = f"costs are those of a training on {ranks} ({nodes})"
        text += ", the largest layout seen" if self.layout is None else ""
        return {**at.to_dict(), "text": text}

    def _refusal(self, target: Target) -> str:
        """Why there is no answer at all; empty where there may be one."""
        quantity = target.quantity
        if quantity == "flops":
            return ""
        if not self.law.has_optimum:
            return (
                f"the law {self.law.name} knows no N and D, which a target in {target.unit} needs"
            )
        needed = [quantity]
        if quantity == MONEY:
            reason = self.prices.refusal(target.unit)
            if reason:
                return reason
            both = (("energy_j", self.prices.per_kwh), ("gpu_seconds", self.prices.per_gpu_hour))
            needed = [name for name, price in both if price]
        return "; ".join(self._cost(n).reason for n in needed if not self._cost(n).fitted)

    def _unaffordable(self, target: Target) -> str:
        if target.quantity == "flops":
            return f"the law {self.law.name} has no optimum at this target"
        fixed = float(self.side(False).spending(target.quantity).lines.fixed) / target.factor
        if fixed >= target.value:
            told = format_amount(fixed, target.unit, digits=3)
            return f"the fixed cost of a run ({told}) uses up the target"
        return (
            "no size of a model is the best for "
            f"{format_amount(target.value, target.unit)}: the cost law "
            "gives size or tokens no price"
        )

    def _nothing(self, target: Target, reason: str) -> Optimum:
        nothing: dict[str, Any] = dict.fromkeys(("flops", *FIGURES), NAN)
        return Optimum(
            target,
            **nothing,
            ci=dict.fromkeys(FIGURES, UNKNOWN),
            ci_parameters=dict.fromkeys(FIGURES, UNKNOWN),
            extrapolation_ratio=NAN,
            warnings=(reason,),
        )

    def _loss_alone(self, target: Target, buyer: Buyer, drawn: Buyer) -> Optimum:
        """The answer of a law in which N and D do not compete for compute."""
        flops = target.value
        reason = (
            f"the law {self.law.name} does not trade size against tokens: no N* and D* follow "
            "from it"
        )
        ratio = flops / self.largest_flops
        nothing = self._nothing(target, reason)
        if "C" not in self.law.variables:
            return replace(nothing, flops=flops, extrapolation_ratio=ratio)
        loss = _loss_at(buyer, flops)
        intervals = Intervals(self.interval, self.level)
        drawn_logs = np.log(_loss_at(drawn, flops))
        ci = nothing.ci | {"loss": intervals.positive(drawn_logs, np.log(loss))}
        allowance = None
        sd = sd_of_log_params(self.exponent_error, ratio)
        if sd:
            floor, exponent = _reducible(buyer, flops)
            allowance = {
                "exponent_error": self.exponent_error,
                "decades": math.log10(ratio),
                "sd_log_params": NAN,
                "sd_log_tokens": NAN,
                "sd_log_reducible_loss": sd_of_log_loss(self.exponent_error, ratio, exponent),
                "sd_log": {},
                "loss_floor": floor,
                "text": (
                    "the interval allows for a law that bends: beyond the data its exponent may "
                    "be off by "
                    f"{percent(self.exponent_error / TYPICAL_EXPONENT, places=0)} of itself"
                ),
            }
        return replace(
            nothing,
            flops=flops,
            loss=float(loss),
            ci=self._widened(ci, {"loss": float(loss)}, allowance),
            ci_parameters=ci,
            allowance=allowance,
            extrapolation_ratio=ratio,
            warnings=(*_too_far(ratio), reason),
        )

    def _warnings(self, ratio: float, params: float, sample_n: FloatArray) -> list[str]:
        out = _too_far(ratio)
        model = self.flops_model
        per_6n = float(model.flops(params, 1.0)) / (6.0 * params)
        off = max(per_6n, 1.0 / per_6n)
        if model.source != "6ND" and off > TRUSTED_RATIO_TO_6ND and ratio > EXTRAPOLATION_LIMIT:
            out.append(
                f"the FLOPs model of the observed sizes gives {per_6n:.2f} x 6N per token at the "
                f"optimum, where large models approach 6N: D* is that much off, and N* with it"
            )
        unsolved = float(np.mean(~np.isfinite(sample_n))) if sample_n.size else 0.0
        if unsolved > UNSOLVED_TOLD:
            out.append(
                f"{percent(unsolved, places=0)} of the resamples have no optimum here "
                "and are left out"
            )
        far = float(np.mean(absurd(sample_n))) if sample_n.size else 0.0
        if far > UNSOLVED_TOLD:
            low, high = (float(f"{math.exp(end):.0e}") for end in LOG_PARAMS_RANGE)
            out.append(
                f"{percent(far, places=0)} of the resamples put N* below {low:.0f} or above "
                f"{format_flops(high)} parameters: their laws hardly tell size from tokens; the "
                "intervals count them"
            )
        for law in self.costs.values():
            error = (law.held_out or {}).get("mean_abs_relative_error", 0.0)
            if not law.fitted:
                out.append(law.reason)
            elif error > COST_ERROR_TOLD:
                out.append(
                    f"the law of {in_words(law.quantity)} misses its largest runs by "
                    f"{percent(error, places=0)}"
                )
            if law.fitted and self.layout is not None and self.layout.ranks > law.layout.ranks:
                out.append(
                    f"{in_words(law.quantity)} is predicted for {self.layout.ranks:g} ranks; "
                    f"{law.layout.ranks:g} were the most observed"
                )
        return out


def _too_far(ratio: float) -> list[str]:
    if not ratio > EXTRAPOLATION_LIMIT:
        return []
    text = (
        f"the target is {format_times(ratio)} times the largest compute observed; beyond "
        f"{EXTRAPOLATION_LIMIT:g} times, a law fitted to small runs is not evidence"
    )
    return [text]


def _loss_at(buyer: Buyer, flops: float) -> FloatArray:
    """Loss at a compute: at the optimum, or of a law in C."""
    if buyer.law.has_optimum:
        return buyer.loss(*buyer.at_flops(flops))
    unknown = np.full(buyer.shape, NAN)
    return buyer.law.loss(buyer.natural, unknown, unknown, log_flops=np.log(flops))


def _reducible(buyer: Buyer, flops: float) -> tuple[float, float]:
    """The loss that no compute takes away, and the local exponent of the rest in C."""
    far = np.full(buyer.shape, LOG_INFINITE)
    with np.errstate(all="ignore"):
        floor = float(buyer.law.loss(buyer.natural, far, far, log_flops=2.0 * far))
        low, high = (
            float(_loss_at(buyer, flops * math.exp(s))) for s in (-COMPUTE_STEP, COMPUTE_STEP)
        )
    if not 0 <= floor < high:
        floor = 0.0
    return floor, (math.log(low - floor) - math.log(high - floor)) / (2.0 * COMPUTE_STEP)
