"""Intermediate checkpoints as observations: which rows of a run a law may be fitted to.

Checkpoints make a fit better (Choshen et al., arXiv 2410.11840), the early ones left out. But a
loss taken while the learning rate is high lies above that of a run whose rate was brought down at
the same tokens, so that only annealed rows fit one law: the last rows of a run, or the decayed
branches of a constant run (Hägele et al., arXiv 2405.18392). Rows of a run are not independent:
whoever bootstraps must do so by run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.errors import DataFault, OptionError, ScalingDataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Index = NDArray[np.intp]
Unannealed = Literal["drop", "correct", "keep"]
Weights = Literal["run", "row"]

# Share of a run's largest tokens that is dropped where nothing else tells its warm-up.
WARMUP_SHARE = 0.1
# A rate at or below this share of the run's peak counts as annealed.
ANNEALED_SHARE = 0.2
# A rate that reaches this share of the run's peak has ended its warm-up.
PEAK_SHARE = 0.99
# A gap needs this many pairs of an annealed row and the un-annealed curve beside it.
MIN_PAIRS = 3


@dataclass(frozen=True)
class Correction:
    """How far un-annealed rows lie above annealed ones: log_gap = log L - log L_annealed.

    standard_error: of log_gap; from the means of the families where there are three and more, as
    pairs of a family share its noise, else from the pairs. spread: standard deviation of the
    pairs' gaps; one gap for all is a poor summary where it is not small beside log_gap.
    """

    log_gap: float
    standard_error: float
    spread: float
    pairs: int
    families: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "log_gap": self.log_gap,
            "standard_error": self.standard_error,
            "spread": self.spread,
            "pairs": self.pairs,
            "families": self.families,
        }


@dataclass(frozen=True)
class Checkpoints:
    """What to fit. keep, weight, loss: (n,); weight is 0 where a row is dropped.

    `loss` (nats) is as given, but for un-annealed rows that were corrected. `dropped` names each
    row left out: {run_id, row (0-based), reason}. `unannealed`: (n,), rows taken at a high rate.
    """

    keep: BoolArray
    weight: FloatArray
    loss: FloatArray
    dropped: tuple[dict[str, Any], ...]
    unannealed: BoolArray
    correction: Correction | None

    def to_dict(self) -> dict[str, Any]:
        """The account of the selection for fit.json, plain JSON types."""
        return {
            "rows": int(self.keep.size),
            "kept": int(self.keep.sum()),
            "dropped": [dict(d) for d in self.dropped],
            "unannealed": int(self.unannealed.sum()),
            "correction": None if self.correction is None else self.correction.to_dict(),
        }


def select_checkpoints(
    run: Sequence[str] | NDArray[Any],
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    learning_rate: ArrayLike | None = None,
    annealed: ArrayLike | None = None,
    warmup_tokens: ArrayLike | None = None,
    family: Sequence[str] | NDArray[Any] | None = None,
    unannealed: Unannealed = "drop",
    weights: Weights = "run",
    warmup_share: float = WARMUP_SHARE,
    annealed_share: float = ANNEALED_SHARE,
) -> Checkpoints:
    """Choose, weigh and correct the rows of a table of checkpoints. Columns are (n,).

    run: names; rows of one name are one run. tokens: seen at the row. loss: nats. learning_rate:
    at the row, NaN where unknown. annealed: 1, 0, or NaN where unknown. warmup_tokens: of the
    row's run, or one number. family: names of what is trained alike but for the schedule (a
    constant run and its decayed branches, or runs of one size), for `unannealed="correct"`; the
    default is the run itself.

    Dropped are, in this order:

    - the warm-up: rows up to `warmup_tokens`; where those are unknown, rows up to `warmup_share`
      of the run's largest tokens, and rows before its rate reached the peak;
    - un-annealed rows: annealed 0 or, where `annealed` is unknown, a rate above `annealed_share`
      of the run's peak in a run that comes to lie at or below it or has rows known as annealed.
      A run of constant rate without any is left whole: it is a schedule of its own, whose losses
      lie higher.

    unannealed="correct" keeps the latter and divides their loss by exp(log_gap), see Correction:
    the mean over the annealed rows of the log loss of the family's un-annealed rows, interpolated
    in log tokens and never beyond them, less their own. OptionError where fewer than MIN_PAIRS
    can be had. One gap is right for constant runs; within a cosine it fades with the rate, so
    that there "drop" is the better choice. "keep" leaves these rows as they are.

    weights="run": the kept rows of a run share the weight 1. "row": each row has weight 1.
    """
    _options(unannealed, weights, warmup_share, annealed_share)
    d, y = np.asarray(tokens, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    names, of = _groups("run", run, d.size)
    kin = of if family is None else _groups("family", family, d.size)[1]
    rate = _column("learning_rate", learning_rate, d.size)
    flag = _column("annealed", annealed, d.size)
    warm = _column("warmup_tokens", warmup_tokens, d.size)
    _check(d, y, flag)

    peak = _largest(rate, of, names.size)[of]
    reached = _peak_tokens(d, rate >= PEAK_SHARE * peak, of, names.size)[of]
    low = rate <= annealed_share * peak
    decayed = np.full(names.size, False)
    # Before its peak a run also has low rates; those afterwards tell that it came down.
    decayed[of[(flag == 1) | (low & (d > reached))]] = True
    by_rate = decayed[of] & (rate > annealed_share * peak)

    first = warmup_share * _largest(d, of, names.size)[of]
    warmup = np.where(np.isnan(warm), (d <= first) | (d < reached), d <= warm)
    high = ~warmup & np.where(np.isnan(flag), by_rate, flag == 0)
    keep = ~warmup if unannealed != "drop" else ~warmup & ~high

    correction = None
    if unannealed == "correct" and np.any(high):
        down = ~warmup & ~high & ((flag == 1) | low)
        correction = _gap(kin, np.log(d), np.log(y), high, down)
        y = np.where(high, y * math.exp(-correction.log_gap), y)

    weight = keep.astype(np.float64)
    if weights == "run":
        weight /= np.maximum(np.bincount(of[keep], minlength=names.size), 1)[of]
    dropped = tuple(
        {
            "run_id": str(names[of[i]]),
            "row": int(i),
            "reason": "warm-up" if warmup[i] else "not annealed",
        }
        for i in np.flatnonzero(~keep)
    )
    return Checkpoints(keep, weight, y, dropped, high, correction)


def _options(unannealed: str, weights: str, warmup_share: float, annealed_share: float) -> None:
    if unannealed not in ("drop", "correct", "keep"):
        raise OptionError("unannealed", unannealed, "drop, correct or keep")
    if weights not in ("run", "row"):
        raise OptionError("weights", weights, "run or row")
    if not 0 <= warmup_share < 1:
        raise OptionError("warmup_share", warmup_share, "a share of 0 up to, not including, 1")
    if not 0 < annealed_share < 1:
        raise OptionError("annealed_share", annealed_share, "a share between 0 and 1")


def _groups(
    name: str, values: Sequence[str] | NDArray[Any], size: int
) -> tuple[NDArray[Any], Index]:
    column = np.asarray(values)
    if column.shape != (size,):
        raise OptionError(name, f"{column.shape}", f"one name for each of the {size} rows")
    found, of = np.unique(column, return_inverse=True)
    return found, of.reshape(-1).astype(np.intp)


def _column(name: str, values: ArrayLike | None, size: int) -> FloatArray:
    """(n,) of floats; NaN where nothing is known."""
    column = np.asarray(math.nan if values is None else values, dtype=np.float64)
    if column.shape not in ((), (size,)):
        raise OptionError(name, f"{column.shape}", f"one number for each of the {size} rows")
    return np.broadcast_to(column, (size,))


def _check(tokens: FloatArray, loss: FloatArray, annealed: FloatArray) -> None:
    if tokens.ndim != 1 or loss.shape != tokens.shape:
        shapes = f"{tokens.shape} and {loss.shape}"
        raise OptionError("tokens, loss", shapes, "two columns of one length")
    faults = [
        DataFault.of(name, "must be positive and finite", row=int(i), value=float(column[i]))
        for name, column in (("tokens", tokens), ("loss", loss))
        for i in np.flatnonzero(~(np.isfinite(column) & (column > 0)))
    ]
    faults += [
        DataFault.of("annealed", "must be 0 or 1", row=int(i), value=float(annealed[i]))
        for i in np.flatnonzero(~np.isnan(annealed) & (annealed != 0) & (annealed != 1))
    ]
    if faults:
        raise ScalingDataError(faults)


def _largest(values: FloatArray, of: Index, count: int) -> FloatArray:
    """The largest known value of each group (count,); NaN where none is known."""
    out = np.full(count, -math.inf)
    known = ~np.isnan(values)
    np.maximum.at(out, of[known], values[known])
    return np.where(np.isinf(out), math.nan, out)


def _peak_tokens(tokens: FloatArray, at_peak: BoolArray, of: Index, count: int) -> FloatArray:
    """Tokens at which each group first reached its peak rate (count,); 0 where unknown."""
    out = np.full(count, math.inf)
    np.minimum.at(out, of[at_peak], tokens[at_peak])
    return np.where(np.isinf(out), 0.0, out)


def _gap(
    family: Index, log_d: FloatArray, log_y: FloatArray, high: BoolArray, low: BoolArray
) -> Correction:
    gaps: list[FloatArray] = []
    order = np.argsort(family, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(family[order])) + 1):
        up, down = rows[high[rows]], rows[low[rows]]
        if not up.size or not down.size:
            continue
        x, inverse, runs = np.unique(log_d[up], return_inverse=True, return_counts=True)
        y = np.bincount(inverse.reshape(-1), weights=log_y[up]) / runs
        inside = down[(log_d[down] >= x[0]) & (log_d[down] <= x[-1])]
        if inside.size:
            gaps.append(np.interp(log_d[inside], x, y) - log_y[inside])
    every = np.concatenate(gaps) if gaps else np.empty(0)
    if every.size < MIN_PAIRS:
        raise OptionError(
            "unannealed",
            "correct",
            f"at least {MIN_PAIRS} annealed rows at tokens between un-annealed rows of their "
            f"family (there are {every.size}): give `family`, the name that a constant run "
            "shares with its decayed branches, or drop these rows",
        )
    spread = float(np.std(every, ddof=1))
    units = np.array([g.mean() for g in gaps]) if len(gaps) >= MIN_PAIRS else every
    error = float(np.std(units, ddof=1)) / math.sqrt(units.size)
    return Correction(float(units.mean()), error, spread, every.size, len(gaps))
